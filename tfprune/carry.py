"""Compile settings and the optimizer's state go over to the stripped model, so that training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfprune.keras_graph.arrays import numbers
from tfprune.keras_graph.rebuild import Rebuilt

# Keras' list of the averages of the weights themselves (use_ema): what a bias has gained, its average gains too.
_AVERAGES = "_model_variables_moving_average"


def carry(model: keras.Model, rebuilt: Rebuilt) -> tuple[str, ...]:
    """Compile the stripped model as the original is compiled, with what is left of its optimizer's state.

    A slot that is laid out as its variable is (momentum, velocity, average, accumulated gradient) loses the same
    slices. Iterations, the learning rate, the loss scale and other scalars are kept. Loss and metrics are the same;
    metrics start anew.

    Returns:
        what could not be carried over, in words.
    """
    optimizer = getattr(model, "optimizer", None)
    if not compile_settings(model) or optimizer is None:
        return (f"{model.name} is not compiled: there is no optimizer to carry over",)
    new = _made_again(optimizer)
    notes = compile_as(model, rebuilt.model, new)
    if optimizer.built:
        new.build(rebuilt.model.trainable_variables)
        notes += _carried(optimizer, new, rebuilt)
    return tuple(dict.fromkeys(notes))


def compile_settings(model: keras.Model) -> dict[str, Any]:
    """What `model.compile` was given; nothing if it is not compiled."""
    return dict(getattr(getattr(model, "_compile_config", None), "config", {}))


def compile_as(model: keras.Model, other: keras.Model, optimizer: Any) -> list[str]:
    """Compile `other` as `model` is compiled, with another optimizer; metrics start anew.

    Returns:
        the metrics that could not be made again, and why.
    """
    notes: list[str] = []
    settings = compile_settings(model)
    for name in ("metrics", "weighted_metrics"):
        settings[name] = _anew(settings.get(name), notes, several=len(other.outputs) > 1)
    # A loss scale was added by the first compile, if one was wanted.
    other.compile(**{**settings, "optimizer": optimizer}, auto_scale_loss=False)
    return notes


def _made_again(optimizer: Any) -> Any:
    """An optimizer with the same settings and no state."""
    config = optimizer.get_config()
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        config["inner_optimizer"] = _made_again(inner)
        return type(optimizer)(**config)
    if not isinstance(optimizer._learning_rate, keras.Variable):  # a schedule or function, which may be Python code
        config["learning_rate"] = optimizer._learning_rate
    return type(optimizer).from_config(config)


def _anew(metrics: Any, notes: list[str], several: bool = False) -> Any:
    """The same metrics without what they have counted; in a list for several outputs each keeps its place."""
    if isinstance(metrics, dict):
        return {name: made for name, value in metrics.items() if (made := _anew(value, notes)) is not None}
    if isinstance(metrics, list | tuple):
        made = [_anew(value, notes) for value in metrics]
        return made if several else [metric for metric in made if metric is not None]
    if not isinstance(metrics, keras.metrics.Metric):
        return metrics
    try:
        return type(metrics).from_config(metrics.get_config())
    except Exception as error:  # whatever a metric of the user's own raises
        notes.append(f"the metric {metrics.name} is not carried over: it cannot be made again ({error})")
        return None


def _carried(old: Any, new: Any, rebuilt: Rebuilt) -> Iterator[str]:
    """Copy what is left of an optimizer's variables; what starts anew, in words."""
    if hasattr(old, "inner_optimizer"):
        yield from _carried(old.inner_optimizer, new.inner_optimizer, rebuilt)
    place = {id(variable): index for index, variable in enumerate(old._trainable_variables)}
    origin = {id(variable): before for variable, before in rebuilt.origins}
    for name, value in vars(old).items():
        other = vars(new).get(name)
        if isinstance(value, keras.Variable) and isinstance(other, keras.Variable):
            other.assign(value)
        if not isinstance(value, list) or name in ("_variables", "_trainable_variables") or len(value) != len(place):
            continue
        if not all(slot is None or isinstance(slot, keras.Variable) for slot in value):  # Keras' own bookkeeping
            continue
        for variable, slot in zip(new._trainable_variables, other or (), strict=False):
            before = origin.get(id(variable))
            given = None if before is None or id(before) not in place else value[place[id(before)]]
            if slot is None:
                continue
            array = None if given is None else _left(rebuilt, variable, before, given)
            if name == _AVERAGES:
                array = _average(rebuilt, variable, before, array)
            if array is None:
                why = "is new" if given is None else "has become narrower, and the slot is laid out otherwise"
                yield f"{name.strip('_')} of {variable.path} starts anew: the variable {why}"
            else:
                slot.assign(array)


def _left(rebuilt: Rebuilt, variable: Any, before: Any, slot: Any) -> np.ndarray | None:
    """What is left of a slot; None if it is not known which parts of it belong to what is left."""
    array = numbers(slot)
    if tuple(slot.shape) == tuple(before.shape):
        return rebuilt.narrowed(before, array)
    return array if tuple(variable.shape) == tuple(before.shape) or array.ndim == 0 else None


def _average(rebuilt: Rebuilt, variable: Any, before: Any, array: np.ndarray | None) -> np.ndarray:
    """The average of a weight: with what the weight has gained by constants that were folded into it."""
    value = numbers(variable)
    return value if array is None else array + (value - rebuilt.narrowed(before, numbers(before)))
