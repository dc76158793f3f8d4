"""`keras.models.load_model`, in a process that knows only Keras' own layers."""

#: Files of one host are run by one process.
HOST = "tensorflow"


def runtime():
    """The package."""
    import keras

    return keras


def load(path, inputs, outputs, threads=None):
    """Load a .keras file and call the model at inference.

    Args:
        path: the file; it was written by us, so its Lambda layers are trusted.
        inputs: names of the inputs; only their number is used.
        outputs: names of the outputs; only their number is used.
        threads: how many threads one operator may use, where Keras runs on TensorFlow.
    """
    keras = runtime()
    if threads is not None and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if tf.config.threading.get_intra_op_parallelism_threads() != threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
    model = keras.models.load_model(path, compile=False, safe_mode=False)

    def call(tensors):
        return model(keras.tree.pack_sequence_as(model._inputs_struct, tensors), training=False)

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        call = tf.function(call, autograph=False)

    def run(arrays):
        tensors = [keras.ops.convert_to_tensor(array, x.dtype) for array, x in zip(arrays, model.inputs, strict=True)]
        results = keras.tree.flatten(call(tensors))
        return [keras.ops.convert_to_numpy(_readable(y)) for y in results]

    def _readable(y):
        return keras.ops.cast(y, "float32") if keras.backend.standardize_dtype(y.dtype) == "bfloat16" else y

    return run
