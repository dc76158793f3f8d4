"""What pytest does not collect where an extra is not installed."""

from importlib.util import find_spec

# Its examples run where mlflow is: pip install 'tfprune[mlflow]'.
collect_ignore = [] if find_spec("mlflow") else ["tfprune/trackers/mlflow.py"]
