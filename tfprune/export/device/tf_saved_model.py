"""`tf.saved_model.load`, as a server does it."""

#: Files of one host are run by one process.
HOST = "tensorflow"

SIGNATURE = "serving_default"


def runtime():
    """The package."""
    import tensorflow

    return tensorflow


def load(path, inputs, outputs, threads=None):
    """Load a SavedModel and call its `serving_default` signature.

    Args:
        path: the directory.
        inputs: names of the signature's arguments, in the order of the arrays to come.
        outputs: names of the results wanted.
        threads: how many threads one operator may use, settled with the first file of a process.
    """
    tf = runtime()

    limit_threads(threads)
    loaded = tf.saved_model.load(path)
    signature = loaded.signatures[SIGNATURE]

    def run(arrays, loaded=loaded):  # a signature alone does not keep its variables alive
        results = signature(**{name: tf.constant(array) for name, array in zip(inputs, arrays, strict=True)})
        wanted = [results[name] for name in outputs]
        return [(tf.cast(y, "float32") if y.dtype == tf.bfloat16 else y).numpy() for y in wanted]

    return run


def limit_threads(threads):
    """Have TensorFlow compute with so many threads; it takes no other number once it has computed anything."""
    import tensorflow as tf

    if threads is not None and tf.config.threading.get_intra_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
