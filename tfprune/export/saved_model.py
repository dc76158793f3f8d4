"""TensorFlow's SavedModel: a directory that serves without Keras and without tfprune."""

from __future__ import annotations

from pathlib import Path

import keras

from tfprune.export.registry import Exporter, Options, Runner, register

SIGNATURE = "serving_default"


def write(model: keras.Model, path: Path, options: Options) -> None:
    """Write the model with one signature, `serving_default`, whose arguments and results carry the user's names."""
    import tensorflow as tf

    def serve(*tensors):
        outputs = model(keras.tree.pack_sequence_as(model._inputs_struct, list(tensors)), training=False)
        # A signature may not return one tensor under two names, or an argument: identity makes them different.
        return {name: tf.identity(y) for name, y in zip(options.outputs, keras.tree.flatten(outputs), strict=True)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [tf.TensorSpec(x.shape, x.dtype, name) for x, name in zip(model.inputs, options.inputs, strict=True)]
    archive.add_endpoint(SIGNATURE, serve, input_signature=signature)
    archive.write_out(str(path), verbose=False)


def load(path: Path, options: Options) -> Runner:
    """Load with `tf.saved_model.load` and call the signature by the names of its inputs and outputs."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))

    def run(arrays):
        # `loaded` stays referenced here: a signature alone does not keep its variables alive.
        results = loaded.signatures[SIGNATURE](
            **{name: tf.constant(array) for name, array in zip(options.inputs, arrays, strict=True)}
        )
        outputs = [results[name] for name in options.outputs]
        return [(tf.cast(y, "float32") if y.dtype == tf.bfloat16 else y).numpy() for y in outputs]

    return run


register(Exporter("saved_model", "_saved_model", write, load, requires={"tensorflow": "tensorflow"}))
