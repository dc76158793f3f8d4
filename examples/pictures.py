"""Draw the pictures of a run of `examples/cifar10.py`: blocks, filter weights, widths and failure rates.

python examples/pictures.py --run=runs/cifar10 --output_dir=pic
"""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import app, flags

from tfprune.report import pictures

FLAGS = flags.FLAGS
flags.DEFINE_string("run", "runs/cifar10", "What --output_dir of the run was.")
flags.DEFINE_string("output_dir", "pic", "Where the pictures go.")
flags.DEFINE_string("inverted_residual", "expanded_conv_5_", "Which inverted residual block is drawn.")
flags.DEFINE_string("squeeze_excite", "SE2", "Which squeeze-and-excitation block is drawn.")


def main(_):
    """Draw them."""
    run, output = pathlib.Path(FLAGS.run), pathlib.Path(FLAGS.output_dir)
    soft = keras.saving.load_model(run / "soft_pruned.keras", compile=False)
    stripped = keras.saving.load_model(run / "stripped" / "model.keras", compile=False)
    both = {"soft-pruned": soft, "stripped": stripped}
    inverted, squeeze = FLAGS.inverted_residual, FLAGS.squeeze_excite
    drawn = (
        pictures.block(soft, stripped, inverted, output / "inverted_residual_block.png"),
        pictures.block(soft, stripped, squeeze, output / "squeeze_excite_block.png"),
        pictures.filters(
            both,
            [inverted + part for part in ("expand", "depthwise", "project")],
            output / "inverted_residual_weights.png",
        ),
        pictures.filters(both, [f"{squeeze}_reduce", f"{squeeze}_expand"], output / "squeeze_excite_weights.png"),
        pictures.widths(soft, stripped, output / "widths.png"),
        pictures.failure_rates(run / "failure_rates.csv", output / "failure_rates.png"),
    )
    for path in drawn:
        print(path)


if __name__ == "__main__":
    app.run(main)
