"""A sweep on one copy that is zeroed and put right again, beside a fresh copy of the model for every point.

python benchmarks/sensitivity.py
python benchmarks/sensitivity.py --groups 4 --images 2000
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import keras
import numpy as np

import tfprune
from examples.models.vgg import vgg16_bn

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


def seconds(function):
    """How long it takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=4, help="how many of VGG16's 13 convolutions are swept")
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    model = vgg16_bn(width=0.25)
    settings = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "jit_compile": False}
    model.compile(**settings)
    x, y = np.random.default_rng(0).random((options.images, 32, 32, 3)), np.arange(options.images) % 10
    graph = tfprune.trace(model)
    groups = [group.name for group in graph.groups if group.prunable][: options.groups]
    points = len(groups) * len(RATIOS)

    def fresh_copies():
        for group in groups:
            for ratio in RATIOS:
                copy = keras.models.clone_model(model)
                copy.set_weights(model.get_weights())
                copy.compile(**settings)
                tfprune.soft_prune(copy, tfprune.select(model, "l1", ratio=ratio, only=group, round_to=1))
                copy.evaluate(x, y, verbose=0)

    def one_copy():
        tfprune.sensitivity(
            model, (x, y), "l1", ratios=RATIOS, only=groups, metric="loss", mode="layerwise", progress=False
        )

    model.evaluate(x, y, verbose=0)
    evaluating = points * min(seconds(lambda: model.evaluate(x, y, verbose=0)) for _ in range(3))
    swept, copied = seconds(one_copy), seconds(fresh_copies)
    print(f"{points} points of {len(groups)} groups, {options.images} images each")
    print(f"evaluating alone       {evaluating:6.1f} s")
    print(f"tfprune.sensitivity    {swept:6.1f} s   {swept / evaluating:.2f} times as long")
    print(f"a fresh copy a point   {copied:6.1f} s   {copied / evaluating:.2f} times as long")


if __name__ == "__main__":
    main()
