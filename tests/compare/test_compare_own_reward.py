"""Comparisons of runs that a function of the user's own judges: by right and wrong alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from allo.compare import compare
from allo.compare.problems import check_problems
from allo.compare.trials import RATE
from allo.errors import UserError
from allo.files.artifacts import read_json, write_jsonl
from allo.recipe import Recipe
from own_reward_setup import own_recipe, rows, write_inputs


def recipe_of(folder: Path, function: str, *more: str, **changes: Any) -> Recipe:
    held_out = rows()[-4:]
    write_jsonl(folder / "validation.jsonl", held_out[:2])
    write_jsonl(folder / "test.jsonl", held_out[2:])
    block = {
        "validation": {"file": str(folder / "validation.jsonl")},
        "rates": [1.0],
        "extra_trials": 0,
        "tuning_seeds": [9],
        "seeds": [0],
    }
    sets = {"test": {"file": str(folder / "test.jsonl")}}
    return own_recipe(
        folder,
        folder / "out",
        function,
        f"data={{file: {folder / 'rows.jsonl'}, limit: 8}}",
        f"evaluate.sets={json.dumps(sets)}",
        f"compare={json.dumps(block | changes)}",
        *more,
    )


def test_trials_are_compared_by_the_functions_right_and_wrong(tmp_path: Path) -> None:
    recipe = recipe_of(write_inputs(tmp_path), "right")
    comparison = compare(recipe, methods=["dpo"], seeds=[0])
    [tested] = (comparison.path / "trials" / "dpo").glob("test-*")
    found = read_json(tested)
    assert found["settings"] == {RATE: 1.0} and found["sets"]["test"]["prompts"] == [
        one["id"] for one in rows()[-2:]
    ]
    assert set(found["sets"]["test"]["greedy"]) <= {0, 1} and found["sets"]["test"]["sampled"]["of"] == 2
    assert str(tmp_path / "rewards.py") in found["files"]


def test_a_function_of_other_rewards_is_refused_before_the_first_trial(tmp_path: Path) -> None:
    recipe = recipe_of(write_inputs(tmp_path), "length")
    with pytest.raises(
        UserError, match=r"compare\.validation: judge\.function returned -0\.1, and a comparison is of right"
    ):
        check_problems(recipe)


def test_a_reward_between_that_only_samples_get_stops_the_comparison(tmp_path: Path) -> None:
    """The check's rows have no answer, so the function sees only empty completions there."""
    between = "\ndef between(completions, **_):\n    return [len(text) / 99 if text else 0 for text in completions]\n"
    write_inputs(tmp_path)
    (tmp_path / "rewards.py").write_text((tmp_path / "rewards.py").read_text() + between)
    recipe = recipe_of(tmp_path, "between", "pair.max_pairs_per_prompt=1")
    check_problems(recipe)
    with pytest.raises(UserError, match="gave an answer another reward than 0 and 1"):
        compare(recipe, methods=["dpo"], seeds=[0])
