"""A p and an interval stand in a document only if today's rule made them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import render_tables as tables
from allo.stats import statistics

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6}
HEAD: dict[str, Any] = {
    "schema": 1,
    "table": "lab",
    "date": "2026-01-02",
    "commit": "0123456789abcdef",
    "dirty": False,
    "machine": "2 cores",
    "command": "allo compare recipes/lab.yaml",
}


def record(statistics: str | None = None, **row: Any) -> dict[str, Any]:
    head = HEAD if statistics is None else HEAD | {"statistics": statistics}
    return head | {"columns": list(row), "rows": [list(row.values())]}


OF_THE_RULE = [
    {"method": "dpo", "test, p": 0.01},
    {"method": "dpo", "KL less allo": INTERVAL, "p": 0.01},
    {"method": "dpo", "gsm8k, p over problems": 0.01},
    {"scorer": "edit", "p": 0.5},
    {"method": "dpo", "test, sampled": INTERVAL},
    {"method": "dpo", "test, greedy": INTERVAL},
    {"method": "dpo", "test, pass@16": INTERVAL},
    {"method": "dpo", "test, less allo_fifth": INTERVAL},
    {"improve.density": 0.1, "method": "dpo", "seeds": 3, "unseen, sampled": INTERVAL},
]
OF_NO_RULE = [
    {"method": "dpo", "test, sampled": 0.5, "test, less allo": -0.1},
    {"method": "dpo", "KL to start, nats a token": INTERVAL, "KL less allo": INTERVAL, "seconds": INTERVAL},
    {"method": "dpo", "rate": 1.0, "validation accuracy": INTERVAL},
    {"model": "one run", "test, sampled": INTERVAL},
    {"system": "allo", "peak, MB": 1.0, "power": 2.0, "top": 3.0},
]


@pytest.mark.invariant("A document shows no p and no interval of a comparison that an earlier rule made.")
@pytest.mark.parametrize("row", OF_THE_RULE, ids=lambda row: list(row)[-1])
@pytest.mark.parametrize("rule", [None, "2026-11-22", ""])
def test_p_and_crossed_intervals_of_another_rule_are_refused(row: dict[str, Any], rule: str | None) -> None:
    with pytest.raises(tables.BadRecordError, match=re.escape(list(row)[-1])):
        tables.check_record(record(rule, **row), name="lab.json")
    tables.check_record(record(statistics.RULE, **row), name="lab.json")


@pytest.mark.parametrize("row", OF_NO_RULE, ids=lambda row: list(row)[-1])
def test_figures_that_no_rule_changed_need_none(row: dict[str, Any]) -> None:
    assert not tables.outdated(record(**row))
    tables.check_record(record(**row), name="lab.json")


def test_a_p_in_a_text_stands_in_a_record() -> None:
    """The log of experiments is left out: it says what was found at its day."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    ps = {
        row[place]
        for each in found
        for place, column in enumerate(each["columns"])
        if tables.P.search(column)
        for row in each["rows"]
        if row[place] is not None
    }
    pages = [ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md", *ROOT.glob("docs/**/*.md")]
    for page in pages:
        for stated in re.findall(r"\bp (?:=|is|of) (\.\d+(?:(?:,| and|, and) \.\d+)*)", page.read_text()):
            for figure in re.findall(r"\.\d+", stated):
                known = page.name == "experiments.md" or any(
                    f"{p:.{len(figure) - 1}f}" == f"0{figure}" for p in ps
                )
                assert known, f"{page.name}: p {figure} stands in no record"


def test_the_rule_is_named_anew_if_its_figures_change() -> None:
    """If this fails for a good reason, set `RULE` to the day: records made before then are refused."""
    grid = np.random.default_rng(0).normal(0.3, 1, (5, 40)) + np.linspace(0, 0.4, 5)[:, None]
    interval = statistics.crossed_bootstrap(grid, seed=0)
    found = [statistics.crossed_p(grid), interval.low, interval.high]
    assert (statistics.RULE, [f"{figure:.4g}" for figure in found]) == (
        "2026-11-30",
        ["0.004119", "0.2687", "0.7525"],
    )
