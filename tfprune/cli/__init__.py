"""The command line: what is common to all commands here, one module a command in `commands/`.

Nothing in this folder imports TensorFlow or Keras before a command runs, so help and mistakes are answered at once.
"""
