"""Counts of the ten sets' test problems that occur among training problems (allo.tasks.overlap).

`exact`: word for word, without capitals and punctuation. `near`: exact, or 70% of a problem's spans of 8 words occur
there. Only questions are compared, without options and instructions.

    python -m benchmarks.tasks.overlap --data FOLDER --pairs FOLDER/prefs_autoj/train.jsonl.gz
    python -m benchmarks.tasks.overlap --data FOLDER --output OTHER   # a quick look

`--data`: rows of FOLDER instead of the hub's. `--pairs`: preference pairs whose instructions are compared.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from allo import tasks
from allo.errors import UserError
from allo.recipe.tasks import TASKS
from allo.tasks.base import question_of
from allo.tasks.overlap import overlap
from allo.tasks.pairs import read_pairs
from benchmarks.record import RESULTS, Record, Row

SETS = [task.name for task in TASKS.values() if not task.is_generated]


def questions(task: str, split: str, *, folder: Path | None) -> list[str]:
    return [question_of(prompt.prompt) for prompt in tasks.load(task, split, folder=folder)]


def row(task: str, test: Sequence[str], own: Sequence[str], others: Mapping[str, Sequence[str]]) -> Row:
    """Return one set's counts: first its own train split, if any, then each of the others."""
    found: Row = {"test set": task, "problems": len(test)}
    for name, training in {"own train split": own, **others}.items():
        seen = overlap(test, training) if training else None
        found[f"{name}: exact"] = None if seen is None else seen.exact
        found[f"{name}: near"] = None if seen is None else seen.near
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Count test problems among training problems.")
    parser.add_argument("--data", type=Path, help="folder of local rows; without it the hub is read")
    parser.add_argument("--pairs", type=Path, help="preference pairs, JSONL or Parquet")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    record = Record(options.output / "tasks-overlap.json", "tasks-overlap", device="cpu")
    train = {task: questions(task, "train", folder=options.data) for task in SETS if TASKS[task].has_answers}
    pairs = read_pairs(options.pairs) if options.pairs else []
    others = {
        "published training sets": [
            question for task in SETS if TASKS[task].trained_on for question in train[task]
        ],
        "preference pairs": [question_of(pair.prompt) for pair in pairs],
    }
    rows = [
        row(task, questions(task, "test", folder=options.data), train.get(task, ()), others) for task in SETS
    ]
    record.write(rows)
    for one in rows:
        print(one)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
