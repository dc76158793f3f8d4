"""What runs an exported file where it is used: one module a runtime, none of which needs tfprune.

Each module has `load(path, inputs, outputs, threads)`, which returns a function from a list of input arrays to a list
of output arrays, and imports only its runtime and numpy. `process.run_in` calls it in a process of its own, in which
tfprune cannot be imported.
"""
