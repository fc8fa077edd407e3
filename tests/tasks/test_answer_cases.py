"""The answers of the cases kept beside this project: each is judged as its row says."""

import json
from pathlib import Path
from typing import Any

import pytest

from allo.tasks.answers import verify_choice, verify_final_answer

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
FILES = ("answers_wrong.jsonl", "answers_right.jsonl")


def rows(file: str) -> list[dict[str, Any]]:
    if not (CASES / file).is_file():
        pytest.skip(f"../shared/cases/{file} is not here; tests/test_answer_*.py hold neighbours of its rows")
    return [json.loads(line) for line in (CASES / file).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("file", FILES)
def test_every_answer_of_the_cases_is_judged_as_its_row_says(file: str) -> None:
    wrong = []
    for row in rows(file):
        choices = row.get("choices")
        verify = verify_choice(row["text"], row["answer"], choices) if choices else None
        found = verify or verify_final_answer(row["text"], row["answer"])
        if found.correct != row["expected"]:
            wrong.append((row["label"], found))
    assert not wrong
