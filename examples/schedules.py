"""Draw all schedules: python examples/schedules.py --output=pic/schedules.png"""

from absl import app, flags

from tfprune.report import pictures
from tfprune.schedules import (
    Asymptotic,
    Constant,
    Cosine,
    Exponential,
    Ladder,
    Linear,
    OneShot,
    Polynomial,
    Rounds,
    join,
    warm_up,
)

FLAGS = flags.FLAGS
flags.DEFINE_string("output", "pic/schedules.png", "Where the picture goes; its suffix is its format.")

DRAWN = {
    "Constant(0.5)": Constant(0.5),
    "OneShot(0.8, at=10)": OneShot(0.8, at=10),
    "Ladder((0.8, 0.7, 0.6, 0.55, 0.5), every=8)": Ladder((0.8, 0.7, 0.6, 0.55, 0.5), every=8),
    "Rounds(0.9, rounds=5, every=8)": Rounds(0.9, rounds=5, every=8),
    "Linear(0, 0.8, length=30)": Linear(0, 0.8, length=30),
    "Polynomial(0, 0.8, length=30)": Polynomial(0, 0.8, length=30),
    "Cosine(0, 0.8, length=30)": Cosine(0, 0.8, length=30),
    "Exponential(0, 0.8, length=30)": Exponential(0, 0.8, length=30),
    "Asymptotic(0, 0.8, length=40)": Asymptotic(0, 0.8, length=40),
    "join(Constant(0), Cosine(0, 0.8, 20), at=10)": join(Constant(0), Cosine(0, 0.8, 20), at=10),
    "warm_up(Ladder((0.6, 0.8), every=15), length=10)": warm_up(Ladder((0.6, 0.8), every=15), length=10),
}


def main(_):
    """Draw them."""
    print(pictures.schedules(DRAWN, FLAGS.output))


if __name__ == "__main__":
    app.run(main)
