"""A tenth of one layer's filters, as CNN-Pruning-Engine's README removes them: step by step, and in one line.

The first convolution of VGG16 loses the 10 % of its filters with the smallest L1 norm, the BatchNormalization behind it
the same channels, and the next convolution the kernel slices that read them.

    python examples/one_layer.py
    python examples/one_layer.py --ratio=0.5
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags
from models.vgg import vgg16_bn

import tfprune
from tfprune.channels import pieces
from tfprune.criteria import L1

FLAGS = flags.FLAGS
flags.DEFINE_float("ratio", 0.1, "The fraction of the first convolution's filters that goes.", 0, 0.99)


def step_by_step(model, ratio=0.1, show=print):
    """Each piece by itself; what is left of it is shown before anything happens."""
    graph = tfprune.trace(model)

    kernel = keras.ops.convert_to_numpy(model.get_layer("conv1_1").kernel)
    norms = np.abs(kernel).sum(axis=(0, 1, 2))
    weakest = np.sort(np.argsort(norms, kind="stable")[: int(ratio * len(norms))]).tolist()
    show(f"L1 norms of conv1_1's {len(norms)} filters: {norms.min():.3f} to {norms.max():.3f}; these go: {weakest}")

    filters = pieces.outputs(graph, "conv1_1", weakest)
    normalization = pieces.carried(graph, "conv1_1_BN", weakest)
    kernels = pieces.inputs(graph, "conv1_2", weakest)
    for piece in (filters, normalization, kernels):
        show(piece)
        shapes = {name: array.shape for name, array in piece.arrays().items()}
        show("  left: " + ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items()))

    plan = pieces.assemble([filters, normalization, kernels])
    return tfprune.strip(model, plan)


def in_one_line(model, ratio=0.1):
    """The same: the L1 norm of the filters alone, in the first convolution alone, not rounded to a multiple of 4."""
    return tfprune.strip(model, tfprune.select(model, L1(roles=("write",)), ratio=ratio, only="conv1_1", round_to=1))


def main(_):
    """Do both, and compare."""
    keras.utils.set_random_seed(0)
    model = vgg16_bn()
    by_hand = step_by_step(model, FLAGS.ratio)
    print(by_hand)
    at_once = in_one_line(model, FLAGS.ratio)
    print("in one line:", tfprune.verify(by_hand.model, at_once.model, tolerance=0))


if __name__ == "__main__":
    app.run(main)
