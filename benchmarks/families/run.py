"""Every family through every check: `python -m benchmarks.families.run`, or `make families`.

Each family is tried in a process of its own, so that a crash is a row and not the end. Each outcome is kept in
`OUT/<family>.json` as soon as it is known; a check whose outcome is there, from the same commit (or one after `--since`)
and the same versions, is not tried again. A run that was killed goes on; one without `--short` adds the long checks to one
with it. At the end the rows, of all outcomes that are there, are written to benchmarks/results/families.json.
"""

import argparse
import contextlib
import gc
import importlib
import io
import json
import multiprocessing
import pkgutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

from allo import stages
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


def outcomes_of(
    family: Family,
    *,
    only: tuple[str, ...] = NAMES,
    known: Mapping[str, Outcome] = MappingProxyType({}),
    keep: Callable[[dict[str, Outcome]], None] = lambda found: None,
) -> dict[str, Outcome]:
    """Make the family's checkpoint in a temporary folder, and return the outcome of each check.

    Those that are `known` are not tried, except one whose files a further check needs. After each, `keep` gets all.
    """
    found = dict(known)
    missing = [check for check in CHECKS if check.name in only and check.name not in known]
    tried = {check.name for check in missing} | {check.after for check in missing}
    with tempfile.TemporaryDirectory() as folder, quiet():
        case = Case(family, make(family, Path(folder) / "checkpoint"), Path(folder) / "work")
        for check in CHECKS:
            if check.name in tried:
                before = found.get(check.after or "", Outcome("ok"))
                found[check.name] = (
                    outcome(check.function, case)
                    if before.holds
                    else Outcome("unreached", f"after {check.after}")
                )
                keep(found)
    return found


@contextlib.contextmanager
def quiet() -> Any:
    """Hide warnings and progress of the libraries, which are no outcome."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def try_all(
    families: list[Family],
    files: dict[str, Path],
    *,
    jobs: int,
    only: tuple[str, ...] = NAMES,
    since: str | None = None,
    longest: float = LONGEST,
) -> Iterator[Family]:
    """Try families, each in a process of its own, `jobs` at a time; yield each when its outcomes are written.

    If a process dies or takes too long, that is the outcome of the check that it did not end and of all after it.
    """
    _load_once()
    fork, waiting = multiprocessing.get_context("fork"), list(families)
    running: list[tuple[BaseProcess, Family, float]] = []
    while waiting or running:
        if waiting and len(running) < jobs:
            family = waiting.pop(0)
            process = fork.Process(target=_try_one, args=(family, files[family.name], only, since))
            process.start()
            running.append((process, family, time.monotonic()))
            continue
        time.sleep(0.1)
        for entry in list(running):
            process, family, began = entry
            seconds = time.monotonic() - began
            if process.is_alive() and seconds < longest:
                continue
            if process.is_alive():
                process.kill()
            process.join()
            if process.exitcode:
                died = Outcome("crash", f"the process ended with {process.exitcode} after {seconds:.0f} s")
                kept = Kept.read(files[family.name], since)
                kept.write(family, dict.fromkeys(only, died) | kept.checks, seconds=seconds)
            running.remove(entry)
            yield family


def _load_once() -> None:
    """Import what stages import late, and spare the processes from looking through it: a quarter of their time."""
    for module in pkgutil.iter_modules(stages.__path__, "allo.stages."):
        importlib.import_module(module.name)
    importlib.import_module("scipy.stats")
    gc.freeze()


def _try_one(family: Family, file: Path, only: tuple[str, ...], since: str | None) -> None:
    began, kept = time.monotonic(), Kept.read(file, since)

    def keep(found: dict[str, Outcome]) -> None:
        kept.write(family, found, seconds=time.monotonic() - began)

    keep(outcomes_of(family, only=only, known=kept.checks, keep=keep))


@dataclass(frozen=True)
class Kept:
    """A family's outcomes in `file`, with the commits that they are of, the seconds they took, and the versions."""

    file: Path
    checks: dict[str, Outcome] = field(default_factory=dict)
    commits: tuple[str, ...] = ()
    seconds: float = 0.0

    @classmethod
    def read(cls, file: Path, since: str | None = None) -> "Kept":
        """Read those of this commit or one after `since`, and of these versions."""
        made = _made()
        if not file.is_file() or made["dirty"]:
            return cls(file)
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        commits = found["made"]["commit"].split()
        if found["made"] | {"commit": None} != made | {"commit": None} or not set(commits) <= _later(since):
            return cls(file)
        checks = {name: Outcome(**each) for name, each in found["checks"].items()}
        return cls(file, checks, tuple(commits), found["seconds"])

    def write(self, family: Family, checks: Mapping[str, Outcome], *, seconds: float) -> None:
        """Write outcomes, of which those not read before took `seconds` at this commit."""
        made = _made()
        made["commit"] = " ".join(dict.fromkeys([*self.commits, str(made["commit"])]))
        write_json(
            self.file,
            {
                "family": family.name,
                "type": family.model_type,
                "made": made,
                "seconds": round(self.seconds + seconds, 1),
                "checks": {name: checks[name].as_json() for name in NAMES if name in checks},
            },
        )


def _made() -> dict[str, Any]:
    """Return what the outcomes depend on: the commit, and the libraries' versions."""
    return {**commit_of(ROOT, ignored=("benchmarks/results", "docs")), "machine": machine("cpu")}


def _later(since: str | None) -> set[str]:
    """Return this commit, and those after `since`."""
    span = ["-1", "HEAD"] if since is None else [f"{since}^..HEAD"]
    command = ["git", "-C", str(ROOT), "rev-list", *span]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


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
    parser.add_argument("--since", metavar="COMMIT", help="keep outcomes of this commit and later ones")
    parser.add_argument("--longest", type=float, default=LONGEST, help="seconds that one family may take")
    parser.add_argument("--table", type=Path, help="also write the outcomes of all checks here, as Markdown")
    parser.add_argument("--output", type=Path, default=RESULTS / "families.json")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    files = {family.name: options.out.resolve() / f"{family.slug}.json" for family in FAMILIES}
    record = Record(options.output, "families", device="cpu")
    only = SHORT if options.short else NAMES
    wanted = [BY_NAME[name] for name in options.only or BY_NAME]
    waiting = [
        family for family in wanted if set(only) - Kept.read(files[family.name], options.since).checks.keys()
    ]
    for family in try_all(
        waiting, files, jobs=options.jobs, only=only, since=options.since, longest=options.longest
    ):
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
        commits = [commit for each in found for commit in each["made"]["commit"].split()]
        record.write([row(each) for each in found], commits=dict.fromkeys(commits))


if __name__ == "__main__":
    main()
