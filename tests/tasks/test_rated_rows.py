"""Rated and ranked rows: pairs by the rule for rewarded samples; all that makes no pair is counted or refused."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allo.errors import UserError
from allo.files.records import Prompt, Verdict
from allo.recipe import Recipe
from allo.recipe.judge import Pairing
from allo.tasks.pairs import pairs_and_reading, pairs_of_rows
from allo.tasks.rewards import RANKED_FUNCTION, ranked_pairs
from allo.tasks.sources import Sources
from tiny_run import tiny

ASKED = [{"role": "user", "content": "Name a tree."}]
ROW: dict[str, Any] = {
    "prompt": "Name a tree.",
    "completions": ["Oak.", "Rock.", "Elm.", "Sand."],
    "scores": [9, 2, 7.5, 1],
}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sides(rows: list[dict[str, Any]], folder: Path, **pairing: Any) -> list[tuple[str, str]]:
    pairs, _ = pairs_and_reading(write(folder, *rows), pairing=Pairing(**pairing))
    return [(pair.chosen, pair.rejected) for pair in pairs]


def test_the_best_is_paired_with_the_worst_within_the_settings_of_pair(tmp_path: Path) -> None:
    assert sides([ROW], tmp_path) == [("Oak.", "Sand."), ("Elm.", "Rock.")]
    assert sides([ROW], tmp_path, max_pairs_per_prompt=1) == [("Oak.", "Sand.")]
    assert sides([ROW], tmp_path, margin=5.5) == [("Oak.", "Sand."), ("Elm.", "Rock.")]
    assert sides([ROW], tmp_path, margin=5.6) == [("Oak.", "Sand.")]


@given(
    scores=st.lists(st.sampled_from([-2.0, 0.0, 0.25, 1.0, 3.0]), min_size=1, max_size=7),
    most=st.integers(1, 4),
)
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_pairs_are_those_of_samples_with_these_rewards(
    scores: list[float], most: int, margin: float
) -> None:
    texts = [f"Answer {number}." for number in range(len(scores))]
    verdicts = [
        Verdict("p", number, text, True, False, score, None, RANKED_FUNCTION)
        for number, (text, score) in enumerate(zip(texts, scores, strict=True))
    ]
    pairing = Pairing(max_pairs_per_prompt=most, margin=margin)
    row = {"prompt": "Q", "completions": texts, "scores": scores}
    try:
        expected = ranked_pairs([Prompt("p", "Q")], verdicts, max_pairs_per_prompt=most, margin=margin)
    except UserError:
        expected = []
    rows = [row, ROW]  # the second row always has pairs
    pairs, _ = pairs_of_rows(rows, pairing=pairing)
    found = [pair for pair in pairs if pair.prompt == "Q"]
    assert [(pair.chosen, pair.rejected) for pair in found] == [
        (pair.chosen, pair.rejected) for pair in expected
    ]


def test_ties_and_pairs_below_the_margin_are_counted_and_said(tmp_path: Path) -> None:
    rows = [
        ROW,
        {"prompt": "Q", "completions": ["a", "b", "c", "d"], "scores": [5, 5, 5, 5]},
        {"prompt": "R", "completions": ["a", "b", "c", "d"], "scores": [9, 5, 5, 1]},
        {"prompt": "S", "completions": ["a", "b"], "scores": [5.1, 5]},
        {"prompt": "T", "completions": ["a"], "scores": [5]},
        {"prompt": "U", "completions": ["a", "a ", "b"], "scores": [5, 4, 1]},
    ]
    pairs, reading = pairs_and_reading(write(tmp_path, *rows), pairing=Pairing(margin=1.0))
    assert len(pairs) == 4 and reading.rows == 6
    assert reading.dropped == {"no two of its completions may be paired by their scores": 3}
    assert reading.sentences[1:] == [
        "6 rows: rated completions, the best paired with the worst, the second best with the second worst, and so on (pairs in all: 4)",
        "1 row: completions that repeat another of their row are left out (1 in all)",
        "2 rows: pairs of equal scores are left out (3 in all)",
        "1 row: pairs of scores that differ by less than pair.margin 1 are left out (1 in all)",
    ]


def test_rows_without_any_pair_are_refused_saying_why(tmp_path: Path) -> None:
    row = {"prompt": "Q", "completions": ["a", "b"], "scores": [5.5, 5]}
    with pytest.raises(
        UserError,
        match=r"1 rated rows: pairs of .* less than pair\.margin 1 are left out \(1 in all\)\. Lower pair\.margin",
    ):
        sides([row], tmp_path, margin=1.0)
    with pytest.raises(UserError, match="none has two completions"):
        sides([{"prompt": "Q", "completions": ["a"], "scores": [5]}], tmp_path)


@pytest.mark.parametrize(
    "own",
    [
        {"completions": ["Rock.", "Oak."], "ranks": [2, 1]},
        {"completions": ["Rock.", "Oak."], "scores": [2, 10], "prompt": None, "messages": ASKED},
        {"completions": ["Rock.", "Oak."], "scores": [2, 10], "prompt": [], "conversations": [{"from": "human", "value": "Name a tree."}]},
        {"completions": ["Rock.", "Oak."], "rank": [3, 1], "scores": None},
        {"completions": [[{"role": "assistant", "content": text}] for text in ("Rock.", "Oak.")], "scores": [0, 1]},
        {"completions": [{"role": "assistant", "content": text} for text in ("Rock.", "Oak.")], "scores": [0, 1]},
        {"completions": [{"from": "gpt", "value": text} for text in ("Rock.", "Oak.")], "scores": [0.0, 1.0]},
        {"completions": [[*ASKED, {"role": "assistant", "content": text}] for text in ("Rock.", "Oak.")], "scores": [0, 1]},
        {"completions": [[{"from": "gpt", "value": text}] for text in ("Rock.", "Oak.")], "scores": [0, 1]},
        {"completions": [{"response": "Rock.", "overall_score": 2.0}, {"response": "Oak.", "overall_score": 8.5}]},
        {"completions": [{"response": "Rock.", "rank": 2, "model": "m"}, {"response": "Oak.", "rank": 1, "model": "n"}]},
        {"completions": [{"text": "Rock."}, {"text": "Oak."}], "scores": [1, 2]},
    ],
)  # fmt: skip
def test_completions_and_their_scores_are_read_in_every_form(own: dict[str, Any]) -> None:
    ((pair,), reading) = pairs_of_rows([{"prompt": ASKED, **own, "prompt_id": "q"}])
    assert (pair.prompt_id, pair.prompt, pair.chosen, pair.rejected) == ("q", ASKED, "Oak.", "Rock.")
    assert any("(pairs in all: 1)" in words for words in reading.mapped)
    assert set(reading.ignored) <= {"completions[].model"}


def test_ultrafeedbacks_own_rows_have_their_prompt_as_instruction() -> None:
    row = {
        "instruction": "Name a tree.",
        "source": "x",
        "completions": [{"response": "Rock.", "overall_score": 2}, {"response": "Oak.", "overall_score": 9}],
    }
    ((pair,), reading) = pairs_of_rows([row])
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Name a tree.", "Oak.", "Rock.")
    assert reading.ignored == ("source",)


TWO = {"prompt": "Q", "completions": ["a", "b"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**TWO, "scores": [1]}, "has 2 `completions` and 1 `scores`"),
        ({**TWO, "ranks": [1, 2, 3]}, "has 2 `completions` and 3 `ranks`"),
        ({**TWO, "scores": 5}, "`scores` 5: must be a list"),
        ({**TWO, "scores": [1, None]}, "`scores` has None: each score must be a finite number"),
        ({**TWO, "scores": [1, math.nan]}, "`scores` has nan"),
        ({**TWO, "scores": [math.inf, 1]}, "`scores` has inf"),
        ({**TWO, "scores": [1, "2"]}, "`scores` has '2'"),
        ({**TWO, "scores": [True, False]}, "`scores` has True"),
        ({**TWO, "scores": [1, 2], "ranks": [1, 2]}, "found `scores` and `ranks`; keep one"),
        ({**TWO, "ranks": [0, 1]}, "`ranks` .*whole numbers, of which 1 is the best"),
        ({**TWO, "ranks": [2, 3]}, "`ranks` .*of which 1 is the best"),
        ({**TWO, "ranks": [1, 1.5]}, "`ranks` .*whole numbers"),
        ({**TWO, "completions": ["a", 5], "scores": [1, 2]}, "a completion is 5: it must be a text or messages"),
        ({"completions": ["a", "b"], "scores": [1, 2]}, "lacks `prompt`"),
        ({"prompt": "", "completions": ["a", "b"], "scores": [1, 2]}, "lacks `prompt`"),
        ({**TWO, "completions": [{"response": "a"}, {"response": "b"}]}, "one score or rank each; found none"),
        (
            {**TWO, "completions": [{"response": "a", "overall_score": 1, "fine-grained_score": 2.0}] * 2},
            "found `overall_score` and `fine-grained_score`; keep one",
        ),
        ({**TWO, "completions": [{"response": "a", "score": 1}] * 2, "scores": [1, 2]}, "found `scores` and `score`"),
        ({**TWO, "completions": [{"response": "a", "score": 1}, {"response": "b"}]}, "some completions have `score`"),
        ({**TWO, "completions": [{"response": "a", "score": "8"}] * 2}, "`score` has '8'"),
        ({**TWO, "completions": [{"reply": "a", "score": 1}] * 2}, "has `reply`, `score`; it needs its text under"),
        ({**TWO, "completions": [{"text": "a", "output": "b", "score": 1}] * 2}, "needs its text under one of"),
        ({"prompt": "Q", "completions": [], "scores": []}, "lacks `chosen`"),
    ],
)  # fmt: skip
def test_ratings_that_do_not_fit_are_refused_by_row(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"rows, row 1: .*{message}"):
        pairs_of_rows([ROW, row])


def test_scores_of_parquet_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{**ROW, "scores": [1.0, math.nan, 2.0, 3.0]}]), path
    )
    with pytest.raises(UserError, match=r"mine\.parquet:1: `scores` has nan"):
        pairs_and_reading(path)


def recipe(file: Path, *own: str) -> Recipe:
    return tiny(Path("runs"), "sft=null", f"data={{pairs: {file}, held_out: 0}}", *own)


def test_a_recipes_pair_block_holds_for_rated_rows(tmp_path: Path) -> None:
    path = write(tmp_path, ROW)
    assert len(Sources(recipe(path)).pairs()) == 2
    for own in ("pair.margin=5.6", "pair.max_pairs_per_prompt=1"):
        assert [pair.chosen for pair in Sources(recipe(path, own)).pairs()] == ["Oak."]


def test_a_margin_beside_ready_pairs_is_refused_by_row(tmp_path: Path) -> None:
    path = write(tmp_path, ROW, {"prompt": "Q", "chosen": "a", "rejected": "b"})
    with pytest.raises(
        UserError, match=r"mine\.jsonl:2: pair\.margin chooses among rated completions.*remove it"
    ):
        Sources(recipe(path, "pair.margin=0.5")).readings()
    assert len(Sources(recipe(path)).pairs()) == 3


def test_a_margin_beside_labelled_rows_is_refused() -> None:
    with pytest.raises(UserError, match="labelled rows are taken as they are: remove it"):
        tiny(
            Path("runs"),
            "data={feedback: x.jsonl, held_out: 0}",
            "sft=null",
            "forget=null",
            "improve.loss=kto",
            "pair.margin=1",
        )
