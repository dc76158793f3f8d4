"""A process that loads exported files and runs them, without tfprune: see `process.py`, which starts it.

It reads one JSON object a line and answers each with one. A request names a device module, a file, an .npz of inputs
and an .npz to write; the answer says how long loading took and how long each timed run. Or it names a function of the
module and its arguments.
"""

import importlib.util
import json
import os
import sys
import time


def main():
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints must not get between the answers
    sys.path.pop(0)  # this folder: its modules are no packages
    for name in json.loads(sys.argv[1]):
        sys.modules[name] = None  # importing it fails from here on
    for line in sys.stdin:
        try:
            answer = serve(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def serve(request):
    """Load, run, write the outputs, and time."""
    device = module(request["device"])
    if "call" in request:
        return {"result": getattr(device, request["call"])(**request["arguments"])}
    import numpy as np

    if "turns" in request:
        return in_turns(np, device, request)
    inputs = read(np, request["data"])
    device.runtime()
    before = peak()
    start = time.perf_counter()
    run = device.load(request["path"], request["inputs"], request["outputs"], threads=request.get("threads"))
    loaded = time.perf_counter() - start
    np.savez(request["result"], *run(inputs))
    answer = {"load_seconds": loaded}
    if request.get("seconds"):
        one = [array[:1] for array in inputs] if request["one"] else inputs
        answer["latencies"] = timed(run, one, request["seconds"])
    answer["memory"] = peak() - before
    return answer


def read(np, path):
    """The arrays of an .npz, in order."""
    with np.load(path) as file:
        return [file[f"arr_{index}"] for index in range(len(file.files))]


def module(path):
    """A device module by its file."""
    spec = importlib.util.spec_from_file_location("device_" + os.path.basename(path)[:-3], path)
    made = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, made)
    spec.loader.exec_module(made)
    return made


def in_turns(np, device, request):
    """Load several files and run one after the other, again and again; the seconds of each run, a list a file."""
    device.runtime()
    files = []
    for file in request["files"]:
        run = device.load(file["path"], file["inputs"], file["outputs"], threads=request["threads"])
        files.append((run, read(np, file["data"])))
    taken = [[] for _ in files]
    clock = time.process_time if request["processors"] else time.perf_counter
    for turn in range(-request["warm"], request["turns"]):
        for (run, inputs), times in zip(files, taken, strict=True):
            start = clock()
            run(inputs)
            if turn >= 0:
                times.append(clock() - start)
    return {"latencies": taken}


def peak():
    """The most memory that this process has held, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def timed(run, inputs, budget, warm=2, most=50):
    """The seconds of each of up to `most` runs within a budget of seconds, after a few that do not count."""
    for _ in range(warm):
        run(inputs)
    taken = []
    end = time.perf_counter() + budget
    while len(taken) < 3 or (len(taken) < most and time.perf_counter() < end):
        start = time.perf_counter()
        run(inputs)
        taken.append(time.perf_counter() - start)
    return taken


if __name__ == "__main__":
    main()
