"""The report's token section: each scorer's view of a completion, and scores against the truth."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allo.report import charts
from allo.report.credit import NUM_BINS, reliability
from allo.report.page import render
from allo.report.read import view
from allo.report.run_view import Bin, Calibration
from allo.report.story import SHADES

HOSTILE = "<script>alert(1)</script>"
SOLUTION = "First 3 + 4 = 7. The answer is 7."
WRONG = "First 3 - 4 = 9. The answer is 9."
# The wrong words of WRONG: the operator, its result and the answer. The last token is EOS.
TOKENS = ["First", " 3", " -", " 4", " =", " 9", ".", " The", " answer", " is", " 9", ".", "</s>"]
TRULY_WRONG = [place in (2, 5, 10) for place in range(len(TOKENS))]


def make_run(folder: Path, *, prompt_id: str, beside: dict[str, float], tokens: list[str] = TOKENS) -> Path:
    """Make a run with one wrong completion; each scorer gives every token one score (the run's own .75)."""
    folder.mkdir()
    start = {"label": "SFT", "sets": {}}
    (folder / "08-eval.json").write_text(json.dumps({"schema": 1, "models": {"start": start}}))
    row: dict[str, Any] = {
        "id": "w0",
        "token_ids": list(range(len(tokens))),
        "tokens": tokens,
        "scores": [0.75] * len(tokens),
        "weights": [1.0] * len(tokens),
    }
    row |= {f"scores/{name}": [score] * len(tokens) for name, score in beside.items()}
    table = pa.Table.from_pylist([row]).replace_schema_metadata({"scorer": "implicit"})
    pq.write_table(table, folder / "05-token-scores.parquet")
    wrong = {"id": "w0", "prompt_id": prompt_id, "prompt": "?", "completion": WRONG, "solution": SOLUTION}
    (folder / "03-wrong.jsonl").write_text(json.dumps(wrong) + "\n")
    return folder


def test_a_completion_is_shown_once_a_scorer_shaded_by_its_doubt(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", prompt_id="p0", beside={"edit": 0.0, "confidence": 1.0})
    html, _ = render([view(folder)])
    lines = html.split('<div class="map">')[1:]
    shown = {line.split("</p>")[0].removeprefix('<p class="who">'): line.split("</div>")[0] for line in lines}
    assert list(shown) == ["implicit", "edit", "confidence"]
    for name, shade in (("implicit", SHADES // 4), ("edit", SHADES), ("confidence", 0)):
        assert shown[name].count(f'class="t t{shade}"') == len(TOKENS), name


def test_model_text_and_scorer_names_are_escaped_in_the_map(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", prompt_id="p0", beside={HOSTILE: 0.5}, tokens=[HOSTILE, "\x00"])
    html, _ = render([view(folder)])
    assert HOSTILE not in html and "\x00" not in html
    # The token by its weight, twice by score and in the list, and the scorer's name on its line and in the list.
    assert html.count("&lt;script&gt;") == 4 + 1 + 2


def test_where_the_truth_is_known_it_stands_first(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", prompt_id="planted_flaws/train/1/0", beside={})
    credit = view(folder).credit
    assert credit is not None and credit.samples[0].wrong == TRULY_WRONG
    truth = render([view(folder)])[0].split('<div class="map">')[1].split("</div>")[0]
    assert '<p class="who">truth' in truth
    assert truth.count(f'class="t t{SHADES}"') == sum(TRULY_WRONG)


def test_calibration_of_every_scorer_where_the_truth_is_known(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", prompt_id="planted_flaws/train/1/0", beside={"edit": 0.0})
    credit = view(folder).credit
    assert credit is not None
    observed = 1 - sum(TRULY_WRONG) / len(TOKENS)
    assert [each.scorer for each in credit.calibration] == ["implicit", "edit"]
    for each, score in zip(credit.calibration, (0.75, 0.0), strict=True):
        (only,) = each.bins
        assert (only.predicted, only.observed, only.num) == pytest.approx((score, observed, len(TOKENS)))
        assert each.error == pytest.approx(abs(score - observed))
    assert render([view(folder)])[0].count('aria-label="calibration of') == 2


@pytest.mark.parametrize(
    ("prompt_id", "tokens"),
    [("gsm8k/train/0", TOKENS), ("planted_flaws/train/1/0", ["Fi", "rst", *TOKENS[1:]])],
    ids=["another task", "tokens that are no words"],
)
def test_without_truth_there_is_no_calibration(tmp_path: Path, prompt_id: str, tokens: list[str]) -> None:
    folder = make_run(tmp_path / "run", prompt_id=prompt_id, beside={"edit": 0.0}, tokens=tokens)
    credit = view(folder).credit
    assert credit is not None and credit.calibration == () and credit.samples[0].wrong is None
    assert "calibration of" not in render([view(folder)])[0]


def test_bins_keep_every_token_and_perfect_scores_have_no_error() -> None:
    scored = [(number / 20, number % 3 > 0) for number in range(21)]
    bins = reliability(scored)
    assert sum(each.num for each in bins) == len(scored) and len(bins) == NUM_BINS
    assert [each.predicted for each in bins] == sorted(each.predicted for each in bins)
    assert sum(each.num * each.observed for each in bins) == pytest.approx(
        sum(aligned for _, aligned in scored)
    )
    perfect = [(0.0, False)] * 3 + [(0.5, True), (0.5, False)] + [(1.0, True)] * 4
    assert Calibration("x", reliability(perfect)).error == 0


def test_a_calibrated_scorers_dots_lie_on_the_diagonal() -> None:
    chart = charts.reliability_plot("x", [Bin(0.0, 0.0, 1), Bin(1.0, 1.0, 3)])
    diagonal = chart.split('class="reference"')[1].split("/>")[0]
    ends = [part.split('"')[1] for part in diagonal.split()]
    line = chart.split('points="')[1].split('"')[0]
    assert line == f"{ends[0]},{ends[1]} {ends[2]},{ends[3]}"
