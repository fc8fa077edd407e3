"""Workers of a comparison that lose their parent, and damaged trial records."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import synthetic_comparison as synthetic
from allo.compare.methods import METHODS, resolve
from allo.compare.results import read_results
from allo.compare.trials import RATE, Comparison, Trial
from allo.errors import UserError
from allo.files.artifacts import held
from allo.files.json_forms import sealed
from tiny_run import environment, tiny

LONGEST = 120  # seconds; a worker imports torch first

# A parent with two workers, each of which holds a folder and never ends by itself: one waits in Python, and one computes
# without a pause.
PARENT = """
import sys, time
from pathlib import Path
from allo.compare.trials import Comparison
from allo.compare.workers import workers
from compare_worker import hold

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with workers(Comparison(folder), jobs=2) as working:
        working._do([(name, hold, (folder / name,)) for name in ("sleeping", "busy")])
"""
WORKER = """
import os, time
from allo.files.artifacts import held

def hold(folder):
    with held(folder):
        (folder / "pid").write_text(str(os.getpid()))
        while True:
            time.sleep(60) if folder.name == "sleeping" else sum(range(1000))
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("ending", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_workers_end_with_their_parent_and_hold_nothing(tmp_path: Path, ending: signal.Signals) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "compare_worker.py").write_text(WORKER)
    pids = [tmp_path / name / "pid" for name in ("sleeping", "busy")]
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py", tmp_path], env=environment())
    try:
        wait_until(lambda: all(file.exists() and file.read_text() for file in pids))
    finally:
        parent.send_signal(ending)
        parent.wait()
    numbers = [int(file.read_text()) for file in pids]
    ended = time.monotonic()
    wait_until(lambda: not any(map(is_alive, numbers)))
    assert time.monotonic() - ended < LONGEST / 4
    for file in pids:
        with held(file.parent):  # raises where another process has it
            pass


def write_trial(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write one changed trial file beside intact ones."""
    synthetic.write(folder, seeds=(0,))
    content = synthetic.trial("dpo", 7, synthetic.Draw().sets(0.5, 7, synthetic.SETS), kl=0.01)
    change(content)
    return synthetic.put(folder, content)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "NaN": (lambda one: one["cost"].update(seconds=float("nan")), "NaN is no number"),
    "infinite": (lambda one: one["kl"].update(value=float("inf")), "Infinity is no number"),
    "NaN loss": (lambda one: one.update(losses={"improve": [float("nan")]}), "NaN is no number"),
    "NaN text": (lambda one: one["cost"].update(seconds="nan"), "cost.seconds"),
    "no sets": (lambda one: one.update(sets={}), "`sets`.*at least 1"),
    "sets null": (lambda one: one.update(sets=None), "`sets`"),
    "no prompts": (lambda one: one["sets"]["test"].update(prompts=[]), "`sets.test.prompts`"),
    "no key": (lambda one: one.pop("cost"), "`cost`: Field required"),
    "other digest": (lambda one: one.update(sha256="0" * 64), "damaged"),
}


@pytest.mark.parametrize(("change", "found"), CHANGES.values(), ids=CHANGES)
def test_a_bad_record_is_named_with_what_to_redo(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], found: str
) -> None:
    path = write_trial(tmp_path, change)
    with pytest.raises(UserError, match=rf"{path}: not a finished trial.*{found}.*makes it again"):
        read_results(tmp_path)


FOREIGN = [b"null", b"[]", b"", b"7", b'{"a": 1}', b"\xff\xfe", b"[" * 9999, b"\0" * 50, b'{"schema": 1e999}']


@pytest.mark.parametrize("content", FOREIGN)
def test_json_of_another_form_is_named(tmp_path: Path, content: bytes) -> None:
    path = write_trial(tmp_path, lambda one: None)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path}: not a finished trial.*makes it again"):
        read_results(tmp_path)


def test_a_flipped_digit_in_a_sealed_record_is_found_by_summary_and_tuning(tmp_path: Path) -> None:
    base = tiny(tmp_path, 'compare={"validation": {"task": "planted_flaws", "split": "validation"}}')
    comparison, trial = Comparison(tmp_path), Trial(resolve("dpo", METHODS), {RATE: 1.0}, 9, "tune")
    recipe = trial.recipe(base)
    content = synthetic.trial("dpo", 9, synthetic.Draw().sets(0.5, 9, ("validation",)), purpose="tune")
    content["recipe"] = recipe.model_dump(mode="json", exclude={"out", "compare"})
    file = comparison.file(trial)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(sealed(content)))
    assert comparison.result(trial, recipe) is not None and len(read_results(tmp_path)) == 1
    file.write_text(file.read_text().replace('"seconds": 10.0', '"seconds": 18.0'))
    for read in (lambda: comparison.result(trial, recipe), lambda: read_results(tmp_path)):
        with pytest.raises(UserError, match=rf"{file}: .*damaged.*makes it again"):
            read()


@pytest.mark.parametrize("sets", [{}, None, {"validation": {}}])
def test_tuning_refuses_a_record_without_answers(tmp_path: Path, sets: Any) -> None:
    base = tiny(tmp_path, 'compare={"validation": {"task": "planted_flaws", "split": "validation"}}')
    comparison, trial = Comparison(tmp_path), Trial(resolve("dpo", METHODS), {RATE: 1.0}, 9, "tune")
    recipe = trial.recipe(base)
    content = synthetic.trial("dpo", 9, sets, purpose="tune")
    content["recipe"] = recipe.model_dump(mode="json", exclude={"out", "compare"})
    comparison.file(trial).parent.mkdir(parents=True)
    comparison.file(trial).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"`sets.*makes it again"):
        comparison.result(trial, recipe)
