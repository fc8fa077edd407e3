"""Rows that cannot be used: all are named together, or left out and counted, in every form of rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.files.rows import NAMED_ROWS, Reading
from allo.recipe.sources import Data, EvaluationSet
from allo.tasks.feedback import feedback_of_rows, read_feedback
from allo.tasks.pairs import completions_of_rows, pairs_and_reading, pairs_of_rows, wrong_of_rows
from allo.tasks.prompts import PromptSource, prompts_and_reading
from allo.tasks.row_kinds import kind_of_rows

Read = Callable[..., tuple[list[Any], Reading]]
PAIR = {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Rock."}
RATED = {"prompt": "Name a tree.", "completions": ["Oak.", "Rock."], "scores": [1.0, 0.0]}
LABELLED = {"prompt": "Name a tree.", "completion": "Oak.", "label": True}
PROBLEM = {"prompt": "2 + 2?", "answer": "4"}
CHAT = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "label": 0}


def problems(path: Path, *, skip_bad: bool = False) -> tuple[list[Any], Reading]:
    return prompts_and_reading(PromptSource(file=path, skip_bad=skip_bad))


FORMS: list[tuple[Read, Any, list[Any]]] = [
    (
        pairs_and_reading,
        PAIR,
        [{**PAIR, "chosen": ""}, {"prompt": "Q", "chosen": "a"}, {**PAIR, "chosen": 3}],
    ),
    (pairs_and_reading, RATED, [{**RATED, "scores": [1.0]}, {**RATED, "prompt": None}, {"prompt": "Q"}]),
    (read_feedback, LABELLED, [{**LABELLED, "completion": " "}, {**LABELLED, "label": "maybe"}, {}]),
    (read_feedback, CHAT, [{"messages": [], "label": 1}, {**CHAT, "messages": CHAT["messages"][:1]}, {}]),
    (problems, PROBLEM, [{**PROBLEM, "prompt": ""}, {"answer": "4"}, {**PROBLEM, "prompt": 5}]),
]
IDS = ["pairs", "rated", "feedback", "conversations", "problems"]


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(("read", "good", "bad"), FORMS, ids=IDS)
def test_all_bad_rows_are_named_at_once_or_left_out_and_counted(
    tmp_path: Path, read: Read, good: Any, bad: list[Any]
) -> None:
    rows = [good | {"id": f"{number}"} for number in range(2)]
    path = write(tmp_path, rows[0], *bad, '{"prompt": "cut', "[1]", rows[1])
    with pytest.raises(UserError) as refused:
        read(path)
    first, *listed, how = str(refused.value).splitlines()
    assert first == "5 of 7 rows cannot be used:" and "skip_bad: true" in how and "--skip-bad" in how
    assert [line.strip().split(": ")[0] for line in listed] == [f"{path}:{line}" for line in range(2, 7)]
    kind_of_rows(path)  # bad rows among the first do not hide the kind of the others
    found, reading = read(path, skip_bad=True)
    assert len(found) == 2 and reading.rows == 7
    (said,) = (each for each in reading.sentences if "dropped" in each)
    assert said.startswith("5 rows dropped: cannot be used, and `skip_bad` leaves them out; the first: ")
    assert str(path) in said


@pytest.mark.parametrize(("read", "good", "bad"), FORMS, ids=IDS)
def test_rows_that_are_all_bad_are_refused_in_any_case(
    tmp_path: Path, read: Read, good: Any, bad: list[Any]
) -> None:
    path = write(tmp_path, *bad * 3)
    for skip_bad in (False, True):
        with pytest.raises(UserError) as refused:
            read(path, skip_bad=skip_bad)
        assert str(refused.value).startswith(f"{path}:1: ") and "skip_bad" not in str(refused.value)
        assert str(refused.value).endswith("None of the 9 rows can be used.")


def test_of_many_bad_rows_the_first_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        pairs_and_reading(write(tmp_path, *[{**PAIR, "chosen": ""}] * 9, PAIR))
    assert str(refused.value).startswith("9 of 10 rows cannot be used:")
    assert f"({9 - NAMED_ROWS} more)" in str(refused.value)


def test_one_bad_row_is_named_with_the_way_around_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^.*mine.jsonl:2: `chosen` has no completion.*\n.*skip_bad: true"):
        pairs_and_reading(write(tmp_path, PAIR, {**PAIR, "chosen": ""}, PAIR))


def test_an_empty_cell_of_a_table_and_a_row_of_too_many_cells_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("prompt,chosen,rejected\nQ,,b\nQ,a,b,c\nQ,a,b\n")
    assert kind_of_rows(path) == "pairs"
    with pytest.raises(UserError, match=r"2 of 3 rows(?s:.)*:2: lacks `chosen`|mine.csv:3: 4 cells"):
        pairs_and_reading(path)
    found, reading = pairs_and_reading(path, skip_bad=True)
    assert [pair.chosen for pair in found] == ["a"] and sum(reading.dropped.values()) == 2


@pytest.mark.parametrize(
    ("read", "rows"),
    [
        (pairs_of_rows, [PAIR, {**PAIR, "chosen": ""}, 7]),
        (feedback_of_rows, [LABELLED, {**LABELLED, "label": "x"}, "row"]),
        (completions_of_rows, [{"prompt": "Q", "completion": "a"}, {"prompt": "Q"}, {"prompt": "", "completion": "a"}]),
        (wrong_of_rows, [PAIR, {**PAIR, "rejected": ""}, {**PAIR, "chosen": 4}]),
    ],
)  # fmt: skip
def test_bad_rows_in_memory_are_named_together(read: Read, rows: list[Any]) -> None:
    with pytest.raises(UserError) as refused:
        read(rows)
    assert str(refused.value).startswith("2 of 3 rows cannot be used:\n  rows, row ")
    assert "row 1" in str(refused.value) and "row 2" in str(refused.value)
    assert "skip_bad" not in str(refused.value)


@pytest.mark.parametrize("first", [0, 1])
def test_wrong_completions_of_several_kinds_are_refused_in_any_order(first: int) -> None:
    rows = [PAIR, {"prompt": "Q", "completion": "a"}]
    with pytest.raises(UserError, match=r"row [01] is a pair, and rows, row [01] a completion"):
        wrong_of_rows([rows[first], rows[1 - first]])


@pytest.mark.parametrize(
    "block",
    [
        {"task": "gsm8k", "skip_bad": True},
        {"mixture": [{"file": "a.jsonl"}, {"hub": "a/b"}], "skip_bad": True},
    ],
)
def test_the_key_is_refused_where_no_rows_of_yours_are_read(block: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`skip_bad` leaves nothing out of a"):
        Data.model_validate(block)


def test_the_key_stands_beside_any_rows_and_changes_no_earlier_recipe() -> None:
    assert EvaluationSet(file=Path("a.jsonl"), skip_bad=True).skip_bad
    assert "skip_bad" not in Data(pairs=Path("a.jsonl")).model_dump()
