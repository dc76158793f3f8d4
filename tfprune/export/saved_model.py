"""TensorFlow's SavedModel: a directory that serves without Keras and without tfprune."""

from __future__ import annotations

from pathlib import Path

import keras

from tfprune.export.device import tf_saved_model
from tfprune.export.device.tf_saved_model import SIGNATURE
from tfprune.export.registry import Exporter, Options, on, register


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


register(
    Exporter(
        "saved_model",
        "_saved_model",
        write,
        on(tf_saved_model),
        requires={"tensorflow": "tensorflow"},
        device=tf_saved_model,
        marker="saved_model.pb",
    )
)
