"""The share of tokens that each marking of wrong answers gives weight, on a run's own text.

Text that people wrote has no truth about tokens. A marking that takes most of them says little, so its share is what can be
measured. The run must have been scored with the scorers beside (`--set "score.beside=[confidence,edit]"`).

    python -m benchmarks.credit.shares RUN
    python -m benchmarks.credit.shares RUN --output OTHER   # a quick look
"""

import argparse
from pathlib import Path

import pyarrow.parquet as pq
import torch

from allo.tokens.token_credit import completion_weights
from benchmarks.record import RESULTS, Record, Row

THRESHOLDS = {"implicit": (0.5, 0.4, 0.27, 0.12), "confidence": (0.5, 0.2, 0.05), "edit": (0.5,)}
"""The thresholds tried for each scorer. For `implicit` they are 0, .4, 1 and 2 root mean squares below 0."""


def shares(scores: list[list[float]], *, threshold: float) -> Row:
    """Return the share of all tokens that are marked, and of answers without a marked token."""
    flat = torch.tensor([score for one in scores for score in one])
    weights = completion_weights(
        flat, [len(one) for one in scores], rule="indicator", threshold=threshold, marked="all"
    )
    marked = sum(int(one.sum()) for one in weights)
    return {
        "tokens": flat.numel(),
        "share": round(marked / flat.numel(), 4),
        "unmarked answers": round(sum(not one.any() for one in weights) / len(weights), 4),
    }


def table_of(run: Path) -> list[Row]:
    """Return a row for each scorer of the run and each threshold."""
    table = pq.read_table(run / "05-token-scores.parquet")
    first = table.schema.metadata[b"scorer"].decode()
    columns = {first: "scores"} | {
        name.removeprefix("scores/"): name for name in table.column_names if name.startswith("scores/")
    }
    return [
        {"scorer": name, "threshold": threshold, **shares(table[column].to_pylist(), threshold=threshold)}
        for name, column in columns.items()
        for threshold in THRESHOLDS.get(name, (0.5,))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Count the tokens that markings of wrong answers give weight."
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    record = Record(options.output / "credit-shares.json", "credit-shares", device="cpu")
    rows = table_of(options.run)
    record.write(rows)
    for one in rows:
        print(*one.values(), sep="\t")


if __name__ == "__main__":
    main()
