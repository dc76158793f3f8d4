"""A SavedModel: a directory with signatures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfprune.errors import TraceError
from tfprune.export.device.tf_saved_model import SIGNATURE
from tfprune.from_tensorflow.source import Shapes, Source, between, chosen, given, made, text


def read(
    path: Path,
    signature: str | None,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
    shapes: Shapes,
) -> Source:
    """One signature of a SavedModel with its variables as constants.

    Args:
        path: the directory.
        signature: which; None: serving_default, or the only one.
        inputs: names of all its arguments, in the order wanted; None: in the signature's.
        outputs: names of the results wanted; None: all.
        shapes: of arguments, by name; or of the only one.

    Raises:
        TraceError: it is no SavedModel, has no such signature, or that has no such arguments and results.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise TraceError(f"{text(path)} is no SavedModel, or is damaged ({_first(error)})") from error
    name = _signature(loaded, signature, path)
    function = loaded.signatures[name]
    where = f"the signature {name!r} of {text(path)}"
    try:
        frozen = convert_variables_to_constants_v2(function, lower_control_flow=False)
    except Exception as error:
        raise TraceError(f"{where} cannot be frozen ({_first(error)})") from error
    arguments = dict(zip(function._arg_keywords, frozen.inputs, strict=True))
    results = dict(zip(sorted(function.structured_outputs), frozen.outputs, strict=True))
    taken, wanted = list(inputs or arguments), list(outputs or results)
    chosen(taken, list(arguments), "argument", where)
    chosen(wanted, list(results), "result", where)
    missing = [one for one in arguments if one not in taken]
    if missing:
        raise TraceError(f"{where} takes {missing[0]!r} too; name all its arguments: {', '.join(arguments)}")
    named = [one if one not in taken else f"{one}_output" for one in wanted]
    starts = given([arguments[one] for one in taken], taken, shapes)
    left = made([results[one] for one in wanted], named)

    def run(arrays: Sequence[Any], loaded: Any = loaded) -> list[Any]:  # a signature alone does not keep its variables
        found = function(**{one: tf.constant(array) for one, array in zip(taken, arrays, strict=True)})
        return [found[one].numpy() for one in wanted]

    return Source(
        between(frozen.graph.as_graph_def(), starts, left, where),
        tuple(taken),
        tuple(named),
        tuple(end.shape for end in starts),
        tuple(end.shape for end in left),
        run,
        f"signature {name}: inputs {', '.join(taken)}; outputs {', '.join(wanted)}",
    )


def _signature(loaded: Any, wanted: str | None, path: Path) -> str:
    known = list(loaded.signatures)
    if wanted is not None:
        chosen([wanted], known, "signature", text(path))
        return wanted
    if SIGNATURE in known or len(known) == 1:
        return SIGNATURE if SIGNATURE in known else known[0]
    raise TraceError(
        f"{text(path)} has {len(known)} signatures ({', '.join(known)}) and none is {SIGNATURE}; name one"
        if known
        else f"{text(path)} has no signature; save it with one (model.export of Keras writes {SIGNATURE})"
    )


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
