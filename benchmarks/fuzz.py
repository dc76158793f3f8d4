"""Strip random models with random zeros, for as long as you like.

    python benchmarks/fuzz.py --seconds=600 --seed=0

Each case is built in float64 from its own number; what goes wrong is printed with that number and the steps that led
there, and `--case=NUMBER` runs it alone. Every case must strip to an equal model (1e-12 of the largest output) or
refuse with a reason, strip again to nothing, and leave the model as it was.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import sys
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "tests")]

import keras  # noqa: E402
import numpy as np  # noqa: E402
from fuzzing import check  # noqa: E402
from models import floats, without_xla  # noqa: E402
from random_models import Builder  # noqa: E402
from random_sequences import SequenceBuilder  # noqa: E402

# Cases take turns: feature maps, sequences.
BUILDERS = (Builder, SequenceBuilder)


def builder_of(number: int) -> Builder:
    """The builder of a case, which draws from its number."""
    generator = np.random.default_rng(number)
    return BUILDERS[number % len(BUILDERS)](lambda n: int(generator.integers(n)))


def case(number: int, steps: int) -> tuple[Builder, str]:
    """Build and check one case; the builder tells its steps, the text what went wrong (empty: nothing)."""
    keras.utils.clear_session(free_memory=False)
    builder = builder_of(number)
    try:
        with floats("float64"):
            check(builder, steps)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return builder, f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:300]}"
    return builder, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="the first case's number")
    parser.add_argument("--steps", type=int, default=6, help="at most so many steps between stem and head")
    parser.add_argument("--case", type=int, help="run this case alone, with its traceback")
    parser.add_argument("--most", type=int, default=20, help="stop after so many failures")
    given = parser.parse_args()
    if given.case is not None:
        builder = builder_of(given.case)
        try:
            with floats("float64"):
                check(builder, given.steps)
        finally:
            print("\n".join(builder.steps))
        return 0
    start, number, failures = time.perf_counter(), given.seed, 0
    kinds: collections.Counter[str] = collections.Counter()
    # Interrupted, it still says how far it has come.
    with contextlib.suppress(KeyboardInterrupt), without_xla():
        while time.perf_counter() - start < given.seconds and failures < given.most:
            builder, trouble = case(number, given.steps)
            if trouble:
                failures += 1
                print(f"case {number}: {trouble}\n    " + "; ".join(builder.steps), flush=True)
            kinds.update(builder.outcome)
            number += 1
            if (number - given.seed) % 500 == 0:
                print(
                    f"{number - given.seed} cases, {failures} failures, {time.perf_counter() - start:.0f} s", flush=True
                )
    print(f"{number - given.seed} cases, {failures} failures, in {time.perf_counter() - start:.0f} s; {dict(kinds)}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
