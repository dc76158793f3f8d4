"""Damaged ONNX files: each either traces and strips, or is refused with a TfpruneError; nothing else may come out.

    python benchmarks/onnx_fuzz.py --files=5000

Bytes of a valid file are changed, cut off, repeated and swapped; and fields of its nodes and tensors are exchanged, so
that the file still parses. Files are tried in worker processes, so that a crash of a library is seen as one.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def mutated(data: bytes, generator: np.random.Generator) -> bytes:
    """A file with something wrong in it."""
    kind = generator.integers(0, 7)
    if kind >= 4:
        return _of_fields(data, generator)
    raw = bytearray(data)
    where = int(generator.integers(0, len(raw)))
    if kind == 0:
        for place in generator.integers(0, len(raw), generator.integers(1, 12)):
            raw[int(place)] = int(generator.integers(0, 256))
    elif kind == 1:
        del raw[where:]
    elif kind == 2:
        raw[where:where] = raw[where : where + int(generator.integers(1, 60))]
    else:
        del raw[where : where + int(generator.integers(1, 60))]
    return bytes(raw)


def _of_fields(data: bytes, generator: np.random.Generator) -> bytes:
    import onnx

    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    node = graph.node[int(generator.integers(0, len(graph.node)))]
    names = [name for one in graph.node for name in (*one.input, *one.output)] + ["", "nothing"]
    name = str(generator.choice(names))
    tensor = graph.initializer[int(generator.integers(0, len(graph.initializer)))]
    kind = generator.integers(0, 9)
    if kind == 0 and node.input:
        node.input[int(generator.integers(0, len(node.input)))] = name
    elif kind == 1:
        node.op_type = str(generator.choice([one.op_type for one in graph.node] + ["Nonsense", "Loop", "QLinearConv"]))
    elif kind == 2 and node.attribute:
        attribute = node.attribute[int(generator.integers(0, len(node.attribute)))]
        attribute.i = int(generator.integers(-(2**62), 2**62))
        for place in range(len(attribute.ints)):
            attribute.ints[place] = int(generator.choice([-(2**40), -1, 0, 1, 3, 2**40]))
    elif kind == 3 and tensor.dims:
        tensor.dims[int(generator.integers(0, len(tensor.dims)))] = int(generator.choice([-1, 0, 1, 7, 2**40]))
    elif kind == 4:
        tensor.data_type = int(generator.integers(0, 24))
    elif kind == 5:
        graph.node.remove(node)
    elif kind == 6:
        node.output[0] = name
    elif kind == 7:
        model.opset_import[0].version = int(generator.choice([-1, 0, 1, 6, 9, 12, 13, 18, 22, 99]))
    else:
        dim = graph.input[0].type.tensor_type.shape.dim[int(generator.integers(0, 4))]
        dim.dim_value = int(generator.choice([-1, 0, 1, 2, 3, 8, 2**40]))
    return model.SerializeToString()


def sample() -> bytes:
    """A model with a little of everything."""
    from onnx_models import Net

    net = Net()
    x = net.add("Relu", net.norm(net.conv("x", 3, 8), 8))
    a, b = net.add("Split", x, net.ints(4, 4), outputs=2, axis=1)
    y = net.add("Concat", b, net.add("Sigmoid", a), axis=1)
    y = net.add("Add", net.conv(y, 8, 8, group=4), x)
    y = net.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = net.add("Reshape", y, net.ints(0, 8, -1))
    y = net.add("Transpose", y, perm=[0, 2, 1])
    y = net.add("LayerNormalization", net.dense(y, 8, 6), net.positive(6), net.weight(6))
    y = net.add("ReduceMean", y, axes=[1], keepdims=0)
    return net.model({"x": ("N", 3, 8, 8)}, [net.add("Gemm", y, net.weight(6, 5), net.weight(5))]).SerializeToString()


def one(number: int) -> str:
    """What comes of one damaged file."""
    import tfprune
    from tfprune.errors import TfpruneError

    path = Path(f"/tmp/onnx_fuzz_{multiprocessing.current_process().pid}.onnx")
    path.write_bytes(mutated(sample(), np.random.default_rng(number)))
    try:
        tfprune.strip(str(path))
        return "stripped"
    except TfpruneError as error:
        return type(error).__name__
    except Exception as error:
        return f"FAILED {number}: {type(error).__name__}: {str(error)[:200]}"
    finally:
        path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=1000) as pool:
        numbers = range(options.first, options.first + options.files)
        for result in pool.imap(one, numbers, chunksize=50):
            counts[result.partition(" ")[0]] += 1
            if result.startswith("FAILED"):
                print(result, flush=True)
    print(dict(counts))
    return int(counts["FAILED"] > 0)


if __name__ == "__main__":
    sys.exit(main())
