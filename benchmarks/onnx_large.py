"""A file of more than 2 GB, its weights beside it, traced and stripped: memory and time.

    python benchmarks/onnx_large.py --gigabytes=2.2

Convolutions and matrix products of random weights, half of whose channels are 0, are written array by array, so that
writing takes next to no memory; then a process of its own strips the file, once with and once without the comparison in
onnxruntime. *Memory*: the most that it held, less what it held once its packages were imported, over the weights' size.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH = 6144
#: filters of the two 3x3 convolutions in front
FILTERS = 512


def write(path: Path, gigabytes: float) -> int:
    """Two convolutions, the mean over positions, and products of WIDTH x WIDTH until the size is reached; in bytes."""
    generator = np.random.default_rng(0)
    initializers, nodes = [], []
    with path.with_suffix(".data").open("wb") as file:

        def weight(name: str, array: np.ndarray) -> str:
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": path.stem + ".data", "offset": file.tell(), "length": array.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            array.tofile(file)
            initializers.append(tensor)
            return name

        def kernel(*shape: int, axis: int) -> np.ndarray:
            array = generator.standard_normal(shape, np.float32)
            array *= (2 / (array.size / shape[axis])) ** 0.5
            np.moveaxis(array, axis, 0)[::2] = 0
            return array

        def node(op: str, source: str, *weights: str, **attributes: object) -> str:
            out = f"{op}_{len(nodes)}"
            nodes.append(helper.make_node(op, [source, *weights], [out], name=out, **attributes))
            return out

        x, width = "x", 3
        for number in range(2):
            w = weight(f"conv_{number}", kernel(FILTERS, width, 3, 3, axis=0))
            x, width = node("Relu", node("Conv", x, w, pads=[1, 1, 1, 1])), FILTERS
        x, number = node("Flatten", node("GlobalAveragePool", x)), 0
        while file.tell() < gigabytes * 1e9:
            w = weight(f"dense_{number}", kernel(width, WIDTH, axis=1))
            x, width, number = node("Relu", node("Gemm", x, w)), WIDTH, number + 1
        x = node("Gemm", x, weight("last", generator.standard_normal((width, 10), np.float32)))
        size = file.tell()
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ("N", 3, 8, 8)), (x, ("N", 10)))
    ]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return size


def peak() -> float:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def strip(path: Path, size: int, verify: bool) -> None:
    import tfprune
    import tfprune.onnx_graph.rebuild
    import tfprune.onnx_graph.run
    from tfprune.onnx_graph.model import save

    before, start = peak(), time.perf_counter()
    result = tfprune.strip(str(path), verify=verify)
    seconds, most = time.perf_counter() - start, (peak() - before) / size
    save(result.model, path.parent / "small.onnx")
    counts = f"{result.cost_before.parameters / 1e6:.0f} → {result.cost_after.parameters / 1e6:.0f} M parameters"
    proof = f"{result.verification.relative:.0e}" if result.verification else "not compared"
    written = (peak() - before) / size
    laps = ", ".join(f"{name} {lap:.1f}" for name, lap in result.seconds.items())
    print(
        f"{counts}; {proof}; memory {most:.2f} times the weights, {written:.2f} with saving; {seconds:.0f} s ({laps})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.2)
    parser.add_argument("--path", help="strip this file, in this process")
    parser.add_argument("--size", type=int)
    parser.add_argument("--verify", type=int, default=1)
    given = parser.parse_args()
    if given.path:
        return strip(Path(given.path), given.size, bool(given.verify))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.onnx"
        size = write(path, given.gigabytes)
        print(f"{size / 1e9:.2f} GB of weights", flush=True)
        for verify in (0, 1):
            arguments = [f"--path={path}", f"--size={size}", f"--verify={verify}"]
            subprocess.run([sys.executable, "-W", "ignore", __file__, *arguments], check=True)
    return None


if __name__ == "__main__":
    main()
