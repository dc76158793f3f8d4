"""Load a model from a run of examples/mlflow_train.py and predict with it: plain MLflow and plain Keras.

python examples/predict.py                                        # the newest run on the server of mlflow_train.py
python examples/predict.py --dataset=digits --run="2026-11-21 15-04-47 4340" --model=model
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import fashion_mnist as example
import mlflow
from absl import app, flags, logging

from tfprune import data

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(example)
flags.DEFINE_string("uri", "http://127.0.0.1:5005", "Of the MLflow server, or sqlite:///mlflow.db without one.")
flags.DEFINE_string("experiment", "cnn-pruning", "MLflow's name for runs that belong together.")
flags.DEFINE_string("run", None, "The name of a run; the newest by default.")
flags.DEFINE_string("model", "model_pruned", "Which model of the run: model_pruned, or model.")


def main(_):
    """Run it."""
    logging.set_verbosity(logging.ERROR)
    mlflow.set_tracking_uri(FLAGS.uri)
    named = f"attributes.run_name = '{FLAGS.run}'" if FLAGS.run else ""
    runs = mlflow.search_runs(
        experiment_names=[FLAGS.experiment], filter_string=named, max_results=1, output_format="list"
    )
    if not runs:
        raise app.UsageError(f"{FLAGS.uri} has no run {FLAGS.run or ''} of the experiment {FLAGS.experiment!r}")
    model = mlflow.keras.load_model(f"runs:/{runs[0].info.run_id}/{FLAGS.model}")
    images = example.at_28_pixels(data.load(FLAGS.dataset).head(1, FLAGS.test_samples))
    found = model.predict(images.x_test, batch_size=FLAGS.batch_size, verbose=0).argmax(-1)
    print(f"{FLAGS.model} of {runs[0].info.run_name!r}: {model.count_params():,} parameters")
    print(f"predicted {found[:10].tolist()}, labels {images.y_test[:10].ravel().tolist()}")
    print(f"accuracy on {len(found)} images: {(found == images.y_test.ravel()).mean():.2%}")


if __name__ == "__main__":
    app.run(main)
