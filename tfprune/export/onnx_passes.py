"""Passes over an ONNX model: weights in, what is constant folded, and what a runtime would get wrong avoided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import numpy as np

from tfprune.errors import ExportError

Constants = dict[str, np.ndarray]


def take_constants(model: Any) -> Constants:
    """The initializers and Constant nodes as arrays by name, taken out of the model."""
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    del graph.initializer[:]
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            constants[node.output[0]] = numpy_helper.to_array(value)
    _replace_nodes(graph, kept)
    return constants


def fold_constants(model: Any, constants: Constants) -> dict[str, str]:
    """Compute the nodes that only move a constant (a kernel to its ONNX layout) and drop them.

    An array is dropped with its last reader, so that a weight is held once. Returns which constant each folded one
    was made from.
    """
    origins: dict[str, str] = {}
    graph = model.graph
    uses = _uses(graph)
    outputs = {output.name for output in graph.output}
    kept = []
    for node in graph.node:
        fold = _FOLDABLE.get(node.op_type)
        if fold is None or node.output[0] in outputs or any(name not in constants for name in node.input if name):
            kept.append(node)
            continue
        constants[node.output[0]] = fold(node, [constants[name] for name in node.input if name])
        origins[node.output[0]] = origins.get(node.input[0], node.input[0])
        for name in node.input:
            uses[name] -= 1
            if not uses[name]:
                constants.pop(name, None)
    _replace_nodes(graph, kept)
    return origins


def rename_constants(model: Any, constants: Constants, names: Mapping[str, str]) -> None:
    """Give constants other names; one that is taken gets _1, _2, ... appended."""
    final = {}
    taken = {name for graph in _graphs(model.graph) for node in graph.node for name in (*node.input, *node.output)}
    for old, new in names.items():
        if old in constants:
            final[old] = _fresh(new, taken)
            taken.add(final[old])
            constants[final[old]] = constants.pop(old)
    for graph in _graphs(model.graph):
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name in final:
                    node.input[index] = final[name]


def _perm(node: Any) -> list[int] | None:
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), None)


def _reshape(node: Any, values: list[np.ndarray]) -> np.ndarray:
    shape = [values[0].shape[axis] if size == 0 else int(size) for axis, size in enumerate(values[1])]
    return values[0].reshape(shape)


def _cast(node: Any, values: list[np.ndarray]) -> np.ndarray:
    from onnx import helper

    return values[0].astype(helper.tensor_dtype_to_np_dtype(next(a.i for a in node.attribute if a.name == "to")))


def _axes(values: list[np.ndarray]) -> tuple[int, ...] | None:
    return tuple(int(axis) for axis in values[1]) if len(values) > 1 else None


_FOLDABLE: Mapping[str, Callable[[Any, list[np.ndarray]], np.ndarray]] = {
    "Identity": lambda node, values: values[0],
    "Transpose": lambda node, values: values[0].transpose(_perm(node)),
    "Reshape": _reshape,
    "Squeeze": lambda node, values: np.squeeze(values[0], _axes(values)),
    "Unsqueeze": lambda node, values: np.expand_dims(values[0], _axes(values) or ()),
    "Cast": _cast,
}


def simplify(model: Any, constants: Constants) -> None:
    """What every file that tf2onnx has written gets: affine operations folded, and what runtimes get wrong avoided."""
    fold_affine(model, constants)
    fold_affine_behind(model, constants)
    fuse_hard_sigmoid(model, constants)
    drop_idle_reshapes(model, constants)
    keep_zero_padding(model)


def fold_affine(model: Any, constants: Constants) -> None:
    """Fold Mul and Add by a constant a channel (BatchNormalization) into the convolution before them, in float64.

    Cases: the convolution's result has one reader and is no output of the model; the constant varies along the
    channel axis or not at all. A kernel that several convolutions share is copied for this one.
    """
    graph = model.graph
    uses = _uses(graph)
    nodes = list(graph.node)
    readers = {name: index for index, node in enumerate(nodes) for name in node.input}
    gone: set[int] = set()
    for conv in nodes:
        if conv.op_type != "Conv" or conv.input[1] not in constants:
            continue
        while True:
            index = readers.get(conv.output[0])
            if index is None or uses[conv.output[0]] != 1 or nodes[index].op_type not in ("Mul", "Add"):
                break
            node = nodes[index]
            other = node.input[1] if node.input[0] == conv.output[0] else node.input[0]
            kernel = constants[conv.input[1]]
            factor = _by_channel(constants.get(other), kernel)
            if factor is None or (len(conv.input) > 2 and conv.input[2] and conv.input[2] not in constants):
                break
            _fold_into(conv, node.op_type, factor, constants, uses)
            uses[other] -= 1
            conv.output[0] = node.output[0]
            gone.add(index)
    _replace_nodes(graph, [node for index, node in enumerate(nodes) if index not in gone])


def fold_affine_behind(model: Any, constants: Constants) -> None:
    """Fold Mul and Add by a constant a channel (a normalisation's gamma and beta) into the convolution behind them.

    Cases: that convolution is the only reader, has no padding (a border of zeros would be no longer 0) and one group,
    and nobody else reads its kernel.
    """
    graph = model.graph
    uses = _uses(graph)
    nodes = list(graph.node)
    makers = {node.output[0]: index for index, node in enumerate(nodes) if node.output}
    gone: set[int] = set()
    for conv in nodes:
        if conv.op_type != "Conv" or not _plain(conv) or conv.input[1] not in constants or uses[conv.input[1]] != 1:
            continue
        if len(conv.input) > 2 and conv.input[2] and conv.input[2] not in constants:
            continue
        while (index := makers.get(conv.input[0])) is not None and uses[conv.input[0]] == 1:
            node, kernel = nodes[index], constants[conv.input[1]]
            known = [name for name in node.input if name in constants]
            if node.op_type not in ("Mul", "Add") or len(known) != 1:
                break
            by_channel = _by_channel(constants[known[0]], kernel.swapaxes(0, 1))
            if by_channel is None:
                break
            if node.op_type == "Mul":
                scaled = kernel * by_channel.reshape(1, -1, *[1] * (kernel.ndim - 2))
                constants[conv.input[1]] = scaled.astype(kernel.dtype)
            else:
                summed = kernel.astype(np.float64).sum(axis=tuple(range(2, kernel.ndim)))
                _add_bias(conv, summed @ by_channel, constants, uses)
            uses[known[0]] -= 1
            conv.input[0] = next(name for name in node.input if name != known[0])
            gone.add(index)
    _replace_nodes(graph, [node for index, node in enumerate(nodes) if index not in gone])


def _plain(conv: Any) -> bool:
    """No padding and one group."""
    attributes = {a.name: a for a in conv.attribute}
    padded = "pads" in attributes and any(attributes["pads"].ints)
    automatic = "auto_pad" in attributes and attributes["auto_pad"].s not in (b"NOTSET", b"VALID")
    return not padded and not automatic and ("group" not in attributes or attributes["group"].i == 1)


def _add_bias(conv: Any, more: np.ndarray, constants: Constants, uses: Counter[str]) -> None:
    if len(conv.input) > 2 and conv.input[2]:
        more = constants[conv.input[2]].astype(np.float64) + more
    _set_bias(conv, more, constants, uses)


def _set_bias(conv: Any, bias: np.ndarray, constants: Constants, uses: Counter[str]) -> None:
    if len(conv.input) > 2 and conv.input[2]:
        uses[conv.input[2]] -= 1
    name = _fresh(f"{conv.input[1]}_bias", constants)
    constants[name] = bias.astype(constants[conv.input[1]].dtype)
    uses[name] += 1
    del conv.input[2:]
    conv.input.append(name)


def _by_channel(value: np.ndarray | None, kernel: np.ndarray) -> np.ndarray | None:
    """A constant as a float64 vector over the convolution's output channels, or None if it is anything else."""
    if value is None or value.dtype.kind != "f" or value.ndim > kernel.ndim:
        return None
    shape = (1,) * (kernel.ndim - value.ndim) + value.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, kernel.shape[0]):
        return None
    return np.broadcast_to(value.astype(np.float64).reshape(-1), (kernel.shape[0],))


def _fold_into(conv: Any, op: str, by_channel: np.ndarray, constants: Constants, uses: Counter[str]) -> None:
    kernel = constants[conv.input[1]]
    biased = len(conv.input) > 2 and bool(conv.input[2])
    bias = constants[conv.input[2]].astype(np.float64) if biased else np.zeros(kernel.shape[0])
    if op == "Mul":
        bias = bias * by_channel
        scaled = kernel * by_channel.reshape(-1, *[1] * (kernel.ndim - 1))
        name = conv.input[1] if uses[conv.input[1]] == 1 else _fresh(conv.input[1], constants)
        uses[conv.input[1]] -= 1
        constants[name] = scaled.astype(kernel.dtype)
        uses[name] += 1
        conv.input[1] = name
    else:
        bias = bias + by_channel
    if biased or op != "Mul":
        _set_bias(conv, bias, constants, uses)


def _fresh(name: str, taken: Container[str]) -> str:
    number = 0
    while (free := name if not number else f"{name}_{number}") in taken:
        number += 1
    return free


def fuse_hard_sigmoid(model: Any, constants: Constants) -> None:
    """Write Clip(x + 3, 0, 6) / 6, and Clip(x, 0, 6) / 6, as one HardSigmoid.

    Cases: the Clip and the sum are read by nobody else, and all numbers are scalars. Three passes over a feature map
    become one, which a runtime also takes into the convolution before it.
    """
    from onnx import helper

    graph = model.graph
    uses = _uses(graph)
    nodes = list(graph.node)
    makers = {node.output[0]: index for index, node in enumerate(nodes) if node.output}
    gone: set[int] = set()
    for place, node in enumerate(nodes):
        found = _number_and_rest(node, constants) if node.op_type in ("Mul", "Div") else None
        if found is None or uses[found[1]] != 1 or found[1] not in makers:
            continue
        factor = found[0] if node.op_type == "Mul" else (1 / found[0] if node.input[1] in constants else 0.0)
        clip = nodes[makers[found[1]]]
        bounds = [constants.get(name) for name in clip.input[1:]]
        if clip.op_type != "Clip" or len(bounds) != 2 or any(bound is None or bound.size != 1 for bound in bounds):
            continue
        low, high = (float(bound.item()) for bound in bounds if bound is not None)
        if low != 0 or high <= 0 or not np.isclose(factor * high, 1, rtol=1e-6):
            continue
        gone.add(makers[found[1]])
        source, shift = clip.input[0], 0.0
        before = nodes[makers[source]] if source in makers else None
        summed = _number_and_rest(before, constants) if before is not None and before.op_type == "Add" else None
        if summed is not None and uses[source] == 1:
            gone.add(makers[source])
            shift, source = summed
        fused = helper.make_node(
            "HardSigmoid", [source], [node.output[0]], node.name, alpha=factor, beta=shift * factor
        )
        nodes[place] = fused
    if gone:
        kept = [type(n).FromString(n.SerializeToString()) for index, n in enumerate(nodes) if index not in gone]
        del graph.node[:]
        graph.node.extend(kept)


def _number_and_rest(node: Any, constants: Constants) -> tuple[float, str] | None:
    """The scalar that one of two operands is, and the other operand's name."""
    for constant, other in ((node.input[0], node.input[1]), (node.input[1], node.input[0])):
        value = constants.get(constant)
        if value is not None and value.size == 1 and value.dtype.kind == "f" and other not in constants:
            return float(value.item()), other
    return None


def drop_idle_reshapes(model: Any, constants: Constants) -> None:
    """Drop each Reshape to the shape that is there already.

    tf2onnx writes a Transpose of (N, 1, 1, C) as one, and does not see that nothing is left of it once it has moved
    everything else. Squeeze-and-excitation has two a block, and onnxruntime leaves its blocked layout for each.
    """
    graph = model.graph
    outputs = {output.name for output in graph.output}
    shapes = _shapes(model, constants)
    same: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "Reshape" and node.output[0] not in outputs and node.input[1] in constants:
            before = shapes.get(node.input[0])
            if before is not None and _stays(before, constants[node.input[1]].tolist()):
                same[node.output[0]] = same.get(node.input[0], node.input[0])
                continue
        kept.append(node)
    if not same:
        return
    for inner in _graphs(graph):
        for node in inner.node:
            for place, name in enumerate(node.input):
                node.input[place] = same.get(name, name)
    _replace_nodes(graph, kept)


def _stays(shape: list[int | None], target: list[int]) -> bool:
    """Whether a Reshape to `target` leaves a tensor of this shape as it is; one axis may be unknown, and -1."""
    left = [(size, new) for size, new in zip(shape, target, strict=False) if new != size]
    return len(shape) == len(target) and (not left or (len(left) == 1 and left[0] == (None, -1)))


def _shapes(model: Any, constants: Constants) -> dict[str, list[int | None]]:
    """Every tensor's shape as ONNX infers it, None for axes of unknown size."""
    import onnx
    from onnx import helper, numpy_helper

    light = onnx.ModelProto()
    light.CopyFrom(model)
    del light.graph.value_info[:]  # tf2onnx's guesses are of the graph before its passes
    for name, value in constants.items():
        if value.dtype == np.int64 and value.size < 16:
            light.graph.initializer.append(numpy_helper.from_array(value, name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            light.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
    graph = onnx.shape_inference.infer_shapes(light).graph
    infos = {info.name: info.type.tensor_type for info in (*graph.value_info, *graph.input, *graph.output)}
    return {
        name: [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]
        for name, kind in infos.items()
        if kind.HasField("shape")
    }


def keep_zero_padding(model: Any) -> None:
    """Say auto_pad=VALID (no padding) on a MaxPool that reads a Pad.

    onnxruntime moves a Pad of zeros into the MaxPool behind it (its Pad_Fusion, microsoft/onnxruntime#18136), but a
    MaxPool pads with minus infinity: wherever all of a border window is negative, 0 becomes that negative number.
    ResNetV2, whose first convolution has no activation, is off by 1e-3. It leaves a MaxPool that has an auto_pad
    alone. The same mistake elsewhere: onnxsim/onnxsim#290, onnx/optimizer#318.
    """
    from onnx import helper

    padded = {node.output[0] for node in model.graph.node if node.op_type == "Pad"}
    for node in model.graph.node:
        attributes = {a.name: a for a in node.attribute}
        if node.op_type != "MaxPool" or node.input[0] not in padded:
            continue
        if any(attributes["pads"].ints) if "pads" in attributes else False:
            continue
        kept = [a for a in node.attribute if a.name not in ("pads", "auto_pad")]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("auto_pad", "VALID")])


def put_constants(model: Any, constants: Constants) -> None:
    """Write the arrays that are read into the model, emptying `constants` on the way."""
    from onnx import helper

    read = read_names(model)
    for name in list(constants):
        value = constants.pop(name)
        if name in read:
            tensor = model.graph.initializer.add()
            tensor.name, tensor.data_type = name, helper.np_dtype_to_tensor_dtype(value.dtype)
            tensor.dims.extend(value.shape)
            tensor.raw_data = value.tobytes()


def read_names(model: Any) -> set[str]:
    """The tensors that a node at any depth reads, or that are outputs of the model."""
    return set(_uses(model.graph))


def finish(
    model: Any, inputs: list[tuple[str, Any]], outputs: list[tuple[str, Any]], metadata: Mapping[str, str]
) -> None:
    """Declare the inputs and outputs in Keras' order with their shapes, the batch axis as `batch`, and say by whom.

    Args:
        model: an ONNX model whose weights are in.
        inputs: (name, shape) pairs; the first axis of unknown size is the batch.
        outputs: the same.
        metadata: key to value.
    """
    from onnx import helper

    graph = model.graph
    for declared, wanted in ((graph.input, inputs), (graph.output, outputs)):
        infos = {value.name: value for value in declared}
        extra = [value for name, value in infos.items() if name not in dict(wanted)]
        del declared[:]
        declared.extend(_declaration(name, shape, infos[name]) for name, shape in wanted if name in infos)
        declared.extend(extra)
    # Shapes in between are tf2onnx's guesses, with axes called unk__12; a runtime infers them.
    del graph.value_info[:]
    model.producer_name, model.producer_version = "tfprune", metadata.get("tfprune", "")
    kept = [opset for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    helper.set_model_props(model, dict(metadata))


def _declaration(name: str, shape: Any, info: Any) -> Any:
    from onnx import helper

    if shape is None:
        return helper.make_tensor_value_info(name, info.type.tensor_type.elem_type, None)
    axes = [("batch" if axis == 0 else f"{name}_{axis}") if size is None else size for axis, size in enumerate(shape)]
    return helper.make_tensor_value_info(name, info.type.tensor_type.elem_type, axes)


def halved(model: Any) -> Any:
    """Weights and computation in float16; inputs and outputs stay as they are, with a Cast behind and before them."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)


def check(
    model: Any, opset: int, inputs: tuple[str, ...], outputs: tuple[str, ...], advice: str = "export it as saved_model"
) -> None:
    """Refuse what `onnx.checker` lets pass: unknown operators, other domains, inputs that the Keras model lacks.

    Args:
        advice: what to do about unknown operators.

    Raises:
        ExportError: the file would not run, or not with the model's inputs.
    """
    from onnx import defs

    foreign = Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for graph in _graphs(model.graph)
        for node in graph.node
        if node.domain not in ("", "ai.onnx") or not defs.has(node.op_type, max_inclusive_version=opset)
    )
    if foreign:
        listed = ", ".join(f"{name} ({count} times)" for name, count in sorted(foreign.items()))
        raise ExportError(f"the model needs operators that ONNX {opset} lacks: {listed}; {advice}")
    found = tuple(value.name for value in model.graph.input), tuple(value.name for value in model.graph.output)
    if found != (inputs, outputs):
        raise ExportError(
            f"the ONNX graph has inputs {found[0]} and outputs {found[1]}, but the model {inputs} and {outputs}"
        )


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph and those inside its nodes (the bodies of If, Loop and Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner)


def _uses(graph: Any) -> Counter[str]:
    """How often each tensor is read, by nodes at any depth or as an output of the model."""
    uses = Counter(name for inner in _graphs(graph) for node in inner.node for name in node.input)
    uses.update(output.name for inner in _graphs(graph) for output in inner.output)
    return uses


def _replace_nodes(graph: Any, nodes: list[Any]) -> None:
    if len(nodes) != len(graph.node):
        kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
