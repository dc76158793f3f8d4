"""The pruning of cnn-pruning, followed by MLflow: what examples/fashion_mnist.py does, with a server to look at it.

    mlflow server --host 127.0.0.1 --port 5005 --backend-store-uri sqlite:///mlflow.db     # in another terminal
    python examples/mlflow_train.py
    python examples/mlflow_train.py --dataset=digits                  # offline: scikit-learn's digits, at 28x28 pixels
    python examples/predict.py                                        # loads `model_pruned` from the run, and predicts

One run gets the parameters epochs, learning_rate, batch_size and optimizer; the metrics train_loss, train_accuracy,
val_loss, val_accuracy and the cost, and each of them again with `-pruned_model`; model_summary.txt and
pruned_model_summary.txt; and the models `model` and `model_pruned`. If the server is down, all that is kept in
`output_dir`, and sent when it is back.
"""

import pathlib

import fashion_mnist as example
import keras
from absl import app, flags, logging
from models.cnn28 import cnn28

import tfprune
from tfprune import data
from tfprune.files import output_directory
from tfprune.trackers import MLflow, Tracking

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(example)
flags.DEFINE_string("uri", "http://127.0.0.1:5005", "Of the MLflow server, or sqlite:///mlflow.db without one.")
flags.DEFINE_string("experiment", "cnn-pruning", "MLflow's name for runs that belong together.")
flags.DEFINE_string("run", None, "A name; the run of that name is gone on with.")


def main(_):
    """Run it."""
    logging.set_verbosity(logging.ERROR)
    keras.utils.set_random_seed(FLAGS.seed)
    output = output_directory(pathlib.Path(FLAGS.output_dir))
    images = example.at_28_pixels(data.load(FLAGS.dataset).head(FLAGS.train_samples, FLAGS.test_samples))
    params = {name: FLAGS[name].value for name in ("epochs", "learning_rate", "batch_size")}
    run = MLflow(FLAGS.experiment, FLAGS.run, FLAGS.uri, {**params, "optimizer": "Adam"}, directory=output)
    print(f"{images}\n{run.target}")

    settings = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "jit_compile": False}
    model = cnn28(images.shape, images.classes)
    model.compile(keras.optimizers.Adam(FLAGS.learning_rate), **settings)
    example.train(model, images, Tracking(run))
    run.log_summary(model, "model_summary.txt")
    run.log_model(model, "model")

    pruned = tfprune.strip(model, example.plan(model, images, FLAGS.remove, FLAGS.globally)).model
    pruned.compile(keras.optimizers.Adam(FLAGS.learning_rate), **settings)
    example.train(pruned, images, Tracking(run, suffix="-pruned_model"))
    run.log_summary(pruned, "pruned_model_summary.txt")
    run.log_model(pruned, "model_pruned")
    print(f"{model.count_params():,} -> {pruned.count_params():,} parameters")


if __name__ == "__main__":
    app.run(main)
