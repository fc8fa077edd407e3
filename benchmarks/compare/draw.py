"""Plots of sweeps, learning rates, losses and of accuracy against KL, from records alone: docs/plots/TABLE.svg.

python -m benchmarks.compare.draw benchmarks/results/lab-sweep-density.json benchmarks/results/lab-rates.json
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allo.files.artifacts import write_atomic
from benchmarks.plot import Mark, Panel, figure
from benchmarks.record import ROOT, Row, read

PLOTS = ROOT / "docs" / "plots"
KL = "KL to start, nats a token"
SPREAD_FOR_LOG = 5  # an axis is logarithmic if the largest value is at least this many times the smallest


def mark(x: float, cell: Any) -> Mark:
    """Convert a record's cell at x, a number or a figure with its interval, to a mark."""
    return Mark(x, cell["value"], cell["low"], cell["high"]) if isinstance(cell, dict) else Mark(x, cell)


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Return a record's panels; their lines are a sweep's sets, or the methods of a tuning or comparison."""
    if "step" in rows[0]:
        return _losses(rows)
    if "seconds" in rows[0]:
        return _prices(rows)
    return _rates(rows) if "rate" in rows[0] else _sweep(rows)


def _losses(rows: Sequence[Row]) -> list[Panel]:
    lines = {
        name: [mark(row["step"], row[name]) for row in rows if row[name] is not None]
        for name in rows[0]
        if name != "step"
    }
    return [Panel("loss", "optimizer step", lines, y_from=None)]


def _prices(rows: Sequence[Row]) -> list[Panel]:
    """Plot sampled accuracy against KL, one panel per set: higher is better, left is nearer to the start."""
    sets = [name for name in rows[0] if name.endswith(", sampled")]
    return [
        Panel(
            name,
            KL,
            {row["method"]: [mark(mark(0, row[KL]).y, row[name])] for row in rows if row[KL] is not None},
            x_scale="log",
            y_from=None,
        )
        for name in sets
    ]


def _sweep(rows: Sequence[Row]) -> list[Panel]:
    key = next(iter(rows[0]))
    accuracies = {
        name: [mark(row[key], row[name]) for row in rows if row[name] is not None]
        for name in rows[0]
        if name.endswith((", sampled", ", greedy"))
    }
    kl = {"KL": [mark(row[key], row[KL]) for row in rows if row[KL] is not None]}
    return _pair(accuracies, kl, x_label=key)


def _rates(rows: Sequence[Row]) -> list[Panel]:
    methods = dict.fromkeys(row["method"] for row in rows)
    own = {name: [row for row in rows if row["method"] == name] for name in methods}
    accuracies = {
        name: [mark(row["rate"], row["validation accuracy"]) for row in found] for name, found in own.items()
    }
    kl = {
        name: [mark(row["rate"], row[KL]) for row in found if row[KL] is not None]
        for name, found in own.items()
    }
    return _pair(accuracies, kl, x_label="learning rate, of the recipe's own")


def _pair(accuracies: Mapping[str, list[Mark]], kl: Mapping[str, list[Mark]], *, x_label: str) -> list[Panel]:
    xs = [point.x for line in accuracies.values() for point in line]
    scale = "log" if min(xs) > 0 and max(xs) / min(xs) >= SPREAD_FOR_LOG else "linear"
    drawn = {name: line for name, line in accuracies.items() if line}
    found = [Panel("accuracy", x_label, drawn, x_scale=scale, y_from=None)]
    kl = {name: line for name, line in kl.items() if line}
    return found + ([Panel(KL, x_label, kl, x_scale=scale)] if kl else [])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD")
    parser.add_argument("--plots", type=Path, default=PLOTS)
    options = parser.parse_args(arguments)
    options.plots.mkdir(parents=True, exist_ok=True)
    for path in options.records:
        drawn = options.plots / f"{path.stem}.svg"
        write_atomic(drawn, figure(panels(read(path))))
        print(f"drawn: {drawn.name}")


if __name__ == "__main__":
    main()
