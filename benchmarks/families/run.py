"""Every family through every check: `python -m benchmarks.families.run`, or `make families`.

Each family is tried in a process of its own, so that a crash is a row and not the end. Its outcomes are kept in
`OUT/<family>.json`; a family whose outcomes are there, from the same commit and the same versions, is not tried
again. At the end the rows are written to benchmarks/results/families.json.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from allo.files.artifacts import write_json
from allo.files.provenance import commit_of
from allo.recipe.criteria import CRITERIA
from benchmarks.families import checks, run_checks
from benchmarks.families.checks import Case
from benchmarks.families.families import BY_NAME, FAMILIES, Family
from benchmarks.families.folders import make
from benchmarks.families.outcome import Outcome, outcome
from benchmarks.families.tables import write_tables
from benchmarks.record import RESULTS, ROOT, Record, machine

LONGEST = 600  # seconds that one family may take
ALONE = "loads"  # without it no other check has a model


@dataclass(frozen=True)
class Check:
    """A named property; `after` is the check without which it cannot be tried."""

    name: str
    function: Callable[[Case], str]
    after: str | None = None


CHECKS = (
    Check("check", run_checks.checked),
    Check("loads", checks.loads),
    Check("log-probs", checks.padded_logps, ALONE),
    Check("shared prefix", checks.shared_logps, ALONE),
    Check("train mode", checks.trained_logps, ALONE),
    Check("decoding", checks.decodes, ALONE),
    *(Check(f"locate {name}", partial(run_checks.located, criterion=name), ALONE) for name in CRITERIA),
    Check("run", run_checks.runs, ALONE),
    Check("k weights", run_checks.selects_k, "run"),
    Check("delta", run_checks.delta_applies, "run"),
    Check("result", run_checks.result_loads, "run"),
    Check("run in bf16", run_checks.runs_in_bf16, ALONE),
    Check("plan", checks.plans, ALONE),
    Check("PEFT", run_checks.adapts, ALONE),
)
NAMES = tuple(check.name for check in CHECKS)
_LONG = {"plan", "run in bf16", *(f"locate {name}" for name in CRITERIA if name != "gradient")}
SHORT = tuple(
    name for name in NAMES if name not in _LONG
)  # a few seconds a family; the run locates by warm-up


def outcomes_of(family: Family, *, only: tuple[str, ...] = NAMES) -> dict[str, Outcome]:
    """Make the family's checkpoint in a temporary folder, and return the outcome of each check."""
    found: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder, quiet():
        case = Case(family, make(family, Path(folder) / "checkpoint"), Path(folder) / "work")
        for check in CHECKS:
            if check.name in only:
                before = found.get(check.after or "", Outcome("ok"))
                found[check.name] = (
                    outcome(check.function, case)
                    if before.holds
                    else Outcome("unreached", f"after {check.after}")
                )
    return found


@contextlib.contextmanager
def quiet() -> Any:
    """Hide warnings and progress of the libraries, which are no outcome."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def try_all(
    families: list[Family], files: dict[str, Path], *, jobs: int, only: tuple[str, ...] = NAMES
) -> Iterator[Family]:
    """Try families, each in a process of its own, `jobs` at a time; yield each when its outcomes are written.

    A process that dies or takes too long is an outcome of all checks.
    """
    fork, waiting = multiprocessing.get_context("fork"), list(families)
    running: list[tuple[BaseProcess, Family, float]] = []
    while waiting or running:
        if waiting and len(running) < jobs:
            family = waiting.pop(0)
            process = fork.Process(target=_try_one, args=(family, files[family.name], only))
            process.start()
            running.append((process, family, time.monotonic()))
            continue
        time.sleep(0.1)
        for entry in list(running):
            process, family, began = entry
            seconds = time.monotonic() - began
            if process.is_alive() and seconds < LONGEST:
                continue
            if process.is_alive():
                process.kill()
            process.join()
            if process.exitcode:
                died = Outcome("crash", f"the process ended with {process.exitcode} after {seconds:.0f} s")
                _keep(files[family.name], family, dict.fromkeys(only, died), seconds=seconds)
            running.remove(entry)
            yield family


def _try_one(family: Family, file: Path, only: tuple[str, ...]) -> None:
    began = time.monotonic()
    _keep(file, family, outcomes_of(family, only=only), seconds=time.monotonic() - began)


def _keep(file: Path, family: Family, found: dict[str, Outcome], *, seconds: float) -> None:
    write_json(
        file,
        {
            "family": family.name,
            "type": family.model_type,
            "made": _made(tuple(found)),
            "seconds": round(seconds, 1),
            "checks": {name: each.as_json() for name, each in found.items()},
        },
    )


def _made(only: tuple[str, ...]) -> dict[str, Any]:
    """Return what the outcomes depend on: the checks, the commit, and the libraries' versions."""
    return {
        "tried": list(only),
        **commit_of(ROOT, ignored=("benchmarks/results", "docs")),
        "machine": machine("cpu"),
    }


def read(file: Path, only: tuple[str, ...] = NAMES) -> dict[str, Any] | None:
    """Return a family's outcomes, or None if there are none of this commit and these versions."""
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    made = _made(only)
    return found if found["made"] == made and not made["dirty"] else None


def row(found: dict[str, Any]) -> dict[str, Any]:
    """Return a family's row of the table."""
    checks = {name: Outcome(**each) for name, each in found["checks"].items()}
    failing = [name for name, each in checks.items() if each.kind in ("wrong", "crash")]
    late = [name for name, each in checks.items() if each.kind == "refused" and name != "check"]
    if checks["check"].kind == "refused":
        works, failing = f"no: {checks['check'].what}", []
    else:
        missing = [*failing, *late]
        all_tried = "everything" if checks.keys() >= set(NAMES) else "every short check"
        works = all_tried if not missing else f"{all_tried} but " + ", ".join(_grouped(missing))
    return {
        "family": found["family"],
        "transformers type": found["type"],
        "works": works,
        "how": ", ".join(_how(checks)) or "-",
    }


def _grouped(names: list[str]) -> list[str]:
    """Return the names with all criteria as one, if none of them works."""
    located = [name for name in names if name.startswith("locate ")]
    if len(located) < len(CRITERIA):
        return names
    return ["locating", *(name for name in names if name not in located)]


def _how(checks: dict[str, Outcome]) -> list[str]:
    """Return how the family is computed: its attention, and what is computed once."""
    how = []
    if checks["loads"].holds:
        how.append(checks["loads"].what.rsplit(", ", 1)[-1])
    if checks["shared prefix"] == Outcome("ok", "shared"):
        how.append("pairs share their prompt")
    if checks["decoding"] == Outcome("ok", "shared"):
        how.append("samples share their prompt")
    return how


def main() -> None:
    parser = argparse.ArgumentParser(description="Try every family of models on tiny random checkpoints.")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "families", help="folder of the outcomes")
    parser.add_argument("--jobs", type=int, default=1, help="families tried at the same time")
    parser.add_argument("--only", nargs="*", choices=list(BY_NAME), metavar="NAME", help="default: all")
    parser.add_argument("--short", action="store_true", help="leave out the plan, bf16 and most criteria")
    parser.add_argument("--table", type=Path, help="also write the outcomes of all checks here, as Markdown")
    parser.add_argument("--output", type=Path, default=RESULTS / "families.json")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    files = {family.name: options.out.resolve() / f"{family.slug}.json" for family in FAMILIES}
    record = Record(options.output, "families", device="cpu")
    only = SHORT if options.short else NAMES
    wanted = [BY_NAME[name] for name in options.only or BY_NAME]
    waiting = [family for family in wanted if read(files[family.name], only) is None]
    for family in try_all(waiting, files, jobs=options.jobs, only=only):
        found = json.loads(files[family.name].read_text(encoding="utf-8"))
        print(f"{found['seconds']:6.1f} s  {family.name}: {row(found)['works']}", flush=True)
        if options.table:
            write_tables(
                [json.loads(file.read_text()) for file in files.values() if file.is_file()], options.table
            )
    found = [json.loads(files[family.name].read_text(encoding="utf-8")) for family in wanted]
    if options.table:
        write_tables(found, options.table)
    if not options.only:
        record.write([row(each) for each in found])


if __name__ == "__main__":
    main()
