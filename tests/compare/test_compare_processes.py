"""A comparison on several processes makes the trials of one process, and ends with its table."""

import json
from pathlib import Path
from typing import Any

import pytest

from allo.files.artifacts import read_json
from benchmarks.ranks.forked import Start, serving
from tiny_run import arguments

FEW = ("sft=null", "data.limit=8", "evaluate.likelihood_pairs=4", "evaluate.temperature=1.0")
BLOCK: dict[str, Any] = {
    "validation": {"task": "planted_flaws", "split": "validation", "limit": 4},
    "rates": [20.0, 40.0],
    "extra_trials": 0,
    "beyond": 0,
    "tuning_seeds": [9],
    "seeds": [0],
}
CLOCK = ("seconds", "peak_memory_bytes")
TABLE = 1e-2  # rounding in training moved KL by 2e-6 of itself
LOSS = 1e-6


def started(out: Path, *more: str) -> list[str]:
    """Return the arguments of a comparison of two methods below `out`."""
    given = arguments("compare", out, *FEW, f"compare={json.dumps(BLOCK)}")
    return [*given, "--methods", "dpo,allo", *more]


def trials(folder: Path) -> dict[str, dict[str, Any]]:
    found = sorted((folder / "trials").glob("*/*.json"))
    return {f"{file.parent.name}/{file.stem}": read_json(file) for file in found}


@pytest.mark.slow
def test_two_processes_end_with_the_table_of_one(tmp_path: Path) -> None:
    with serving() as server:
        for num_ranks in (1, 2):
            log = tmp_path / f"{num_ranks}.log"
            given = started(tmp_path / f"{num_ranks}")
            status, _ = server.run(Start(given, str(log), num_ranks))
            assert status == 0, log.read_text()
            assert log.read_text().count("the comparison is in") == 1
    check_equal(tmp_path / "1" / "tiny", tmp_path / "2" / "tiny")


def check_equal(one: Path, two: Path) -> None:
    """Compare the trials and the tables of two comparisons."""
    alone, together = trials(one), trials(two)
    assert alone.keys() == together.keys() and len(alone) >= 8
    for name, trial in alone.items():
        other = together[name]
        assert other["sets"] == trial["sets"], name
        assert other["settings"] == trial["settings"], name
        for stage, losses in trial.get("losses", {}).items():
            assert other["losses"][stage] == pytest.approx(losses, abs=LOSS), (name, stage)
    tables = [read_json(folder / "comparison.json") for folder in (one, two)]
    for name, method in tables[0]["methods"].items():
        assert figures(tables[1]["methods"][name]) == pytest.approx(figures(method), rel=TABLE), name
    assert not (two / "work").exists() or not [*(two / "work").iterdir()], "a finished trial keeps no run"


def figures(method: Any, name: str = "") -> dict[str, float]:
    """Return every number of a method's entry but those of the clock, by its path."""
    if isinstance(method, dict):
        found: dict[str, float] = {}
        for key, value in method.items():
            if key not in CLOCK:
                found |= figures(value, f"{name}/{key}")
        return found
    return {name: float(method)} if isinstance(method, int | float) else {}
