"""A frozen GraphDef in a TensorFlow 1 session."""

#: Files of one host are run by one process.
HOST = "tensorflow"


def runtime():
    """The package."""
    import tensorflow

    return tensorflow


def load(path, inputs, outputs, threads=None):
    """Import a .pb file into a graph of its own and open a session on it.

    Args:
        path: the file.
        inputs: names of the Placeholders (or of tensors, as x:0), in the order of the arrays to come.
        outputs: names of the nodes (or tensors) wanted.
        threads: how many threads one operator may use; None leaves it to TensorFlow.
    """
    tf = runtime()

    graph_def = tf.compat.v1.GraphDef()
    with open(path, "rb") as file:
        graph_def.ParseFromString(file.read())
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    del graph_def
    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads or 0)
    # TensorFlow's convolutions on a CPU want the channels last.
    rewriting = config.graph_options.rewrite_options
    rewriting.cpu_layout_conversion = rewriting.NCHW_TO_NHWC
    session = tf.compat.v1.Session(graph=graph, config=config)
    given, wanted = [_tensor(name) for name in inputs], [_tensor(name) for name in outputs]

    def run(arrays):
        return [_numpy(y) for y in session.run(wanted, dict(zip(given, arrays, strict=True)))]

    return run


def _tensor(name):
    """A node's first output, unless another is named."""
    return name if ":" in name else f"{name}:0"


def _numpy(array):
    """numpy reads bfloat16 only through an extension type: compare it as float32."""
    return array.astype("float32") if array.dtype.name == "bfloat16" else array
