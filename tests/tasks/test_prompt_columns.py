"""Columns of a user's rows that reach a function: kept as they stand, whatever the kind of file."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allo.errors import UserError
from allo.tasks.prompts import PromptSource, prompts_and_reading

ROWS: list[dict[str, Any]] = [
    {"prompt": "2+2?", "answer": 4.5, "tests": [{"in": "a b c", "out": "d"}], "id": 7},
    {"prompt": "3+3?", "answer": 6.0, "choices": "none", "solution": ["x"], "level": "hard one", "id": 8},
]
COLUMNS = [{key: value for key, value in row.items() if key != "prompt"} for row in ROWS]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        names = dict.fromkeys(key for row in rows for key in row)
        pq.write_table(pa.Table.from_pylist([{key: row.get(key) for key in names} for row in rows]), path)
        return path
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.invariant("Every column of a user's rows reaches a function unchanged.")
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_a_function_gets_every_column_as_it_stands(tmp_path: Path, name: str) -> None:
    source = PromptSource(file=written(tmp_path / name, ROWS), for_function=True)
    prompts, reading = prompts_and_reading(source)
    assert [prompt.columns for prompt in prompts] == COLUMNS
    assert [prompt.answer for prompt in prompts] == ["4.5", "6.0"] and [prompt.id for prompt in prompts] == [
        "7",
        "8",
    ]
    assert reading.ignored == () and [prompt.solution for prompt in prompts] == [None, None]


def test_a_hub_set_and_a_task_of_ones_own_give_their_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "allo.tasks.prompts.hub_rows",
        lambda hub, split, **_: ((n, f"{hub}:{n}", row) for n, row in enumerate(ROWS)),
    )
    (tmp_path / "own.py").write_text(f"def load(split, *, folder=None):\n    return {ROWS!r}\n")
    for origin in ({"hub": "some/set"}, {"task": f"{tmp_path / 'own.py'}:load"}):
        prompts, _ = prompts_and_reading(PromptSource(**origin, for_function=True))  # type: ignore[arg-type]
        assert [prompt.columns for prompt in prompts] == COLUMNS


def test_without_a_function_columns_are_ignored_and_named(tmp_path: Path) -> None:
    rows = [{"prompt": "2+2?", "answer": "4", "level": "hard one"}]
    prompts, reading = prompts_and_reading(PromptSource(file=written(tmp_path / "rows.jsonl", rows)))
    assert prompts[0].columns is None and reading.ignored == ("level",)


def test_answers_in_letters_and_worked_solutions_stay_as_they_are(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a?", "answer": "B", "choices": ["one", "two"]},
        {"prompt": "b?", "answer": "so 5\n#### 5", "options": ["5"]},
    ]
    prompts, reading = prompts_and_reading(
        PromptSource(file=written(tmp_path / "rows.jsonl", rows), for_function=True)
    )
    assert [prompt.columns["answer"] for prompt in prompts if prompt.columns] == ["B", "so 5\n#### 5"]
    assert not reading.mapped


@pytest.mark.parametrize("name", ["prompts", "completions", "trainer_state", "log_metric"])
def test_a_column_named_as_another_argument_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "rows.jsonl", [{"prompt": "a?", name: 1}])
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: `{name}` is the name of an argument"):
        prompts_and_reading(PromptSource(file=path, for_function=True))
    assert prompts_and_reading(PromptSource(file=path))[0][0].columns is None
