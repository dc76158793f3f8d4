"""What pytest does not collect: what an extra is missing for, and scripts that tests start as processes."""

from importlib.util import find_spec

collect_ignore = ["tests/several.py", "tests/mirrored.py"]
# Its examples run where mlflow is: pip install 'tfprune[mlflow]'.
collect_ignore += [] if find_spec("mlflow") else ["tfprune/trackers/mlflow.py"]
