"""onnxruntime on the CPU, with its usual optimisations, as a user would load the file."""


def runtime():
    """The package."""
    import onnxruntime

    return onnxruntime


def load(path, inputs, outputs, threads=None):
    """Load an .onnx file.

    Args:
        path: the file.
        inputs: names of the inputs, in the order of the arrays to come.
        outputs: names of the outputs wanted.
        threads: how many threads one operator may use; None leaves it to onnxruntime.
    """
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings about constants it folded are no news
    if threads is not None:
        options.intra_op_num_threads = threads
    # Threads that wait by spinning would take the next file's processors when several are run in turns.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(list(outputs), dict(zip(inputs, arrays, strict=True)))
