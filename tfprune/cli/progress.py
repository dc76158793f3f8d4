"""Training seen from the terminal: a bar that moves, or a line an epoch where nobody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def training(title: str, epochs: int) -> Iterator[Any]:
    """Yield a Keras callback that shows epochs, loss and accuracy on standard error."""
    import keras
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(24),
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}  {task.fields[numbers]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task(title, total=None, epoch=0, epochs=epochs, numbers="")

    class Shown(keras.callbacks.Callback):
        """Moves the bar a step a batch."""

        def on_train_begin(self, logs: Any = None) -> None:
            steps = self.params.get("steps")
            bar.update(task, total=steps * epochs if steps else None)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            bar.advance(task)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            shown = {"accuracy": "{:.1%}", "loss": "{:.3f}", "failure_rate": "{:.1%}"}
            numbers = "  ".join(f"{k} {shown[k].format(v)}" for k, v in (logs or {}).items() if k in shown)
            bar.update(task, epoch=epoch + 1, numbers=numbers)
            if not console.is_terminal:
                console.print(f"{title}: epoch {epoch + 1}/{epochs}  {numbers}", highlight=False, soft_wrap=True)

    with bar:
        yield Shown()
