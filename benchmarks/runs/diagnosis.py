"""The diagnosis measured: faults planted by a recipe's settings or data, and good runs.

    OMP_NUM_THREADS=1 python -m benchmarks.runs.diagnosis [--choosing] [--only NAME ...] [--work DIR]
    OMP_NUM_THREADS=1 python -m benchmarks.runs.diagnosis --smollm2 MODEL --pairs FILE

The first trains the laboratory's model, the second SmolLM2-135M-Instruct (a folder, a hub id or a GGUF file) on 48 short
pairs of a file. `planted.py` has the runs. A fault is missed if its run's stages do not name it; a good run of which they
name any is a false alarm. A good run must also raise the accuracy on test problems, or on held-out pairs: that is its own
column. The table counts twenty good runs; `--choosing` trains other ones, with other samples and seeds, on which bounds may
be chosen. Writes `benchmarks/results/diagnosis*.json`.
"""

import argparse
import gzip
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from allo.console import hushed, say
from allo.files.evaluation import Evaluation, ModelResult, read_of_schema
from allo.pipeline import run_all
from allo.recipe import Recipe, load_recipe
from allo.report.read import reading_of
from benchmarks.record import RESULTS, ROOT, Record, Row
from benchmarks.runs.planted import (
    EVALUATED,
    FAULTS,
    GOOD,
    PAIRS,
    PUBLISHED,
    SMALL,
    SMALL_FAULTS,
    SMALL_GOOD,
    Case,
    Rows,
    Settings,
    settings_of,
)

LAB = ROOT / "src" / "allo" / "lab"
NUM_PAIRS, LONGEST = 48, 700  # characters of a prompt and the longer of its answers
ALL = "all of the good runs"
STAGES = ("sft", "forget", "improve", "evaluate")


@dataclass(frozen=True)
class Found:
    """The faults that a run's stages name, and its accuracy before and after."""

    case: Case
    named: tuple[str, ...]
    before: float | None = None
    after: float | None = None

    @property
    def rose(self) -> bool:
        return self.before is not None and self.after is not None and self.after > self.before


@dataclass(frozen=True)
class Bench:
    """A model with the settings of all of its runs, and a prepared run whose first stages they share."""

    form: Path
    settings: Settings
    work: Path
    keep: bool = False

    def recipe(self, case: Case, folder: Path) -> Recipe:
        return load_recipe(case.form, settings_of(case, {**self.settings, "out": str(folder)}))

    @property
    def prepared(self) -> Path:
        return self.work / "prepared"

    def prepare(self) -> None:
        """Run the common recipe up to its token scores."""
        run_all(self.recipe(Case("prepared", {}, self.form), self.prepared), until="score")

    def run(self, case: Case, seed: int) -> Found:
        """Train a case and return what is named in it."""
        folder = self.work / f"{case.name}-{seed}".replace("/", "-").replace(" ", "-")
        recipe = self.recipe(
            Case(case.name, {**case.settings, **self._rows(case), "seed": seed}, case.form), folder
        )
        (source,) = self.prepared.iterdir()
        if case.rows is None:
            shutil.copytree(source, folder / recipe.name, symlinks=True)
        with hushed():
            run = run_all(recipe, until=case.until).path
        names = tuple(
            finding.diagnosis
            for stage in STAGES
            if (reading := reading_of(run, stage)) is not None
            for finding in reading.findings
        )
        evaluation = run / "08-eval.json"
        models = read_of_schema(evaluation, Evaluation).models.values() if evaluation.is_file() else ()
        accuracies = [accuracy(model) for model in models] or [None]
        if not self.keep:
            shutil.rmtree(folder)
        return Found(case, names, accuracies[0], accuracies[-1])

    def _rows(self, case: Case) -> dict[str, object]:
        """Return the setting that names a case's own rows, which are made from the prepared run's pairs."""
        if case.rows is None:
            return {}
        lines = next(self.prepared.glob("*/03-pairs.jsonl")).read_text(encoding="utf-8").splitlines()
        pairs = [
            {name: row[name] for name in ("prompt", "chosen", "rejected")} for row in map(json.loads, lines)
        ]
        rows = case.rows(pairs)
        return {
            "data": {
                "feedback" if "label" in rows[0] else "pairs": str(write_rows(self.work / "rows.jsonl", rows))
            }
        }


def accuracy(model: ModelResult) -> float | None:
    """Return a model's sampled accuracy on test problems or, without any, that on held-out pairs by likelihood."""
    if "test" in model.sets:
        sampled = model.sets["test"].sampled
        return sampled.accuracy if sampled else None
    return model.held_out.likelihood_accuracy.value if model.held_out else None


def write_rows(path: Path, rows: Rows) -> Path:
    """Write rows as JSON Lines and return the file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def short_pairs(path: Path) -> Rows:
    """Return the first short pairs of a file."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        rows = [{name: json.loads(line)[name] for name in ("prompt", "chosen", "rejected")} for line in lines]
    fit = [
        row for row in rows if len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) <= LONGEST
    ]
    return fit[:NUM_PAIRS]


def row(planted: str, found: Sequence[Found], *, good: bool) -> Row:
    """Return a row of the table."""
    others = sorted({name for run in found for name in run.named if good or name != planted})
    measured = [run for run in found if run.before is not None]
    return {
        "planted": f"nothing: {planted}" if good else planted,
        "runs": len(found),
        "missed": None if good else sum(planted not in run.named for run in found),
        "false alarms": sum(bool(run.named) for run in found) if good else None,
        "more accurate after": sum(run.rose for run in found) if good and measured else None,
        "also named": ", ".join(others) or "nothing",
    }


def rows_of(found: Sequence[Found], good: Sequence[Found]) -> list[Row]:
    """Return the table: a row a fault, a row a good method, and one of all good runs."""
    rows = [row(name, list(runs), good=False) for name, runs in groupby(found, key=lambda run: run.case.name)]
    methods = [
        row(name, list(runs), good=True) for name, runs in groupby(good, key=lambda run: run.case.name)
    ]
    return [*rows, *methods, *([row(ALL, good, good=True)] if good else [])]


def measure(
    bench: Bench, faults: Sequence[Case], good: Sequence[Case], *, seed: int, record: Record | None = None
) -> list[Row]:
    """Train every case with a seed of its own, and return the table's rows, recorded as they come."""
    bench.prepare()
    found: tuple[list[Found], list[Found]] = [], []
    for number, (case, done) in enumerate(
        [*((one, found[0]) for one in faults), *((one, found[1]) for one in good)]
    ):
        done.append(bench.run(case, seed + number))
        each = done[-1]
        gained = "" if each.before is None else f"; accuracy {each.before:.3f} to {each.after:.3f}"
        say(f"{seed + number} {case.name}: {', '.join(each.named) or 'nothing'}{gained}")
        if record:
            record.write(rows_of(*found))
    return rows_of(*found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--choosing", action="store_true", help="train the good runs on which bounds are chosen"
    )
    parser.add_argument("--smollm2", metavar="MODEL", help="a folder, a hub id or a GGUF file")
    parser.add_argument("--pairs", type=Path, help="JSON Lines of prompt, chosen and rejected, for SmolLM2")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="faults and methods; default: all")
    parser.add_argument("--work", type=Path, help="a folder that keeps the runs")
    parser.add_argument("--out", type=Path, help="the record's file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = given.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        table = (
            "diagnosis-choosing" if given.choosing else "diagnosis-smollm2" if given.smollm2 else "diagnosis"
        )
        if given.smollm2:
            if given.pairs is None:
                parser.error("--smollm2 needs --pairs")
            rows = write_rows(work / "pairs.jsonl", short_pairs(given.pairs))
            bench = Bench(
                PAIRS,
                {**SMALL, "model": given.smollm2, "data": {"pairs": str(rows)}},
                work,
                given.work is not None,
            )
            faults, good = SMALL_FAULTS, SMALL_GOOD
        else:
            settings = {**EVALUATED, "model": str(LAB), "data_seed": 1 if given.choosing else 2}
            bench = Bench(PUBLISHED, settings, work, given.work is not None)
            faults, good = FAULTS, GOOD[::2] if given.choosing else GOOD
        faults, good = (
            [case for case in cases if not given.only or case.name in given.only] for cases in (faults, good)
        )
        record = Record(given.out or RESULTS / f"{table}.json", table, device="cpu")
        measure(bench, faults, good, seed=100 if given.choosing else 200, record=record)


if __name__ == "__main__":
    main()
