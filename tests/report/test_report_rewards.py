"""The report of a run that a reward model measured: its wins, its rewards, its examples; accuracies beside them."""

import json
from pathlib import Path
from typing import Any

import pytest

from allo.report.page import render
from allo.report.read import view
from allo.stats.metrics import bootstrap


def measured(value: float, num: int = 12) -> dict[str, Any]:
    return {"value": value, "low": value - 0.04, "high": value + 0.03, "num": num}


def rewarded(mean: float, won: float | None) -> dict[str, Any]:
    kinds = {
        kind: {"mean": measured(mean + more), "win_rate": measured(won + more) if won else None}
        for kind, more in (("greedy", 0.02), ("sampled", 0.0))
    }
    return {"num_prompts": 3, "greedy": None, "sampled": None, "mean_tokens": 21.5 + mean, "rewards": kinds}


def verified(share: float) -> dict[str, Any]:
    accuracy = {"accuracy": share, "low": share - 0.1, "high": share + 0.1, "num": 3}
    return {"num_prompts": 3, "greedy": accuracy, "sampled": None, "mean_tokens": 9.0}


def answers(rewards: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": f"p{number}",
            "prompt": f"ask {number}",
            "greedy": {"text": f"says {reward}", "correct": None, "reward": reward},
            "sampled": [],
        }
        for number, reward in enumerate(rewards)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "ranked"
    folder.mkdir()
    models = {
        "start": {"label": "SFT", "sets": {"open": rewarded(-0.25, None), "closed": verified(0.3)}},
        "aligned": {
            "label": "ALLO",
            "density": 0.1,
            "sets": {"open": rewarded(0.5, 0.625), "closed": verified(0.4)},
        },
    }
    completions = {
        "start": {"open": answers([0.0, 1.0, 2.0])},
        "aligned": {"open": answers([0.75, 0.25, 2.0])},
    }
    evaluation = {"schema": 1, "models": models, "completions": completions}
    (folder / "08-eval.json").write_text(json.dumps(evaluation))
    return folder


def test_the_table_shows_wins_and_rewards_and_only_the_start_has_no_wins(run: Path) -> None:
    _, markdown = render([view(run)])
    table = markdown.split("### open")[1].split("###")[0].replace("\u00a0", " ").splitlines()
    kinds = ("Sampled wins | Sampled reward | Sampled change", "Greedy wins | Greedy reward | Greedy change")
    assert table[2] == f"| Model | {' | '.join(kinds)} | Mean tokens |"
    assert table[4] == "| SFT | – | −0.250 [−0.290, −0.220] | – | – | −0.230 [−0.270, −0.200] | – | 21.2 |"
    paired = bootstrap([[0.75], [-0.75], [0.0]], seed=0)  # of the greedy answers; no sampled one is kept
    change = f"{paired.value:.3f} [{paired.low:.3f}, {paired.high:.3f}]".replace("-", "−")
    assert table[5] == (
        "| ALLO | 62.5% [58.5, 65.5] | 0.500 [0.460, 0.530] | – "
        f"| 64.5% [60.5, 67.5] | 0.520 [0.480, 0.550] | {change} | 22.0 |"
    )
    assert table[7].startswith("3 prompts.") and "ties half" in table[7] and "since the start" in table[7]
    closed = markdown.split("### closed")[1].split("###")[0]
    assert "Greedy accuracy" in closed and "wins" not in closed


def test_the_headline_says_by_what_it_was_judged(run: Path) -> None:
    _, markdown = render([view(run)])
    assert (
        "On open, sampled answers of ALLO beat those of SFT on 62.5% [58.5, 65.5] by their rewards, mean reward "
        "−0.250 to 0.500; the interval does not contain one half. 10% of the weights were trained."
    ) in markdown.replace("\u00a0", " ")


def test_examples_show_a_gain_and_a_loss_with_their_rewards_and_no_tie(run: Path) -> None:
    html, _ = render([view(run)])
    shown = html.split("Before and after</h2>")[1]
    assert shown.count('class="example"') == 2
    for text in ("higher reward", "lower reward", "reward 0.750", "reward 1.000", "says 0.25"):
        assert text in shown
    assert "says 2.0" not in shown and "✗ wrong" not in shown


def test_the_chart_draws_wins_where_there_are_rewards_and_the_start_at_one_half(run: Path) -> None:
    html, _ = render([view(run)])
    chart = html.split("wins on open")[1].split("</svg>")[0]
    assert "ALLO, sampled: 62.5" in chart and "SFT, sampled: 50.0" in chart and "wins, %" in chart
    assert "accuracy on closed" in html
