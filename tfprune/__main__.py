"""The command line: `python -m tfprune COMMAND --flags`, or `tfprune COMMAND --flags`.

>>> main(["cost", "--modle=net.keras"])
2
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence

from tfprune.cli.command import Command, UsageError, commands
from tfprune.errors import TfpruneError

_USAGE = """\
tfprune: make Keras models smaller by removing channels, and prove that the result computes the same

usage: tfprune COMMAND --flag=value ...
       tfprune COMMAND --help

commands:
{commands}

Exit status: 0 done, 1 could not be done (the reason is printed), 2 wrong command line, 130 interrupted.
A model is a .keras file, a module:function that builds one, or the name of a keras.applications model.\
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(arguments)
    except UsageError as error:
        return _failed(f"{error}", 2)
    except TfpruneError as error:
        return _failed(str(error), 1)
    except KeyboardInterrupt:
        return _failed("interrupted; no file was left half-written", 130)
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError) as error:
        return _failed(f"{type(error).__name__}: {error}", 1)


def _run(arguments: list[str]) -> int:
    known = commands()
    if not arguments or arguments[0] in ("--help", "-h", "-help", "help"):
        asked = [name for name in arguments[1:] if name in known]
        print(known[asked[0]].help() if asked else _help(known))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from tfprune import __version__

        print(f"tfprune {__version__}")
        return 0
    command = _find(known, arguments[0])
    if any(argument in ("--help", "-h", "-help") for argument in arguments[1:]):
        print(command.help())
        return 0
    try:
        options = command.parse(arguments[1:])
    except UsageError as error:
        raise UsageError(f"{error} (see tfprune {command.name} --help)") from error
    _start_keras()
    return command.run(options) or 0


def _start_keras() -> None:
    """Import Keras without the start-up notes of its backend, which come from C++ and are no news to the user."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import keras  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _help(known: dict[str, Command]) -> str:
    return _USAGE.format(commands="\n".join(f"  {name:<10}{command.summary}" for name, command in known.items()))


def _find(known: dict[str, Command], name: str) -> Command:
    if name in known:
        return known[name]
    if name.startswith("-"):
        raise UsageError(f"the command comes first: tfprune {'|'.join(known)} {name} ...")
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UsageError(f"unknown command {name!r}; the commands are {', '.join(known)}{hint}")


def _failed(message: str, status: int) -> int:
    print(f"tfprune: error: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
