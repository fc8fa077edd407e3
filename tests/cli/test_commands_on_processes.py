"""`allo align` and `allo evaluate` on several processes: the records and measures of one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from start_rows import rows, write
from tiny_run import LAB, contents, environment

SHORT = [
    word for stage in ("locate", "forget", "improve") for word in ("--set", f"{stage}.training.max_steps=2")
]
LOSS = 1e-6
MEASURES = 1e-4  # rounding may select another weight of almost the same importance


def allo(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "allo", *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "07-improve/metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_align_and_evaluate_on_two_processes_end_as_on_one(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", rows("pairs"))
    one, two = tmp_path / "one", tmp_path / "two"
    for run, more in ((one, ()), (two, ("--processes", "2"))):
        words = ["align", str(LAB), "pairs.jsonl", "--out", run.name, *SHORT, "--set", "dtype=float32"]
        said = allo(tmp_path, *words, *more)
        assert said.count("the model is in") == said.count("Reward accuracy") == 1
    alone, together = contents(one), contents(two)
    assert alone.keys() == together.keys()
    for name in ("03-pairs.jsonl", "03-held-out.jsonl", "07-improve/model/config.json"):
        assert alone[name] == together[name], name
    assert losses(two) == pytest.approx(losses(one), abs=LOSS)
    measured = [json.loads(each["08-eval.json"])["models"] for each in (alone, together)]
    assert measured[0]["start"] == measured[1]["start"], "the start was not trained"
    for name in ("margin", "reward_accuracy"):
        values = [models["aligned"]["held_out"][name]["value"] for models in measured]
        assert values[0] == pytest.approx(values[1], abs=MEASURES)
    said = allo(tmp_path, "evaluate", str(one / "align.yaml"), "--force", "--processes", "2")
    assert said.count("evaluate  done in") == 1
    assert contents(one)["08-eval.json"] == alone["08-eval.json"], "the same weights have the same measures"
