"""--model: a file, a function, or the name of a keras.applications model."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tfprune.cli.command import Flag, UsageError
from tfprune.data import import_function
from tfprune.errors import CheckpointError, TfpruneError
from tfprune.files import atomic_path

MODEL = Flag(
    "model",
    "The model: a .keras file; a function (called with input_shape= and classes= if it takes them); or the name of a "
    "keras.applications model such as MobileNetV2, built with random weights.",
    value="PATH.keras|module:function|NAME",
    required=True,
)
INPUT_SHAPE = Flag(
    "input_shape",
    "Shape of one sample for a function or a keras.applications model, such as 32,32,3. By default its own.",
    value="N,N,N",
    kind="list",
)
CLASSES = Flag(
    "classes", "Classes for a function or a keras.applications model. By default its own.", "N", kind="integer", low=1
)
SOURCE = (MODEL, INPUT_SHAPE, CLASSES)
MODEL_OR_ONNX = dataclasses.replace(
    MODEL,
    help=MODEL.help.replace(
        "a .keras file;", "a .keras or .onnx file; a frozen .pb or a SavedModel directory, which become ONNX;"
    ),
    value="PATH|module:function|NAME",
)
TENSORS = (
    Flag("inputs", "Tensors of a frozen .pb where data comes in, such as x:0; by default its placeholders.", "LIST",
         kind="list"),
    Flag("outputs", "Its outputs, such as y:0; by default what no other node reads. Or results of a SavedModel.",
         "LIST", kind="list"),
    Flag("signature", "Of a SavedModel; by default serving_default, or the only one.", "NAME"),
)  # fmt: skip
SOURCE_OR_ONNX = (MODEL_OR_ONNX, INPUT_SHAPE, CLASSES, *TENSORS)


def given(options: SimpleNamespace, spec: str | None = None) -> Any:
    """The model that the flags of `SOURCE_OR_ONNX` mean, or another one of the same kind."""
    spec = spec or options.model
    if is_tensorflow(spec):
        return _of_tensorflow(spec, options)
    named = [flag.name for flag in TENSORS if getattr(options, flag.name)]
    if named:
        raise UsageError(f"--{named[0]} is for a frozen .pb or a SavedModel, and {spec!r} is neither")
    return load(spec, getattr(options, "input_shape", None), getattr(options, "classes", None))


def is_tensorflow(spec: str) -> bool:
    """Whether this is a frozen graph or a SavedModel."""
    return spec.endswith(".pb") or Path(spec).is_dir()


def is_onnx(spec: str) -> bool:
    """Whether this is a model that is pruned as ONNX, and not trained."""
    return spec.endswith(".onnx") or is_tensorflow(spec)


def _of_tensorflow(spec: str, options: SimpleNamespace) -> Any:
    from tfprune.from_tensorflow.convert import convert

    shape = _shape(getattr(options, "input_shape", None))
    shapes = None if shape is None else (None, *shape)
    made = convert(spec, options.inputs, options.outputs, options.signature, shapes)
    print(f"{spec}: {made.taken}; ONNX against TensorFlow {made.verification}")
    return made.model


def load(spec: str, input_shape: Any = None, classes: int | None = None) -> Any:
    """The model that `--model=spec` means.

    Args:
        spec: what was given.
        input_shape: of one sample, numbers or text; for functions and applications only.
        classes: likewise.

    Raises:
        CheckpointError: the file is missing, damaged, or needs layers that are not known here.
        TfpruneError: the function or the application does not exist, fails, or returns no model.
    """
    if spec.endswith((".keras", ".h5", ".hdf5")):
        return load_file(spec)
    if spec.endswith(".onnx"):
        from tfprune.onnx_graph.model import load as load_onnx

        return load_onnx(spec)
    shape = _shape(input_shape)
    if ":" in spec:
        return _built(spec, import_function(spec, TfpruneError), shape, classes)
    return _built(spec, _application(spec), shape, classes)


def load_file(path: str) -> Any:
    """Load a Keras file, without its optimizer.

    Raises:
        CheckpointError: it is missing, damaged, or needs layers that are not known here.
    """
    import keras

    if not Path(path).is_file():
        raise CheckpointError(f"{path!r} does not exist or is no file; give the path of a .keras file")
    if path.endswith(".weights.h5"):
        raise CheckpointError(f"{path!r} holds weights without a model; give a .keras file")
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path!r} could not be loaded ({reason[:300]}); it must be a whole file that model.save wrote. If it has "
            f"layers of your own, give --model=module:function that imports them and loads it"
        ) from error


def compile_classifier(model: Any, learning_rate: float = 1e-3) -> None:
    """Compile for training and measuring on class numbers: Adam, cross-entropy, accuracy."""
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not gives_probabilities(model))
    model.compile(keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"])


def gives_probabilities(model: Any) -> bool:
    import keras

    last = model.outputs[0]._keras_history.operation
    if isinstance(last, keras.Model):
        return gives_probabilities(last)
    return isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax


def save(model: Any, folder: Path) -> Path:
    """Write a model as `model.keras`, or `model.onnx` if it is ONNX; where to."""
    from tfprune.frontend import is_onnx

    if is_onnx(model):
        from tfprune.onnx_graph.model import save as save_onnx

        return save_onnx(model, folder / "model.onnx")
    with atomic_path(folder / "model.keras") as path:
        model.save(path)
    return folder / "model.keras"


def _shape(text: Any) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        shape = tuple(int(size) for size in text)
    except ValueError as error:
        raise TfpruneError(f"--input_shape must be whole numbers such as 32,32,3, got {','.join(text)}") from error
    if min(shape, default=0) < 1:
        raise TfpruneError(f"--input_shape must be sizes of at least 1, got {shape}")
    return shape


def _application(name: str) -> Callable[..., Any]:
    import keras

    known = {
        key: value
        for key, value in vars(keras.applications).items()
        if callable(value) and "weights" in inspect.signature(value).parameters
    }
    by_lower = {key.lower(): value for key, value in known.items()}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    close = [key for key in known if key.lower() in difflib.get_close_matches(name.lower(), by_lower, 1, 0.5)]
    hint = f"; did you mean {close[0]}?" if close else ""
    raise TfpruneError(
        f"unknown model {name!r}: it is no .keras file, no module:function and no keras.applications model{hint}"
    )


def _built(spec: str, function: Callable[..., Any], shape: tuple[int, ...] | None, classes: int | None) -> Any:
    import keras

    # Images come in [0, 1] and no download is wanted: the application's own preprocessing and weights are left out.
    wishes = {"input_shape": shape, "classes": classes}
    if function.__module__.startswith("keras."):
        wishes |= {"weights": None, "include_preprocessing": False}
    try:
        takes = inspect.signature(function).parameters
        wild = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
        given = {
            key: value
            for key, value in wishes.items()
            if (key in takes or (wild and key in ("input_shape", "classes")))
            and (key == "weights" or value is not None)
        }
        model = function(**given)
    except Exception as error:
        raise TfpruneError(f"{spec} could not be built: {type(error).__name__}: {error}") from error
    if not isinstance(model, keras.Model):
        raise TfpruneError(f"{spec} must return a keras.Model, and returned a {type(model).__name__}")
    return model
