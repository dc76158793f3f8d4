"""Zero a plan in place. What is zeroed can be trained on, may come back, and is removed by `strip`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray

from tfprune.channels.plan import PruningPlan
from tfprune.channels.weights import Slot, Weight
from tfprune.errors import PlanError
from tfprune.frontend import is_onnx, trace


def variables_of(model: Any, plan: PruningPlan) -> dict[Weight, Any]:
    """The model's variable for each weight of the plan's graph.

    Raises:
        PlanError: the plan was made for another model.
    """
    if model is plan.graph.model:
        return plan.graph.variables
    graph = trace(model)
    plan.onto(graph)
    found = {weight.key: variable for weight, variable in graph.variables.items()}
    missing = [weight.key for weight in plan.zeros_of if weight.key not in found]
    if missing:
        raise PlanError(
            f"the plan was made for another model: {graph.name} has no weight {missing[0]!r}; "
            f"make a new plan with tfprune.select"
        )
    return {weight: found[weight.key] for weight in plan.graph.variables if weight.key in found}


class Zeroing:
    """A plan, ready to be applied to one model again and again, on the device its weights are on.

    A mask is one boolean a channel. `slots` of an optimizer (momentum and the like) can be zeroed with the weights.
    """

    def __init__(self, model: keras.Model, plan: PruningPlan):
        self.model = model
        variables = variables_of(model, plan)
        self.masks = [
            (variables[weight], *mask) for weight, slots in plan.zeros_of.items() for mask in _joined(weight, slots)
        ]
        self._tensors = [keras.ops.convert_to_tensor(mask) for _, _, mask in self.masks]

    def apply(self) -> None:
        """Zero the plan's slices of the weights."""
        for (variable, split, _), mask in zip(self.masks, self._tensors, strict=True):
            _zero(variable, split, mask)

    def apply_to_averages(self, optimizer: Any) -> None:
        """Zero the plan's slices of the weights' averages (`use_ema`): they take the place of the weights later."""
        for part in _parts(optimizer):
            averages = getattr(part, "_model_variables_moving_average", ())
            pairs = zip(part._trainable_variables, averages, strict=True) if averages else ()
            own = {id(variable): average for variable, average in pairs if average is not None}
            for (variable, split, _), mask in zip(self.masks, self._tensors, strict=True):
                if id(variable) in own:
                    _zero(own[id(variable)], split, mask)

    def apply_to_slots(self, optimizer: Any) -> None:
        """Zero the plan's slices of the optimizer's slots, so that momentum does not bring filters back."""
        found: dict[int, list[Any]] = {}
        named: dict[str, list[Any]] = {}
        for variable in self.model.trainable_variables:
            named.setdefault(variable.path.replace("/", "_") + "_", []).append(variable)
        # An optimizer names a slot `optimizer/layer_kernel_momentum`; the longest name that fits is the variable's.
        # Layers of two nested models may share a name: their slots come in the order of their variables.
        longest_first = sorted(named, key=len, reverse=True)
        seen: Counter[str] = Counter()
        for slot in optimizer.variables:
            own = slot.path.rpartition("/")[2]
            name = next((name for name in longest_first if own.startswith(name)), None)
            if name is None:
                continue
            variables, turn = named[name], seen[slot.path]
            seen[slot.path] += 1
            if turn < len(variables) and tuple(variables[turn].shape) == tuple(slot.shape):
                found.setdefault(id(variables[turn]), []).append(slot)
        for (variable, split, _), mask in zip(self.masks, self._tensors, strict=True):
            for slot in found.get(id(variable), ()):
                _zero(slot, split, mask)


def _parts(optimizer: Any) -> Iterator[Any]:
    """The optimizers that an optimizer hands its work on to (loss scaling, one for each part of a model), or itself."""
    inner = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", ())]
    found = [part for part in inner if part is not None]
    for part in found:
        yield from _parts(part)
    if not found:
        yield optimizer


def zeros_in(model: Any, plan: PruningPlan) -> list[tuple[Any, NDArray]]:
    """(variable, its array with the plan's slices zeroed), for each that the plan touches; the model is not changed."""
    variables = variables_of(model, plan)
    return [(variables[weight], plan.zeroed(weight, plan.graph.read(variables[weight]))) for weight in plan.zeros_of]


def _joined(weight: Weight, slots: list[tuple[Slot, np.ndarray]]) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """(split, mask) of a weight: one mask for all slots that see the weight in the same shape."""
    masks: dict[tuple[int, ...], np.ndarray] = {}
    for slot, gone in slots:
        mask = slot.mask(~gone)
        masks[slot.split] = masks[slot.split] & mask if slot.split in masks else mask
    return list(masks.items())


def _zero(variable: Any, split: tuple[int, ...], mask: Any) -> None:
    shape, value = tuple(variable.shape), variable.value
    if split == shape:
        variable.assign(keras.ops.where(mask, value, 0))
    else:
        variable.assign(keras.ops.reshape(keras.ops.where(mask, keras.ops.reshape(value, split), 0), shape))


def soft_prune(model: Any, plan: PruningPlan, *, slots: Literal["keep", "reset"] = "keep") -> None:
    """Zero a plan in the model's weights, in place.

    Zeroed are the filters (kernel slices that write a channel) and their biases, BatchNormalization's gamma and beta,
    the depthwise slices, and the kernel slices of whoever reads the channel, and the same in the averages of these
    weights that an optimizer keeps (`use_ema=True`). BatchNormalization's moving means and variances stay.

    Args:
        model: the model the plan was made for, or one with the same layers: Keras, or a loaded `onnx.ModelProto`.
        plan: from `tfprune.select`.
        slots: what becomes of the slots (momentum and the like) of the model's optimizer, if it has one: `"keep"`
            leaves them, and they move zeroed filters away from 0 again; `"reset"` zeroes the same slices there.

    Raises:
        PlanError: the plan was made for another model, or `model` is a path: a file is not changed in place.

    >>> import keras, numpy, tfprune
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.Flatten(),
    ...                           keras.layers.Dense(2)])
    >>> tfprune.soft_prune(model, tfprune.select(model, "l1", ratio=0.5))
    >>> int((abs(numpy.asarray(model.layers[0].kernel)).sum((0, 1, 2)) == 0).sum())
    4

    Source: He et al., "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks" (arXiv:1808.06866);
    what is zeroed beside the filters follows Tensorflow_Model_Pruning.
    """
    if is_onnx(model):
        if isinstance(model, str | os.PathLike):
            raise PlanError(
                f"soft_prune changes a model in place, and the path {os.fspath(model)!r} came; onnx.load it"
            )
        for variable, array in zeros_in(model, plan):
            variable.assign(array)
        return
    zeroing = Zeroing(model, plan)
    zeroing.apply()
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        zeroing.apply_to_averages(optimizer)
        if slots == "reset":
            zeroing.apply_to_slots(optimizer)
