"""A run that was killed, started again, ends with the same files as one that was not."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from allo.pipeline import NAMES
from tiny_run import IN_BATCHES, command, contents, environment

TRIALS = 20
SEED = 0
LONGEST = 1800  # seconds for one whole run, on a machine that others use too


def start(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("run", out, *IN_BATCHES),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def finish(out: Path) -> str:
    """Run to the end, and return standard error."""
    process = start(out)
    stdout, stderr = process.communicate(timeout=LONGEST)
    assert process.returncode == 0, stderr
    assert stdout == ""
    said = [line.split()[0] for line in stderr.splitlines() if not line.startswith(" ")]
    assert set(said) <= {*NAMES, "the"}, stderr  # a resumed run says no more than a new one
    return stderr


def kill(out: Path, stage: str, after: float) -> bool:
    """Send SIGKILL `after` seconds into a stage; return False if the run was over before that."""
    process = start(out)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"{stage:<9} stage ") and line.endswith("...\n"):
            break
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.invariant("A killed run, started again, ends as one that was not killed.")
@pytest.mark.slow
def test_twenty_killed_runs_end_as_one_that_was_not_killed(tmp_path: Path) -> None:
    """Every stage is hit, at random moments of its duration, some runs several times."""
    whole = tmp_path / "whole"
    finish(whole)
    expected = contents(whole / "tiny")
    manifest = json.loads((whole / "tiny" / "manifest.json").read_text())
    seconds = {name: entry["seconds"] for name, entry in manifest["stages"].items()}

    draw = random.Random(SEED)
    hits: list[str] = []
    for trial in range(TRIALS):
        out = tmp_path / f"trial-{trial}"
        stages = sorted({NAMES[trial % len(NAMES)], *draw.sample(NAMES, k=trial % 3)}, key=NAMES.index)
        for stage in stages:
            moment = draw.uniform(0, seconds[stage])
            begun = time.monotonic()
            if kill(out, stage, moment):
                hits.append(stage)
            print(f"trial {trial}: {stage} + {moment:.2f} s ({time.monotonic() - begun:.0f} s)", flush=True)
        finish(out)
        found = contents(out / "tiny")
        assert found.keys() == expected.keys(), trial
        differing = [name for name in expected if found[name] != expected[name]]
        assert not differing, (trial, stages)
    print("killed in", {name: hits.count(name) for name in NAMES})
    assert set(hits) == set(NAMES)
    assert len(hits) >= TRIALS
