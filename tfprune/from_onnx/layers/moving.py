"""What moves numbers, and computes none: reshaping, transposing, joining, cutting, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers, ops

from tfprune.from_onnx.builder import Builder, LayerError, Operand, Value, builds, channels_last
from tfprune.from_onnx.layers.windows import surrounded
from tfprune.onnx_graph.model import Node

_END = 1 << 31


def without_axes(axes: tuple[int, ...], gone: Sequence[int]) -> tuple[int, ...]:
    """The order of the axes that are left, counted anew.

    >>> without_axes((0, 2, 3, 1), (2, 3))
    (0, 1)
    """
    left = [axis for axis in range(len(axes)) if axis not in gone]
    return tuple(left.index(axis) for axis in axes if axis in left)


# ---------------------------------------------------------------------- reshaping


@builds("Transpose")
def transpose(builder: Builder, node: Node) -> Value:
    value = builder.in_order(builder.value(node))
    moved = list(node.attributes.get("perm", range(value.rank)[::-1]))
    return Value(value.tensor, tuple(moved.index(axis) for axis in value.axes))


@builds("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(builder: Builder, node: Node) -> Value:
    """Axes become others in blocks, and blocks need not lie as they do in ONNX: only what is inside of one."""
    value = builder.in_order(builder.value(node))
    runs = [(sizes[node.inputs[0]], sizes[node.outputs[0]]) for sizes in builder.known.sizes]
    blocks, order = _blocks(runs), None
    # Axes of size 1 may lie anywhere; a batch of any size is none, also where ONNX says 1.
    lying = [axis for axis, size in zip(value.axes, value.tensor.shape, strict=True) if size != 1]
    ranked = _as_they_lie(blocks, lying)
    if ranked is None:
        ranked, order = blocks, _flattened(builder, node, value, runs[0][0])
        if order is None:
            value = Value(builder.plain(value), tuple(range(value.rank)))
    axes = tuple(axis for block in ranked for axis in block[1])
    return Value(_reshaped(builder, node, value, blocks, axes), axes, order)


_Block = tuple[list[int], list[int]]


def _as_they_lie(blocks: Sequence[_Block], lying: Sequence[int]) -> Sequence[_Block] | None:
    """The blocks in the order in which their axes lie; None if a block's own axes lie apart or in another order.

    >>> _as_they_lie([([0], [0]), ([1], [1, 2]), ([2, 3], [3])], [0, 2, 3, 1])
    [([0], [0]), ([2, 3], [3]), ([1], [1, 2])]
    """
    inside = [[axis for axis in before if axis in lying] for before, _ in blocks]
    # Blocks of ones alone stay behind the block that they follow.
    places: list[int] = []
    for block in inside:
        places.append(min(map(lying.index, block)) if block else (places or [0])[-1])
    ranks = sorted(range(len(blocks)), key=places.__getitem__)
    return [blocks[rank] for rank in ranks] if [axis for rank in ranks for axis in inside[rank]] == lying else None


def _blocks(runs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[_Block]:
    """The smallest runs of axes that hold the same numbers before and after.

    >>> _blocks([((2, 6, 4), (2, 3, 2, 4)), ((2, 6, 4), (2, 3, 2, 4))])
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    before, after = len(runs[0][0]), len(runs[0][1])
    result: list[_Block] = []
    i = j = 0
    while i < before and j < after:
        a, b = [i], [j]
        i, j = i + 1, j + 1
        while True:
            sizes = [(math.prod(x[k] for k in a), math.prod(y[k] for k in b)) for x, y in runs]
            if all(x == y for x, y in sizes):
                break
            if i < before and (any(x < y for x, y in sizes) or j >= after):
                a, i = [*a, i], i + 1
            elif j < after:
                b, j = [*b, j], j + 1
            else:
                raise LayerError("the numbers before and after are not as many")
        result.append((a, b))
    if not result:
        result.append(([], []))
    result[-1][0].extend(range(i, before))
    result[-1][1].extend(range(j, after))
    return result


def _flattened(builder: Builder, node: Node, value: Value, sizes: Sequence[int]) -> np.ndarray | None:
    """The shuffle that channels-last numbers have once flattened, if only Dense layers will read them."""
    after = builder.shape(node.outputs[0])
    fixed = builder.shape(node.inputs[0])[1:]
    if len(after) != 2 or value.axes[0] != 0 or None in fixed or after[1] != math.prod(sizes[1:]):
        return None
    if not _read_by_kernels(builder, node.outputs[0]):
        return None
    numbers = np.arange(math.prod(sizes[1:])).reshape(sizes[1:])
    return numbers.transpose([axis - 1 for axis in value.axes[1:]]).ravel()


def _read_by_kernels(builder: Builder, name: str) -> bool:
    """Whether a tensor goes into Gemm and MatMul alone, whose kernels take any order, perhaps through activations."""
    readers = builder.readers.get(name, [])
    if not readers or name in builder.results:
        return False
    for reader in readers:
        if reader.op in ("Relu", "Dropout", "Identity", "Clip", "LeakyRelu", "BatchNormalization"):
            if not _read_by_kernels(builder, reader.outputs[0]):
                return False
        elif (
            reader.op not in ("Gemm", "MatMul")
            or reader.inputs[0] != name
            or not builder.known.is_constant(reader.inputs[1])
        ):
            return False
    return True


def _reshaped(builder: Builder, node: Node, value: Value, blocks: Sequence[_Block], axes: tuple[int, ...]) -> Any:
    """The tensor with the sizes that its new axes have."""
    tensor = value.tensor
    sizes = list(builder.shape(node.outputs[0]))
    open_axes = [axis for axis, size in zip(value.axes, tensor.shape, strict=True) if size is None]
    for before, after in blocks:
        if set(before) & set(open_axes) and all(sizes[axis] is not None for axis in after):
            sizes[_batch_among(builder, after, sizes)] = None
    target = [sizes[axis] for axis in axes]
    kept = axes[:1] == (0,) and any(before == [value.axes[0]] and after == [0] for before, after in blocks)
    name = builder.free_name(node.name)
    open_ = [size for size in (target[1:] if kept else target) if size is None]
    if len(open_) > 1:
        raise LayerError("several axes of unknown size; export with fixed sizes")
    numbers = [-1 if size is None else size for size in target]
    if kept and tuple(tensor.shape[1:]) == tuple(target[1:]):
        return tensor
    if kept:
        if len(numbers) == 2 and not open_:
            return layers.Flatten(name=name, dtype=str(tensor.dtype), data_format="channels_last")(tensor)
        return layers.Reshape(numbers[1:], name=name, dtype=str(tensor.dtype))(tensor)
    return ops.reshape(tensor, numbers)


def _batch_among(builder: Builder, axes: Sequence[int], sizes: Sequence[int | None]) -> int:
    """Which of the axes, all of a size that ONNX fixes, grows with the batch: a guess, which is then verified."""
    batch = builder.known.batch[0]
    if not axes:
        raise LayerError("the axis of the batch goes")
    exact = [axis for axis in axes if sizes[axis] == batch]
    multiple = [axis for axis in axes if (sizes[axis] or 0) % batch == 0]
    return (exact or multiple or list(axes))[0]


# ---------------------------------------------------------------------- joining and cutting


@builds("Concat")
def concatenated(builder: Builder, node: Node) -> Value:
    rank = len(builder.shape(node.outputs[0]))
    axis = node.attributes["axis"] % rank
    found = [builder.operand(node, index) for index in range(len(node.inputs))]
    axes = next((one.axes for one in found if isinstance(one, Value)), tuple(range(rank)))
    first = next((builder.arranged(one, axes) for one in found if isinstance(one, Value)), None)
    place = axes.index(axis)
    tensors = [_part(builder, one, axes, place, first) for one in found]
    return Value(builder.layer(node, layers.Concatenate, tensors, axis=place), axes)


def _part(builder: Builder, one: Operand, axes: tuple[int, ...], place: int, like: Any) -> Any:
    """An operand of a Concat; an array is repeated for every sample."""
    if isinstance(one, Value):
        return builder.arranged(one, axes)
    array = one.reshape((1,) * (len(axes) - one.ndim) + one.shape).transpose(axes)
    if array.shape[0] > 1 and like.shape[0] is None and (array == array[:1]).all():
        array = array[:1]
    array = array[0] if array.shape[0] == 1 else array
    # Zeros of the right batch and other axes, one entry along the axis that is joined.
    corner = tuple(slice(0, 1) if axis == place else slice(None) for axis in range(len(axes)))
    return ops.add(ops.zeros_like(like[corner]), array)


@builds("Split")
def split(builder: Builder, node: Node) -> list[Value]:
    value = builder.in_order(builder.value(node))
    axis = node.attributes.get("axis", 0) % value.rank
    sizes = [builder.shape(name)[axis] or 0 for name in node.outputs]
    if 0 in sizes:
        raise LayerError("parts of unknown size")
    parts = ops.split(value.tensor, np.cumsum(sizes)[:-1].tolist(), axis=value.at(axis))
    return [Value(part, value.axes) for part in parts]


@builds("Slice")
def cut(builder: Builder, node: Node) -> Value:
    value = builder.in_order(builder.value(node))
    starts, ends = builder.ints(node, 1, "starts"), builder.ints(node, 2, "ends")
    axes = builder.ints(node, 3, "axes", list(range(len(starts))))
    steps = builder.ints(node, 4, "steps", [1] * len(starts))
    slices, tensor = [slice(None)] * value.rank, value.tensor
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first = None if abs(start) >= _END or (start == 0 and step > 0) else start
        part, place = slice(first, None if abs(end) >= _END - 1 else end, step), value.at(axis)
        if step > 0:
            slices[place] = part
            continue
        size = builder.shape(node.inputs[0])[axis]
        if size is None:
            raise LayerError("an axis of unknown size is read backwards; export with fixed sizes")
        # PyTorch takes no negative steps.
        tensor = ops.take(tensor, np.arange(size)[part], axis=place)
    return Value(tensor[tuple(slices)] if any(part != slice(None) for part in slices) else tensor, value.axes)


@builds("Gather")
def gather(builder: Builder, node: Node) -> Value:
    data, indices = builder.operand(node, 0), builder.operand(node, 1)
    axis = node.attributes.get("axis", 0)
    if isinstance(data, np.ndarray):
        return _looked_up(builder, node, data, indices, axis)
    value = builder.in_order(data)
    place, axis = value.at(axis), axis % value.rank
    if isinstance(indices, Value):
        made = ops.take(builder.plain(value), builder.plain(indices), axis=axis)
        return Value(made, tuple(range(len(builder.shape(node.outputs[0])))))
    if indices.ndim == 0:
        corner = tuple(int(indices) if each == place else slice(None) for each in range(value.rank))
        return Value(value.tensor[corner], without_axes(value.axes, (axis,)))
    if indices.ndim > 1:
        made = ops.take(builder.plain(value), indices, axis=axis)
        return Value(made, tuple(range(value.rank + indices.ndim - 1)))
    size = builder.shape(node.inputs[0])[axis]
    if size is not None:
        indices = indices % size
    return Value(ops.take(value.tensor, indices, axis=place), value.axes)


def _looked_up(builder: Builder, node: Node, table: np.ndarray, indices: Operand, axis: int) -> Value:
    """Rows of a table: an embedding."""
    assert isinstance(indices, Value)
    if axis % table.ndim or table.ndim != 2:
        raise LayerError(f"a table of shape {table.shape}, of which no Embedding is made")
    value = builder.in_order(indices)
    rows, width = table.shape
    made = builder.layer(
        node, layers.Embedding, value.tensor, [table], tuple(node.inputs[:1]), input_dim=rows, output_dim=width
    )
    return Value(made, (*value.axes, value.rank))


@builds("Expand")
def expand(builder: Builder, node: Node) -> Operand:
    one = builder.operand(node, 0)
    shape = builder.shape(node.outputs[0])
    if isinstance(one, np.ndarray):  # as long as it only grows along the batch, whoever reads it does that
        one = one.reshape((1,) * (len(shape) - one.ndim) + one.shape)
        if None in shape[1:]:
            raise LayerError("axes of unknown size; export with fixed sizes")
        return np.broadcast_to(one, (one.shape[0], *shape[1:]))  # type: ignore[arg-type]
    tensor = builder._aligned(one, tuple(range(len(shape))))
    wanted = [(known or 0) if size == 1 else 1 for size, known in zip(tensor.shape, shape, strict=True)]
    if 0 in wanted:
        raise LayerError("axes of unknown size; export with fixed sizes")
    return Value(_repeated(tensor, wanted), tuple(range(len(shape))))


@builds("Tile")
def tile(builder: Builder, node: Node) -> Value:
    value = builder.in_order(builder.value(node))
    repeats = builder.array(node, 1).tolist()
    return Value(_repeated(value.tensor, [repeats[axis] for axis in value.axes]), value.axes)


def _repeated(tensor: Any, times: Sequence[int]) -> Any:
    return tensor if all(one == 1 for one in times) else ops.tile(tensor, times)


@builds("Pad")
def pad(builder: Builder, node: Node) -> Value:
    value = builder.in_order(builder.value(node))
    given = builder.ints(node, 1, "pads")
    axes = [axis % value.rank for axis in builder.ints(node, 3, "axes", list(range(value.rank)))]
    pads = [(0, 0)] * value.rank
    for number, axis in enumerate(axes):
        pads[axis] = given[number], given[number + len(axes)]
    if min(map(min, pads)) < 0:
        raise LayerError(f"negative pads {given}")
    mode = node.attributes.get("mode", b"constant").decode()
    filled = float(builder.array(node, 2, node.attributes.get("value", 0.0)))
    if mode == "constant" and not filled and 3 <= value.rank <= 5 and not any(pads[0] + pads[1]):
        made = surrounded(builder, node, builder.channels_last(value), pads[2:])
        return Value(made, channels_last(value.rank))
    places = [list(pads[axis]) for axis in value.axes]
    if mode == "constant":
        return Value(ops.pad(value.tensor, places, constant_values=filled), value.axes)
    if mode not in ("reflect", "edge"):
        raise LayerError(f"pads of mode {mode!r}")
    made = _edges(value.tensor, places) if mode == "edge" else ops.pad(value.tensor, places, mode="reflect")
    return Value(made, value.axes)


def _edges(tensor: Any, pads: Sequence[Sequence[int]]) -> Any:
    """What is at the border again and again."""
    for axis, (before, after) in enumerate(pads):
        size = tensor.shape[axis]
        if not before and not after:
            continue
        if size is None:
            raise LayerError("an axis of unknown size; export with fixed sizes")
        tensor = ops.take(tensor, np.clip(np.arange(-before, size + after), 0, size - 1), axis=axis)
    return tensor


@builds("DepthToSpace", "SpaceToDepth")
def blocks_of_pixels(builder: Builder, node: Node) -> Value:
    value = builder.value(node)
    tensor = builder.channels_last(value)
    block = node.attributes["blocksize"]
    before, after = builder.shape(node.inputs[0])[1:], builder.shape(node.outputs[0])
    if None in before:
        raise LayerError("axes of unknown size; export with fixed sizes")
    channels, height, width = (size or 0 for size in before)
    if node.op == "SpaceToDepth":
        tensor = ops.reshape(tensor, (-1, height // block, block, width // block, block, channels))
        tensor = ops.transpose(tensor, (0, 1, 3, 2, 4, 5))
    elif node.attributes.get("mode", b"DCR") == b"DCR":
        tensor = ops.reshape(tensor, (-1, height, width, block, block, channels // block**2))
        tensor = ops.transpose(tensor, (0, 1, 3, 2, 4, 5))
    else:
        tensor = ops.reshape(tensor, (-1, height, width, channels // block**2, block, block))
        tensor = ops.transpose(tensor, (0, 1, 4, 2, 5, 3))
    return Value(ops.reshape(tensor, (-1, after[2], after[3], after[1])), channels_last(4))
