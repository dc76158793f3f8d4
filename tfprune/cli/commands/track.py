"""What a tracker wrote, or could not be sent: draw the one, send the other."""

from __future__ import annotations

from types import SimpleNamespace

from tfprune.cli.command import Command, Flag, UsageError


def _run(options: SimpleNamespace) -> None:
    for path in options.send or ():
        from tfprune.trackers import send

        sent = send(path)
        print(f"{path}: {sent} {'entry' if sent == 1 else 'entries'} sent")
    if options.draw is not None:
        from tfprune.report.pictures import tracking

        print(f"wrote {tracking(options.draw, options.output)}")


def _check(options: SimpleNamespace) -> None:
    if not options.send and options.draw is None:
        raise UsageError("say what to do: --send=FILE.unsent.jsonl, or --draw=TABLE.csv with --output")
    if (options.draw is None) != (options.output is None):
        raise UsageError("--draw=TABLE.csv and --output=PICTURE belong together")


COMMAND = Command(
    name="track",
    summary="send what a tracker that was down could not be sent, or draw what the CSV tracker wrote",
    description=(
        "While a tracker is down, training goes on, and what could not be sent is kept in a file that ends with "
        ".unsent.jsonl. --send sends it, and removes the file when all is sent."
    ),
    example="tfprune track --send=runs/mine/mlflow-digits-first.unsent.jsonl\n"
    "tfprune track --draw=runs/mine/track.csv --output=track.png",
    flags=(
        Flag("send", "What to send.", "FILES", kind="list"),
        Flag("draw", "The table that the CSV tracker wrote.", "PATH"),
        Flag("output", "The picture: .png, .svg or .pdf.", "PATH"),
    ),
    run=_run,
    check=_check,
)
