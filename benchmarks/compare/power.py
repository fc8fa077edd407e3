"""The chance that a comparison finds a real difference, by seeds, effect and variation between seeds.

    python -m benchmarks.compare.power

Simulates differences of two methods on crossed grids of seeds and problems, tested like `allo compare` tests them:
alone at p < .05, and in a family under Holm's correction in which the other tests find nothing.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from scipy import stats

from allo.stats.statistics import SMALLEST_P, MeanSquares, crossed_spread
from benchmarks.record import RESULTS, Record

DRAWS = 100_000
PROBLEMS = 400
TESTS = 18  # nine methods on two sets
LEVEL, FAMILY_LEVEL = 0.05, 0.01
# Standard deviations of a difference, in points: of a problem's effect, and of one entry of the grid (4 samples).
OF_PROBLEMS, OF_ENTRIES = 12.0, 28.0


def power(num_seeds: int, effect: float, of_seeds: float, *, seed: int = 0) -> tuple[float, float]:
    """Return the chances of p < LEVEL alone and of a corrected p < FAMILY_LEVEL; effect and `of_seeds` in points."""
    rng = np.random.default_rng(seed)
    free, free_problems = num_seeds - 1, PROBLEMS - 1
    rest = OF_ENTRIES**2
    expected = (PROBLEMS * of_seeds**2 + rest, num_seeds * OF_PROBLEMS**2 + rest, rest)
    freedoms = (free, free_problems, free * free_problems)
    drawn = [
        square * rng.chisquare(freedom, DRAWS) / freedom
        for square, freedom in zip(expected, freedoms, strict=True)
    ]
    variance, freedom = crossed_spread(MeanSquares(*drawn, (num_seeds, PROBLEMS)), doubt=SMALLEST_P)
    truth = (expected[0] + expected[1] - rest) / (num_seeds * PROBLEMS)
    mean = effect + math.sqrt(truth) * rng.normal(size=DRAWS)
    ps = np.maximum(SMALLEST_P, 2 * stats.t.sf(np.abs(mean) / np.sqrt(variance), freedom))
    return float(np.mean(ps < LEVEL)), float(np.mean(TESTS * ps < FAMILY_LEVEL))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "compare-power.json")
    record = Record(parser.parse_args().output, "compare-power", device="cpu")
    rows = []
    for num_seeds in (3, 5, 10, 20):
        for effect in (2.0, 5.0):
            for of_seeds in (0.5, 2.0):
                alone, family = power(num_seeds, effect, of_seeds)
                rows.append(
                    {
                        "seeds": num_seeds,
                        "difference, points": effect,
                        "seeds' standard deviation, points": of_seeds,
                        f"found at p < {LEVEL:g}": round(alone, 2),
                        f"found at Holm's p < {FAMILY_LEVEL:g}, {TESTS} tests": round(family, 2),
                    }
                )
    record.write(rows)


if __name__ == "__main__":
    main()
