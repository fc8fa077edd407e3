"""The diagnosis measured: faults planted by a recipe's settings or data, and good runs.

    OMP_NUM_THREADS=1 python -m benchmarks.runs.diagnosis [--seed N] [--only NAME ...] [--work DIR]
    OMP_NUM_THREADS=1 python -m benchmarks.runs.diagnosis --smollm2 MODEL --pairs FILE

The first trains the laboratory's model, the second SmolLM2-135M-Instruct (a folder, a hub id or a GGUF file) on 48 short
pairs of a file. `planted.py` has the runs; the seed draws their samples and gives each a seed of its own. A fault is missed
if its run's stages do not tell it in a sentence: to be counted as following from another one is not enough; a good run of which they name any is a false alarm. Beside that stands how many good runs
raised the accuracy on test problems, or on held-out pairs. Where a bound is changed because of these runs, they no longer
count: take another seed. Writes `benchmarks/results/diagnosis*.json`.
"""

import argparse
import gzip
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allo.console import hushed, say
from allo.files.evaluation import Evaluation, ModelResult, read_of_schema
from allo.pipeline import run_all
from allo.recipe import Recipe, load_recipe
from allo.report.read import reading_of
from benchmarks.record import RESULTS, ROOT, Record, Row
from benchmarks.runs.planted import (
    AGAIN,
    EVALUATED,
    FAULTS,
    GOOD,
    NAMES,
    PAIRS,
    PUBLISHED,
    SMALL,
    SMALL_FAULTS,
    SMALL_GOOD,
    Case,
    Rows,
    Settings,
)

LAB = ROOT / "src" / "allo" / "lab"
NUM_PAIRS, LONGEST = 48, 700  # characters of a prompt and the longer of its answers
ALL = "all of the good runs"
STAGES = ("sft", "forget", "improve", "evaluate")


@dataclass(frozen=True)
class Found:
    """The faults that a run's stages name, those of them with a sentence, and its accuracy before and after."""

    case: Case
    named: tuple[str, ...]
    told: tuple[str, ...]
    before: float | None = None
    after: float | None = None

    @property
    def rose(self) -> bool:
        return self.before is not None and self.after is not None and self.after > self.before


@dataclass(frozen=True)
class Bench:
    """A model with the settings of all of its runs, whose first stages are prepared once, up to `prepares`."""

    form: Path
    settings: Settings
    work: Path
    keep: bool = False
    prepares: str = "score"

    @property
    def prepared(self) -> Path:
        return self.work / "prepared"

    def recipe(self, case: Case, out: Path, rows: Rows | None = None, *, seed: int = 0) -> Recipe:
        """Return a case's recipe, on rows of its own if it has any."""
        own: dict[str, object] = {"out": str(out)}
        if rows is not None:
            kind = "feedback" if "label" in rows[0] else "pairs"
            own["data"] = {kind: str(write_rows(self.work / "rows.jsonl", rows))}
        settings = {"seed": seed, **self.settings, **case.settings, **own}
        return load_recipe(case.form, [f"{key}={json.dumps(value)}" for key, value in settings.items()])

    def prepare(self) -> None:
        run_all(self.recipe(Case("prepared", {}, self.form), self.prepared), until=self.prepares)

    def run(self, case: Case, seed: int) -> Found:
        """Train a case, and return the faults that it names."""
        (source,) = self.prepared.iterdir()
        out = self.work / f"{case.name}-{seed}".replace("/", "-").replace(" ", "-")
        rows = None
        if case.rows is not None:
            lines = (source / "03-pairs.jsonl").read_text(encoding="utf-8").splitlines()
            rows = case.rows([pair_of(json.loads(line)) for line in lines])
        recipe = self.recipe(case, out, rows, seed=seed)
        if rows is None and not out.exists():
            shutil.copytree(source, out / recipe.name, symlinks=True)
        with hushed():
            run = run_all(recipe, until=case.until).path
        found = self._found(case, run)
        if not self.keep:
            shutil.rmtree(out)
        return found

    def _found(self, case: Case, run: Path) -> Found:
        stages = STAGES[: STAGES.index(case.until) + 1]
        readings = [reading for stage in stages if (reading := reading_of(run, stage))]
        named = tuple(each.diagnosis for reading in readings for each in reading.findings)
        told = tuple(each.diagnosis for reading in readings for each in reading.told)
        if case.until != "evaluate":
            return Found(case, named, told)
        accuracies = [
            accuracy(each) for each in read_of_schema(run / "08-eval.json", Evaluation).models.values()
        ]
        return Found(case, named, told, accuracies[0], accuracies[-1])


def laboratory(work: Path, *, data_seed: int, keep: bool = False) -> Bench:
    """Return the laboratory's model, with samples of a seed."""
    return Bench(PUBLISHED, {**EVALUATED, "model": str(LAB), "data_seed": data_seed}, work, keep)


def small(model: str, rows: Rows, work: Path, *, seed: int, keep: bool = False) -> Bench:
    """Return a model as large as SmolLM2-135M, with pairs to train on. Its runs have one seed, so they share forgetting."""
    data = {"pairs": str(write_rows(work / "pairs.jsonl", rows))}
    settings = {**SMALL, "model": model, "data": data, "seed": seed, "data_seed": seed}
    return Bench(PAIRS, settings, work, keep, prepares="forget")


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


def pair_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's prompt and both answers."""
    return {name: row[name] for name in ("prompt", "chosen", "rejected")}


def short_pairs(path: Path) -> Rows:
    """Return the first short pairs of a file."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        pairs = [pair_of(json.loads(line)) for line in lines]
    longest = (len(pair["prompt"]) + max(len(pair["chosen"]), len(pair["rejected"])) for pair in pairs)
    return [pair for pair, length in zip(pairs, longest, strict=True) if length <= LONGEST][:NUM_PAIRS]


def rows_of(found: Sequence[Found]) -> list[Row]:
    """Return the table: a row a fault, a row a good method, and one of all good runs."""
    names = sorted(dict.fromkeys(run.case.name for run in found), key=lambda name: name not in NAMES)
    good = [run for run in found if run.case.is_good]
    rows = [row(name, [run for run in found if run.case.name == name]) for name in names]
    return [*rows, *([row(ALL, good)] if good else [])]


def row(name: str, found: Sequence[Found]) -> Row:
    """Return a row of the table."""
    good = found[0].case.is_good
    return {
        "planted": f"nothing: {name}" if good else name,
        "runs": len(found),
        "missed": None if good else sum(name not in run.named for run in found),
        "without a sentence": None if good else sum(name in {*run.named} - {*run.told} for run in found),
        "false alarms": sum(bool(run.named) for run in found) if good else None,
        "more accurate after": sum(run.rose for run in found) if good else None,
        "also named": ", ".join(sorted({each for run in found for each in run.named} - {name})) or "nothing",
    }


def measure(bench: Bench, cases: Sequence[Case], *, seed: int, record: Record | None = None) -> list[Row]:
    """Train every case with a seed of its own, and return the table's rows, recorded as they come."""
    bench.prepare()
    found: list[Found] = []
    for number, case in enumerate(cases, start=seed):
        found.append(bench.run(case, number))
        last = found[-1]
        gained = "" if last.before is None else f"; accuracy {last.before:.3f} to {last.after:.3f}"
        say(f"{number} {case.name}: {', '.join(last.named) or 'nothing'}{gained}")
        if record:
            record.write(rows_of(found))
    return rows_of(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of the samples; the runs have seeds of their own"
    )
    parser.add_argument("--smollm2", metavar="MODEL", help="a folder, a hub id or a GGUF file")
    parser.add_argument("--pairs", type=Path, help="JSON Lines of prompt, chosen and rejected, for SmolLM2")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="faults and methods; default: all")
    parser.add_argument("--work", type=Path, help="a folder that keeps the runs; given again, it goes on")
    parser.add_argument("--out", type=Path, help="the record's file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work, keep = given.work or Path(folder), given.work is not None
        work.mkdir(parents=True, exist_ok=True)
        if given.smollm2:
            if given.pairs is None:
                parser.error("--smollm2 needs --pairs")
            table, cases = "diagnosis-smollm2", SMALL_FAULTS + SMALL_GOOD
            bench = small(given.smollm2, short_pairs(given.pairs), work, seed=given.seed, keep=keep)
        else:
            table, cases = "diagnosis", FAULTS + GOOD + AGAIN
            bench = laboratory(work, data_seed=given.seed, keep=keep)
        cases = tuple(case for case in cases if not given.only or case.name in given.only)
        record = Record(given.out or RESULTS / f"{table}.json", table, device="cpu")
        measure(bench, cases, seed=100 * given.seed, record=record)


if __name__ == "__main__":
    main()
