"""TensorFlow's converter from a SavedModel to a .tflite file; a model it does not take can make it end the process."""

HOST = "tensorflow"


def convert(source, target, kind, data=None, names=(), size=1, integer_io=False):
    """Convert, and write the file.

    Args:
        source: a SavedModel's directory.
        target: the file.
        kind: float32, float16, dynamic or int8.
        data: for int8, an .npz of samples to calibrate with, an array an input.
        names: of the inputs, in the order of the arrays.
        size: the batch that the model takes.
        integer_io: whether an int8 file takes and gives integers.
    """
    import logging

    import tensorflow as tf

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    converter = tf.lite.TFLiteConverter.from_saved_model(source)
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        converter.representative_dataset = lambda: samples(data, names, size)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        if integer_io:
            converter.inference_input_type = converter.inference_output_type = tf.int8
    content = converter.convert()
    with open(target, "wb") as file:
        file.write(content)


def samples(data, names, size):
    """Batches of `size`, by the names of the inputs."""
    import numpy as np

    with np.load(data) as file:
        arrays = [file[f"arr_{index}"] for index in range(len(file.files))]
    for start in range(0, len(arrays[0]) - size + 1, size):
        yield {name: array[start : start + size] for name, array in zip(names, arrays, strict=True)}
