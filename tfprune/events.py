"""TensorBoard's event files, written without TensorFlow and at once: nothing waits in a thread's queue."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfprune.errors import TfpruneError

_numbers = itertools.count()


class EventFile:
    """One event file in a log directory.

    Args:
        directory: of the log; it is made if it does not exist.
        step: TensorBoard forgets what older files of the directory say of this step and later ones, which a resumed run
            writes anew. None: it forgets nothing.

    Raises:
        TfpruneError: tensorboard is not installed.
        OSError: the file could not be written.

    >>> import tempfile
    >>> events = EventFile(tempfile.mkdtemp())
    >>> events.write(0, {"loss": 0.5})
    >>> events.close()
    """

    def __init__(self, directory: str | os.PathLike, step: int | None = None):
        self._proto = proto = _Protocol()
        Path(directory).mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a directory in the order of their names.
        name = f"{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._file = open(Path(directory) / f"events.out.tfevents.{name}", "wb")  # noqa: SIM115
        self._writer = proto.RecordWriter(self._file)
        self._add(proto.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if step is not None:
            start = proto.SessionLog(status=proto.SessionLog.START)
            self._add(proto.Event(wall_time=time.time(), step=step, session_log=start))

    def write(
        self,
        step: int,
        scalars: Mapping[str, float],
        histograms: Mapping[str, Sequence[Sequence[float]]] | None = None,
        when: float | None = None,
    ) -> None:
        """Write what belongs to one step; it is on the disk when this returns.

        Args:
            step: an epoch, or what else is counted.
            scalars: tag -> number.
            histograms: tag -> buckets as `histogram` makes them.
            when: seconds since 1970; now if None.
        """
        proto = self._proto
        values = [proto.Summary.Value(tag=tag, simple_value=float(value)) for tag, value in scalars.items()]
        for tag, buckets in (histograms or {}).items():
            tensor = proto.make_tensor_proto(np.asarray(buckets, np.float64))
            values.append(proto.Summary.Value(tag=tag, metadata=proto.histogram_metadata(None, None), tensor=tensor))
        self._add(proto.Event(wall_time=when or time.time(), step=step, summary=proto.Summary(value=values)))

    def _add(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Close the file; what could not be written was reported by `write`."""
        with contextlib.suppress(OSError):
            self._file.close()


def histogram(values: Any, buckets: int = 30) -> list[list[float]]:
    """An array's histogram as TensorBoard takes it: (left edge, right edge, count) of each bucket.

    >>> histogram([0.0, 1.0, 1.0, 4.0], buckets=2)
    [[0.0, 2.0, 3.0], [2.0, 4.0, 1.0]]
    """
    array = np.asarray(values, np.float64).ravel()
    counts, edges = np.histogram(array[np.isfinite(array)], buckets)
    return np.stack([edges[:-1], edges[1:], counts], axis=1).tolist()


class _Protocol:
    """What tensorboard brings along, imported when it is needed."""

    def __init__(self) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.plugins.histogram.metadata import create_summary_metadata
            from tensorboard.summary.writer.record_writer import RecordWriter
            from tensorboard.util.tensor_util import make_tensor_proto
        except ImportError as error:
            raise TfpruneError("TensorBoard logs need tensorboard: pip install 'tfprune[tensorboard]'") from error
        self.Event, self.SessionLog, self.Summary = Event, SessionLog, Summary
        self.RecordWriter, self.make_tensor_proto = RecordWriter, make_tensor_proto
        self.histogram_metadata = create_summary_metadata
