"""MLflow: parameters, metrics, summaries and models of a run, on a server or in a local database."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import time
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import keras

from tfprune.errors import TfpruneError
from tfprune.files import atomic_path
from tfprune.tables import listed
from tfprune.trackers.base import Tracker
from tfprune.trackers.record import Record

_UPLOAD = 120  # seconds without an answer while a model is sent; the server has just answered something shorter


@dataclass
class MLflow(Tracker):
    """A run of an MLflow experiment.

    Keras' `loss` is called `train_loss` there, to stand beside `val_loss`; with `Tracking(suffix="-pruned_model")` the
    names end like that. A metric's step is the epoch. A character that MLflow takes in no name becomes a period.

    Args:
        experiment: it is made if there is none of that name.
        run: a name. If the experiment has a run of that name, that is gone on with: give one to training that is
            resumed. None: a new run with a name that says when and where.
        uri: `http://127.0.0.1:5005`, `sqlite:///mlflow.db`, ...; None for MLflow's own choice: what
            `mlflow.set_tracking_uri` or MLFLOW_TRACKING_URI say.
        params: what the run was started with, such as `{"epochs": 10, "optimizer": "adam"}`.
        directory: of the run; what could not be sent is kept there.
        timeout: seconds after which a server that does not answer is taken for down; there are no retries, for the next
            epoch is one.

    Raises:
        TfpruneError: mlflow is not installed; or, when training begins, the run was started with other params.

    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> tracker = MLflow("digits", run="first", uri=f"sqlite:///{directory}/mlflow.db", directory=directory)
    >>> tracker.target.partition(" at ")[0]
    "the run 'first' of MLflow's experiment 'digits'"
    """

    experiment: str = "tfprune"
    run: str | None = None
    uri: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    directory: str = "."
    timeout: int = 5

    name: ClassVar[str] = "mlflow"
    requires: ClassVar[str] = "mlflow"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.directory = os.fspath(self.directory)
        self.params = {key: str(value) for key, value in self.params.items()}
        self.run = self.run or f"{time.strftime('%Y-%m-%d %H-%M-%S')} {os.getpid()}"
        if "'" in self.run:
            raise TfpruneError(f"the name of a run may not hold an apostrophe, and {self.run!r} came")
        if self.uri is None:
            import mlflow

            self.uri = mlflow.get_tracking_uri()
        self._client: Any = None
        self._run_id = ""

    @classmethod
    def within(cls, directory: str | os.PathLike) -> MLflow:
        """A run named like the directory; where to is MLflow's own choice, or `mlflow.db` there if it has none."""
        own = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(directory).resolve()}/mlflow.db"
        return cls(run=Path(directory).resolve().name, uri=own, directory=str(directory))

    @property
    def target(self) -> str:
        return f"the run {self.run!r} of MLflow's experiment {self.experiment!r} at {self.uri}"

    @property
    def beside(self) -> Path:
        return Path(self.directory) / re.sub(r"[^\w.-]", "_", f"mlflow-{self.experiment}-{self.run}")

    # -- what can be sent ----------------------------------------------------------------------------------------------

    def check(self, names: Collection[str], model: Any) -> None:
        """Log the params; refuse to go on with a run that had others."""
        try:
            with self._soon():
                self._write_params(self.params)
        except TfpruneError:
            raise
        except Exception as error:
            self._keep({"params": self.params}, error)

    def log_summary(self, model: keras.Model, file: str) -> None:
        """Log what `model.summary()` prints, as a text artifact such as `model_summary.txt`."""
        lines: list[str] = []
        model.summary(print_fn=lines.append, line_length=100)
        self.deliver({"text": {"file": file, "text": "\n".join(lines) + "\n"}})

    def log_model(self, model: keras.Model, name: str) -> None:
        """Log a model, for `mlflow.keras.load_model(f"runs:/{run_id}/{name}")`.

        While the server is down, it is kept as a .keras file beside the run.
        """
        self.deliver({"model": {"name": name, "path": str(self._file_of(name))}, "object": model})

    @property
    def run_id(self) -> str:
        """MLflow's own name of the run.

        Raises:
            Exception: the server is down.
        """
        with self._soon():
            return self._run_id

    def write(self, record: Record) -> None:
        """Log a record's scalars as metrics."""
        from mlflow.entities import Metric

        when = int(1000 * record.time)
        training = {name for name in record.metrics if not name.startswith("val_")}
        named = {
            _allowed(f"train_{name}" if name.removesuffix(record.suffix) in training else name): value
            for name, value in record.scalars().items()
        }
        metrics = [Metric(name, value, when, record.step) for name, value in named.items()]
        with self._soon() as client:
            client.log_batch(self._run_id, metrics=metrics)

    def take(self, entry: dict[str, Any]) -> None:
        """A record, or params, a text, a model or the end of the run."""
        if "record" in entry:
            return super().take(entry)
        with self._soon() as client:
            if "params" in entry:
                self._write_params(entry["params"])
            elif "text" in entry:
                client.log_text(self._run_id, entry["text"]["text"], entry["text"]["file"])
            elif "model" in entry:
                self._write_model(entry)
            elif "status" in entry:
                client.set_terminated(self._run_id, entry["status"])

    def close(self) -> None:
        """Training has ended, and so has the run unless another training follows."""
        self.deliver({"status": "FINISHED"})

    # -- how ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _soon(self) -> Iterator[Any]:
        """The client, connected to the run, with short timeouts; Keras' training waits no longer than that."""
        with _environment(MLFLOW_HTTP_REQUEST_TIMEOUT=self.timeout, MLFLOW_HTTP_REQUEST_MAX_RETRIES=0):
            if self._client is None:
                self._client, self._run_id = self._connect()
            yield self._client

    def _connect(self) -> tuple[Any, str]:
        """A client, and the run's id: the newest of its name, or a new one."""
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        found = client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else client.create_experiment(self.experiment)
        runs = client.search_runs([experiment], f"attributes.run_name = '{self.run}'", max_results=1)
        run = runs[0] if runs else client.create_run(experiment, run_name=self.run)
        return client, run.info.run_id

    def _write_params(self, params: dict[str, str]) -> None:
        """Log what the run was started with.

        Raises:
            TfpruneError: it was started with something else.
        """
        from mlflow.entities import Param

        logged = self._client.get_run(self._run_id).data.params
        both = [key for key in params if key in logged]
        changed = [f"{key} was {logged[key]} and is {params[key]}" for key in both if logged[key] != params[key]]
        if changed:
            raise TfpruneError(f"{self.target} has other params: {listed(changed, 8)}; give the run another name")
        new = [Param(key, value) for key, value in params.items() if key not in logged]
        self._client.log_batch(self._run_id, params=new)

    def _write_model(self, entry: dict[str, Any]) -> None:
        import mlflow

        name, path = entry["model"]["name"], Path(entry["model"]["path"])
        self._client.get_run(self._run_id)  # it answers: what follows may take longer
        model = entry["object"] if "object" in entry else keras.saving.load_model(path)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self.uri)
        try:
            with _environment(MLFLOW_HTTP_REQUEST_TIMEOUT=_UPLOAD, MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT=True):
                with mlflow.start_run(run_id=self._run_id, nested=True):
                    mlflow.keras.log_model(
                        model, name=name, signature=_signature(model), pip_requirements=_requirements()
                    )
        finally:
            mlflow.set_tracking_uri(before)
        path.unlink(missing_ok=True)

    def _file_of(self, name: str) -> Path:
        """Where a model is kept that could not be sent."""
        return self.beside.with_name(f"{self.beside.name}-{name}.keras")

    def _keep(self, entry: dict[str, Any], error: Exception) -> None:
        """A model is kept as a file, and the entry names it."""
        model = entry.pop("object", None)
        if model is not None:
            try:
                with atomic_path(entry["model"]["path"]) as path:
                    model.save(path)
            except Exception as unsaved:
                name = entry["model"]["name"]
                return warnings.warn(f"{name} is neither logged ({error}) nor kept: {unsaved}", RuntimeWarning, 2)
        super()._keep(entry, error)


@contextlib.contextmanager
def _environment(**variables: Any) -> Iterator[None]:
    """MLflow reads its settings from the environment at each request."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: str(value) for name, value in variables.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _allowed(name: str) -> str:
    """A name as MLflow takes it.

    >>> _allowed("width/conv#2")
    'width/conv.2'
    """
    return re.sub(r"[^/\w.\- ]", ".", name)[-250:]


def _signature(model: keras.Model) -> Any:
    """What goes into the model and comes out; None where shapes are not known."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    def schema(tensors: Any) -> Any:
        flat = keras.tree.flatten(tensors)
        shapes = [tuple(-1 if size is None else size for size in tensor.shape) for tensor in flat]
        names = [tensor.name for tensor in flat] if len(flat) > 1 else [None]
        types = [keras.ops.convert_to_numpy(keras.ops.zeros((), tensor.dtype)).dtype for tensor in flat]
        return Schema([TensorSpec(*spec) for spec in zip(types, shapes, names, strict=True)])

    try:
        return ModelSignature(schema(model.inputs), schema(model.outputs))
    except Exception:  # a model without symbolic inputs, or of a type that numpy does not have
        return None


def _requirements() -> list[str]:
    """What loads the model again; finding out by loading it, as MLflow would, takes half a minute."""
    backend = importlib.import_module(keras.backend.backend())
    return [f"keras=={keras.__version__}", f"{backend.__name__}=={backend.__version__}"]
