"""What scoring costs: criteria that read weights, in seconds; those that need data, beside the passes that they need.

    python benchmarks/criteria.py
    python benchmarks/criteria.py --model=MobileNetV2 --size=96 --batches=8

Seconds are medians of wall-clock time on whatever else the machine is doing; *CPU* is the processor time of all cores.
The passes are those that Keras and the backend do for the same batches, compiled alike, in turns with ours: forward
alone for `activation` and `apoz`; and backward as far as the images for `taylor` and `kmeans_taylor`; and backward to
all weights for the others. *Measured* is our pass, *scores* what comes after it.
"""

from __future__ import annotations

import argparse
import statistics
import time

from common import application, lively, progress, timed  # isort: skip  (sets the path and the log level)

import keras
import numpy as np
from keras import ops

import tfprune
from tfprune import criteria
from tfprune.criteria import Gradient, Sample
from tfprune.criteria.gradients import differentiated
from tfprune.tables import table

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ResNet50")
    parser.add_argument("--size", type=int, default=128, help="of the images, for criteria that need data")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=("weights", "data"))
    options = parser.parse_args()
    model = application(options.model, options.size)
    lively(model)
    if options.only != "data":
        print(weights(model, options.repeat))
    if options.only != "weights":
        print(data(model, options))


def names(need_data: bool) -> list[str]:
    return [
        n for n in criteria.criterion_names() if bool(getattr(criteria.criterion_named(n), "needs", ())) == need_data
    ]


def weights(model: keras.Model, repeat: int) -> str:
    """Every group scored once, and the plan at ratio 0.5."""
    graph = tfprune.trace(model)
    count = sum(group.prunable for group in graph.groups)
    rows = []
    for name in names(need_data=False):
        tfprune.select(graph, name, ratio=0.5)  # imports scikit-learn, and reads every weight once
        both, scoring, busy = [], [], []
        for _ in range(repeat):
            begun = time.process_time()
            scoring.append(timed(lambda name=name: criteria.score(graph, name))[0])
            busy.append(time.process_time() - begun)
            both.append(timed(lambda name=name: tfprune.select(graph, name, ratio=0.5))[0])
        rows.append((name, *(f"{statistics.median(times):.3f}" for times in (scoring, busy, both))))
        progress(" ".join(rows[-1]))
    return table(f"{model.name}: {count} groups", ("criterion", "scores s", "CPU s", "with the plan s"), rows)


def data(model: keras.Model, options: argparse.Namespace) -> str:
    """A pass over a sample beside the bare passes, in turns."""
    graph = tfprune.trace(model)
    samples = options.batches * options.batch_size
    generator = np.random.default_rng(0)
    x = generator.standard_normal((samples, options.size, options.size, 3), np.float32)
    sample = Sample((x, generator.integers(0, 1000, samples)), batch_size=options.batch_size)
    rows = []
    for name in [*names(need_data=True), "all"]:
        wanted = names(need_data=True) if name == "all" else [name]
        chosen = [criteria.criterion_named(one) for one in wanted]
        needs = {need for one in chosen for need in one.needs}
        bare, ours, after = [], [], []
        for _ in range(options.repeat):
            bare.append(timed(lambda needs=needs: passes(model, sample, needs))[0])
            seconds, evidence = timed(lambda chosen=chosen: criteria.gather(graph, chosen, sample, LOSS))
            ours.append(seconds)
            after.append(timed(lambda e=evidence, c=chosen: [criteria.score(graph, one, data=e) for one in c])[0])
        ratio = statistics.median(b / a for a, b in zip(bare, ours, strict=True))
        rows.append((name, *(f"{statistics.median(times):.2f}" for times in (bare, ours)), f"{ratio:.2f}"))
        rows[-1] += (f"{statistics.median(after):.2f}",)
        progress(" ".join(rows[-1]))
    title = f"{model.name}, {options.batches} batches of {options.batch_size} images of {options.size} pixels"
    return table(title, ("criterion", "passes s", "measured s", "ratio", "scores s"), rows)


def passes(model: keras.Model, sample: Sample, needs: set) -> None:
    """The forward and backward passes alone."""
    to_weights = any(isinstance(need, Gradient) for need in needs)
    backward = to_weights or any(need.gradient for need in needs)
    variables = model.trainable_variables if to_weights else []

    def function(parameters: list, state: list, batch: tuple) -> tuple:
        x, y = batch
        if backward and not to_weights:
            (x,) = parameters
        with keras.StatelessScope(state_mapping=list(zip(variables, parameters if to_weights else [], strict=True))):
            outputs = model(x, training=False)
        return (LOSS(y, outputs) if backward else ops.sum(outputs)), []

    step = differentiated(function, sample_is_long(sample))
    for batch in sample.batches():
        x, y = ops.convert_to_tensor(batch.x), ops.convert_to_tensor(batch.y)
        parameters = [variable.value for variable in variables] if to_weights else [x] if backward else []
        loss, _, gradients = step(parameters, [], (x, y))
        ops.convert_to_numpy(loss)
        for gradient in gradients[:1]:
            ops.convert_to_numpy(gradient)


def sample_is_long(sample: Sample) -> bool:
    """Whether a sample is worth compiling for; as `gather` decides."""
    from tfprune.criteria.evidence import COMPILE_FROM

    return sum(1 for _ in sample.batches()) >= COMPILE_FROM


if __name__ == "__main__":
    main()
