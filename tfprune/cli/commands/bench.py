"""Time models side by side in the runtimes of devices."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tfprune.cli import models
from tfprune.cli.command import Command, Flag, UsageError


def _check(options: SimpleNamespace) -> None:
    if not options.models and not options.advise:
        raise UsageError("--models=LIST must be given, or --advise")


def _run(options: SimpleNamespace) -> None:
    from tfprune.bench import bench
    from tfprune.bench.advice import advise

    directory = Path(options.output_dir) if options.output_dir else None
    if options.models:
        loaded = [_model(spec, options.input_shape) for spec in options.models]
        report = bench(loaded, options.runtime, options.threads, options.batch, options.turns, options.size)
        print(report)
        if directory:
            from tfprune.report.latency import speedups

            report.save(directory / "bench.json")
            speedups(report, directory / "bench.png")
        if options.layers:
            _layers(loaded, options)
    for runtime in options.runtime if options.advise else ():
        advice = advise(runtime, options.threads)
        print(advice)
        if directory:
            from tfprune.report.latency import curves

            curves(advice, directory / f"widths_{runtime}.png")
    if options.advise and options.models and "onnxruntime" in options.runtime:
        _kernels(loaded[0], options.threads, directory)


def _kernels(model: Any, threads: int, directory: Path | None) -> None:
    """The times of a model's own kernels, as `tfprune prune --latency_table` reads them."""
    from tfprune.latency import LatencyTable

    if isinstance(model, str):
        if not model.endswith((".keras", ".onnx")):
            return  # it does not say what its kernels are
        model = models.load(model)
    times = LatencyTable.measure(model, threads=threads, name=f"onnxruntime, {threads} threads")
    print(times)
    if directory:
        print(f"wrote {times.save(directory / 'latency.json')}")


def _model(spec: str, shape: Any) -> Any:
    """A file of a runtime, a SavedModel, or anything that --model takes elsewhere."""
    if spec.endswith((".onnx", ".tflite", ".keras")) or Path(spec).is_dir():
        return spec
    return models.load(spec, shape)


def _layers(loaded: list[Any], options: SimpleNamespace) -> None:
    import tempfile

    from tfprune.bench import RUNTIMES, _file
    from tfprune.bench.layers import layer_times
    from tfprune.export.registry import find

    with tempfile.TemporaryDirectory(prefix="tfprune-") as folder:
        found = []
        for place, model in enumerate(loaded):
            file = _file(
                model, RUNTIMES["onnxruntime"], find("onnx"), Path(folder, str(place)), options.batch, options.size
            )
            found.append(layer_times(file.path, options.threads, options.turns, options.batch, options.size))
    for one in found[1:]:
        print(found[0].compared(one))
    if len(found) == 1:
        print(found[0])


COMMAND = Command(
    name="bench",
    summary="time models side by side in onnxruntime, LiteRT and TensorFlow",
    description=(
        "The models are run in turns in a process without tfprune: medians with quartiles, speed-up against the first "
        "model and against how many times fewer multiply-adds there are, loading time, peak memory. --layers shows "
        "where fewer multiply-adds save no time; --advise measures kernels at each width and says what to round to; "
        "with models also the first one's own kernels, for `tfprune prune --latency`."
    ),
    example="tfprune bench --models=before.keras,after.keras --runtime=onnxruntime,litert --threads=2 --layers",
    flags=(
        Flag(
            "models",
            ".keras, .onnx or .tflite files, SavedModels, module:function or keras.applications. The first is what the "
            "others are compared with.",
            "LIST",
            kind="list",
        ),
        models.INPUT_SHAPE,
        Flag("runtime", "Any of onnxruntime, litert, tensorflow.", "LIST", "onnxruntime", "list"),
        Flag("threads", "Threads of one operator.", "N", 2, "integer", low=1),
        Flag("batch", "Samples a run.", "N", 1, "integer", low=1),
        Flag("turns", "Timed runs of each model.", "N", 50, "integer", low=1),
        Flag("size", "Entries of input axes of unknown size.", "N", 224, "integer", low=1),
        Flag("layers", "Also time node by node, in onnxruntime.", default=False, kind="boolean"),
        Flag(
            "advise",
            "Also measure what to round widths to, and the first model's kernels in onnxruntime.",
            default=False,
            kind="boolean",
        ),
        Flag(
            "output_dir",
            "Where bench.json, pictures and latency.json (for --latency_table) go. By default nothing is written.",
            "DIR",
        ),
    ),
    run=_run,
    check=_check,
)
