"""The trial of reward functions on a few rows: its values are shown, and its errors name the function and the set."""

from pathlib import Path

import pytest

from allo.errors import UserError
from allo.files.records import Prompt
from allo.recipe import load_recipe
from allo.recipe.judge import Judge
from allo.tasks.own_rewards import TRIED, try_functions

LENGTH = "[float(len(each)) for each in completions]"


def judge_of(folder: Path, returned: str, arguments: str = "completions, **columns") -> Judge:
    (folder / "own.py").write_text(f"def f({arguments}):\n    return {returned}\n")
    recipe = folder / "r.yaml"
    recipe.write_text(
        f"name: r\nmodel: m\ndata: {{file: x.jsonl}}\njudge: {{function: {folder / 'own.py'}:f}}\n"
    )
    return load_recipe(recipe).judge


def prompts(answer: str | None = None) -> list[Prompt]:
    return [Prompt(f"p{place}", "Ask " + "!" * place, answer=answer, columns={}) for place in range(6)]


def ids(prompt: Prompt, text: str) -> list[int]:
    return list(range(len(text)))


def tried(folder: Path, returned: str, *, answer: str | None = None, before: bool = False) -> list[str]:
    found = try_functions(judge_of(folder, returned), {"data": prompts(answer)}, None if before else ids)
    return found["data"]


def test_the_rewards_of_an_empty_and_of_another_answer_are_shown(tmp_path: Path) -> None:
    (said,) = tried(tmp_path, LENGTH)
    assert said.endswith(
        "own.py:f was tried on the first 4 rows, and returned for an empty answer 0, 0, 0, 0; the prompt repeated 4, 5, 6, 7"
    )
    (said,) = tried(tmp_path, LENGTH, answer="12")
    assert "an empty answer 0, 0, 0, 0; the row's own answer " in said and "repeated" not in said
    (said,) = tried(tmp_path, LENGTH, before=True)  # no tokenizer yet, so no ids but those of nothing
    assert said.endswith("an empty answer 0, 0, 0, 0")


def test_ids_are_those_of_the_answer(tmp_path: Path) -> None:
    judge = judge_of(tmp_path, "[float(len(each)) for each in completion_ids]", "completion_ids, **columns")
    (said,) = try_functions(judge, {"data": prompts()}, ids)["data"]
    assert said.endswith("the prompt repeated 4, 5, 6, 7")


@pytest.mark.parametrize("before", [True, False])
def test_no_verdict_on_anything_is_said(tmp_path: Path, before: bool) -> None:
    values, warning = tried(tmp_path, "[None for _ in completions]", before=before)
    assert "None, None, None, None" in values and "the run stops" in warning
    (said,) = tried(tmp_path, "[None if not each else 1.0 for each in completions]")
    assert "None" in said and "repeated 1, 1, 1, 1" in said


@pytest.mark.parametrize(
    ("returned", "arguments", "error"),
    [
        ("[1.0]", "completions, **columns", "returned 1 rewards for 4 completions"),
        ("None", "completions, **columns", "returned a NoneType"),
        ("1.0", "completions, **columns", "returned a float"),
        ("['high' for _ in completions]", "completions, **columns", "returned 'high'"),
        ("[float('nan') for _ in completions]", "completions, **columns", "returned nan"),
        ("[each.missing for each in completions]", "completions, **columns", "AttributeError"),
        ("[1.0 for _ in completions]", "completions, verdict", "missing a required argument: 'verdict'"),
        ("[1.0 for _ in texts]", "texts", "missing a required argument: 'texts'"),
    ],
)
def test_errors_name_the_function_and_the_rows_before_a_model_is_read(
    tmp_path: Path, returned: str, arguments: str, error: str
) -> None:
    judge = judge_of(tmp_path, returned, arguments)
    with pytest.raises(UserError) as raised:
        try_functions(judge, {"data": prompts()}, None)
    said = str(raised.value)
    assert error in said and "own.py:f" in said and "first rows of data, with an empty answer" in said


def test_only_a_few_rows_are_asked_and_each_set_is_named(tmp_path: Path) -> None:
    judge = judge_of(tmp_path, LENGTH)
    found = try_functions(judge, {"data": prompts(), "evaluate.sets.own": prompts()[:1]}, ids)
    assert found["data"][0].count(", ") == 2 * (TRIED - 1) + 1
    assert (
        "the first row, and returned for an empty answer 0; the prompt repeated 4"
        in found["evaluate.sets.own"][0]
    )
    assert try_functions(Judge(), {"data": prompts()}, ids) == {}
