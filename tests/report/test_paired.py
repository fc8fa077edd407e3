"""Changes since the start on the same prompts, in the tables and on the terminal: signed, with an interval over prompts."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from allo import console
from allo.cli import result
from allo.files.artifacts import RunFolder
from allo.files.evaluation import Accuracy, Answer, Evaluated, Evaluation, ModelResult, SetResult
from allo.recipe import load_recipe
from allo.report.paired import difference, values
from allo.report.run_view import Manifest, RunView
from allo.report.tables import models, result_tables
from allo.stats.metrics import bootstrap

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "lab.yaml"
BEFORE, AFTER = [[1, 0], [0, 0], [1, 1], [0, 1]] * 3, [[1, 1], [1, 0], [1, 1], [0, 1]] * 3


def rows(verdicts: list[list[int]], *, rewarded: bool = False) -> list[Evaluated]:
    def answer(value: int) -> Answer:
        return Answer("x", reward=value / 2) if rewarded else Answer("x", correct=bool(value))

    return [
        Evaluated(str(place), f"ask {place}", sampled=list(map(answer, own)))
        for place, own in enumerate(verdicts)
    ]


def run_view() -> RunView:
    def measured(verdicts: list[list[int]]) -> ModelResult:
        share = sum(map(sum, verdicts)) / 24
        return ModelResult(
            "m", {"test": SetResult(12, sampled=Accuracy(share, share - 0.2, share + 0.2, 24))}
        )

    completions = {"start": {"test": rows(BEFORE)}, "aligned": {"test": rows(AFTER)}}
    found = {"start": measured(BEFORE), "aligned": measured(AFTER)}
    return RunView("mine", Evaluation(1, found, completions), Manifest(1, "mine"))


def change_of(run: RunView) -> tuple[str, str]:
    (table,) = result_tables(models([run]))
    assert table.remark.startswith("12 prompts")
    cell = table.rows[1][table.columns.index("Change, points")]
    return cell.text, cell.note.replace("\u00a0", " ")


def test_an_accuracys_change_has_the_interval_of_the_paired_difference() -> None:
    paired = bootstrap([[(sum(a) - sum(b)) / 2] for a, b in zip(AFTER, BEFORE, strict=True)], seed=0)
    low, high = (f"{100 * bound:.1f}" for bound in (paired.low, paired.high))
    assert change_of(run_view()) == ("+25.0", f"[{low}, {high}]")
    assert paired.low > 0, "although the accuracies' own intervals overlap"


@pytest.mark.parametrize("dropped", ["start", "aligned"])
def test_without_the_answers_of_both_a_change_has_no_interval(dropped: str) -> None:
    run = run_view()
    kept = {role: sets for role, sets in run.evaluation.completions.items() if role != dropped}
    assert change_of(replace(run, evaluation=replace(run.evaluation, completions=kept))) == ("+25.0", "")


def test_other_prompts_and_missing_verdicts_have_no_difference() -> None:
    mine = values(rows(AFTER, rewarded=True), "sampled")
    assert mine["0"] == [0.5, 0.5] and difference(mine, mine) is not None
    assert difference(mine, values(rows(BEFORE[:11]), "sampled")) is None
    assert difference(mine, values(rows(BEFORE), "greedy")) is None
    unjudged = [replace(row, sampled=[*row.sampled, Answer("x")]) for row in rows(BEFORE)]
    assert values(unjudged, "sampled") == {}


def test_the_terminal_shows_the_change_and_the_number_of_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rewarded(mean: float, won: float | None) -> dict[str, Any]:
        def of(value: float) -> dict[str, Any]:
            return {"value": value, "low": value - 0.1, "high": value + 0.1, "num": 24}

        kinds = {"sampled": {"mean": of(mean), "win_rate": None if won is None else of(won)}}
        return {"num_prompts": 12, "mean_tokens": 9.0, "rewards": kinds}

    def kept(verdicts: list[list[int]]) -> list[dict[str, Any]]:
        return [
            {
                "prompt_id": str(place),
                "prompt": "ask",
                "sampled": [{"text": "x", "reward": v / 2} for v in own],
            }
            for place, own in enumerate(verdicts)
        ]

    found = {
        "start": {"label": "start", "sets": {"open": rewarded(0.25, None)}},
        "aligned": {"label": "aligned", "sets": {"open": rewarded(0.375, 0.7)}},
    }
    completions = {"start": {"open": kept(BEFORE)}, "aligned": {"open": kept(AFTER)}}
    evaluation = {"schema": 1, "models": found, "completions": completions}
    (tmp_path / "08-eval.json").write_text(json.dumps(evaluation))
    screen = io.StringIO()
    monkeypatch.setattr(result, "trained", lambda *_: tmp_path / "07-improve")
    monkeypatch.setattr(result, "_base", lambda *_: "base")
    own = Console(file=screen, width=100, color_system=None)
    monkeypatch.setattr(console, "console", own)
    monkeypatch.setattr(result, "console", own)
    result.show_result(load_recipe(RECIPE), RunFolder(tmp_path))
    text = " ".join(screen.getvalue().replace("\u00a0", " ").split())
    paired = bootstrap([[(sum(a) - sum(b)) / 4] for a, b in zip(AFTER, BEFORE, strict=True)], seed=0)
    assert f"Sampled change – +0.125 [{paired.low:.3f}, {paired.high:.3f}]" in text
    assert "12 prompts. Wins by reward" in text
