"""One module a command: it defines a `COMMAND`, and that is all it takes to add one."""
