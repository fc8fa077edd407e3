"""The diagnosis on the laboratory's model: faults planted by a recipe's settings, and good runs.

    OMP_NUM_THREADS=1 python -m benchmarks.runs.diagnosis [--good 20] [--only FAULT ...] [--work DIR]

Faults are planted in the published form (diagnosis.yaml). A fault is missed if its run's stages do not name it. Good runs
train in that form and in the demo's, in turn, each from a seed of its own; one that is blamed is a false alarm. Runs of a
form share their preparation, up to the token scores. Writes `benchmarks/results/diagnosis.json`: counts per fault, and
beside them what else was named.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allo.console import hushed, say
from allo.pipeline import run_all
from allo.recipe import Recipe, load_recipe
from allo.report.read import reading_of
from benchmarks.record import RESULTS, ROOT, Record, Row

SOURCE = ROOT / "src" / "allo"
PUBLISHED, DEMO, DPO = (
    Path(__file__).with_name("diagnosis.yaml"),
    *(SOURCE / "demo" / f"{name}.yaml" for name in ("allo", "dpo")),
)
SHORT = ("evaluate.sets.test.limit=60", "evaluate.num_generations=2", "evaluate.start=true")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Planted:
    """A fault and its way into a run: settings beside the demo's, or other pairs, which then are all of the data."""

    fault: str
    until: str
    settings: tuple[str, ...]
    pairs: Callable[[Rows], Rows] | None = None


def garbled(rows: Rows) -> Rows:
    """Return the pairs with one chosen answer of words in reverse order."""
    words = " ".join(reversed((rows[0]["prompt"] + rows[0]["chosen"]).split()))
    return [rows[0] | {"chosen": words}, *rows[1:]]


def shortened(rows: Rows) -> Rows:
    """Return pairs that prefer the first sentence of an answer to the answer."""
    return [row | {"chosen": row["chosen"].split(". ")[0] + ".", "rejected": row["chosen"]} for row in rows]


FAULTS = (
    Planted("nothing moved", "improve", ("improve.training.learning_rate=1e-7",)),
    Planted("chosen answers fell", "improve", ("improve.training.learning_rate=1e-3",)),
    Planted(
        "rejected answers fell far",
        "improve",
        ("improve.beta=5.0", "improve.training.learning_rate=1e-3"),
    ),
    Planted(
        "pairs told apart at once",
        "improve",
        ("improve.training.learning_rate=1e-3", "improve.training.num_train_epochs=10"),
    ),
    Planted("forgot too little", "forget", ("forget.training.learning_rate=1e-5",)),
    Planted("forgot too much", "forget", ("forget.training.learning_rate=3e-2",)),
    Planted("forgetting spread", "forget", ("forget.training.learning_rate=4e-3",)),
    Planted("until not reached", "forget", ("forget.until=0.1",)),
    Planted(
        "loss jumped",
        "improve",
        ("improve.anchor=1.0", "improve.training.per_device_train_batch_size=8"),
        garbled,
    ),
    Planted(
        "loss rose",
        "improve",
        ("improve.loss=rft", "improve.keep=1.0", "improve.training.learning_rate=0.2"),
    ),
    Planted("length changed", "evaluate", ("improve.training.num_train_epochs=3", *SHORT), shortened),
    Planted("far from the start", "evaluate", ("improve.training.learning_rate=1e-2", *SHORT)),
)


def named(
    recipe: Path, until: str, settings: Sequence[str], work: Path, *, prepared: Path | None
) -> list[str]:
    """Train a run up to a stage, from a preparation if there is one, and return the faults that its stages name."""
    shutil.rmtree(work, ignore_errors=True)
    if prepared is not None:
        shutil.copytree(prepared, work / prepared.name, symlinks=True)
    with hushed():
        run = run_all(_recipe(recipe, work, settings), until=until)
    stages = ["forget", "improve", *(["evaluate"] if until == "evaluate" else [])]
    readings = [reading_of(run.path, stage) for stage in stages]
    shutil.rmtree(work)
    return [finding.diagnosis for reading in readings if reading for finding in reading.findings]


def _recipe(path: Path, work: Path, settings: Sequence[str]) -> Recipe:
    return load_recipe(path, [f"model={SOURCE / 'lab'}", f"out={work}", "data_seed=0", *settings])


def prepare(recipe: Path, work: Path) -> Path:
    """Run a recipe up to its token scores, and return the run's folder."""
    return run_all(_recipe(recipe, work, ()), until="score").path


def plant(fault: Planted, prepared: Path, work: Path) -> list[str]:
    """Return what is named in a run with the fault."""
    if fault.pairs is None:
        return named(PUBLISHED, fault.until, fault.settings, work, prepared=prepared)
    rows = [
        json.loads(line) for line in (prepared / "03-pairs.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    plain = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    pairs = work.with_suffix(".jsonl")
    pairs.write_text("".join(json.dumps(row) + "\n" for row in fault.pairs(plain)), encoding="utf-8")
    return named(DPO, fault.until, (f"data.pairs={pairs}", *fault.settings), work, prepared=None)


def row(fault: str, found: Iterable[list[str]]) -> Row:
    """Return a row of the table; good runs have no fault."""
    runs = list(found)
    others = sorted({name for names in runs for name in names if name != fault})
    missed = sum(fault not in names for names in runs) if fault else None
    alarms = sum(bool(names) for names in runs) if not fault else None
    return {
        "planted": fault or "nothing: good settings, other seeds",
        "runs": len(runs),
        "missed": missed,
        "false alarms": alarms,
        "also named": ", ".join(others) or "nothing",
    }


def measure(faults: Sequence[Planted], *, good: int, work: Path, record: Record | None = None) -> list[Row]:
    """Plant each fault once, train the good runs, and return the table's rows, recorded as they come."""
    forms = (PUBLISHED, DEMO) if good > 1 else (PUBLISHED,)
    prepared = {form: prepare(form, work / form.stem) for form in forms}
    rows = []
    for fault in faults:
        rows.append(row(fault.fault, [plant(fault, prepared[PUBLISHED], work / "run")]))
        say(f"{fault.fault}: {'missed' if rows[-1]['missed'] else 'named'}; also {rows[-1]['also named']}")
        if record:
            record.write(rows)
    found = []
    for seed in range(1, good + 1):
        form = forms[seed % len(forms)]
        found.append(named(form, "improve", [f"seed={seed}"], work / "run", prepared=prepared[form]))
        say(f"good run {seed}, {form.stem}: {', '.join(found[-1]) or 'nothing'}")
    rows += [row("", found)] if good else []
    if record:
        record.write(rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--good", type=int, default=20)
    parser.add_argument("--only", nargs="*", choices=[fault.fault for fault in FAULTS])
    parser.add_argument("--work", type=Path, help="a folder for the runs; by default one that is removed")
    parser.add_argument("--out", type=Path, default=RESULTS / "diagnosis.json")
    given = parser.parse_args()
    chosen = [fault for fault in FAULTS if given.only is None or fault.fault in given.only]
    with tempfile.TemporaryDirectory() as folder:
        record = Record(given.out, "diagnosis", device="cpu")
        measure(chosen, good=given.good, work=given.work or Path(folder), record=record)


if __name__ == "__main__":
    main()
