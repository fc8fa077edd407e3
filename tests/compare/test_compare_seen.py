"""Training data that a method sees: derived from its recipe, shown in every table, and true of the scorers."""

from pathlib import Path
from typing import Any

import pytest

import synthetic_comparison as synthetic
from allo.compare.methods import chosen
from allo.compare.seen import sees
from allo.compare.summary import write_summary
from allo.compare.trials import RATE, Trial
from allo.recipe import Recipe, load_recipe
from allo.recipe.kinds import KINDS

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SOLUTIONS, RIGHT, WRONG, REWARDS = KINDS
EXPECTED = {
    "lab.yaml": {
        "sft": [SOLUTIONS],
        "rft": [RIGHT],
        "dpo": [RIGHT, WRONG],
        "lora_dpo": [RIGHT, WRONG],
        "npo": [WRONG],
        "rloo": [REWARDS],
        "grpo": [REWARDS],
        "allo": [SOLUTIONS, RIGHT, WRONG],  # its tokens are marked with solutions where no sample is right
        "allo_paper": [RIGHT, WRONG],
    },
    "lab_passes.yaml": {
        "allo": [SOLUTIONS, RIGHT, WRONG],
        "allo_random_mask": [SOLUTIONS, RIGHT, WRONG],
        "own_samples": [RIGHT, WRONG],
        "sft_long": [SOLUTIONS],
        "rft_long": [RIGHT],
        "rloo_long": [REWARDS],
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_method_sees_what_its_stages_read(name: str) -> None:
    base = load_recipe(RECIPES / name)
    assert base.compare is not None
    for method in chosen(base.compare, list(EXPECTED[name])):
        recipe = Trial(method, {RATE: 1.0}, 0, "test").recipe(base)
        assert sees(method.name, recipe.model_dump(mode="json")) == EXPECTED[name][method.name], method.name


def test_a_tuned_setting_counts() -> None:
    base = load_recipe(RECIPES / "lab.yaml")
    assert base.compare is not None
    (rft,) = chosen(base.compare, ["rft"])
    recipe = Trial(rft, {RATE: 1.0, "improve.loss": "sft"}, 0, "test").recipe(base)
    assert sees("rft", recipe.model_dump(mode="json")) == [SOLUTIONS]


def test_a_scorer_of_ones_own_may_read_all() -> None:
    recipe: dict[str, Any] = {"forget": {}, "score": {"scorer": "mine.py:mine"}}
    assert sees("allo", recipe) == [SOLUTIONS, RIGHT, WRONG]


def test_a_mask_without_data_shows_nothing_and_any_other_the_pairs() -> None:
    def with_criterion(criterion: str) -> list[str]:
        return sees("allo", {"locate": {"criterion": criterion}, "improve": {"loss": "sft"}})

    assert with_criterion("random") == with_criterion("last") == [SOLUTIONS]
    assert with_criterion("fisher") == [SOLUTIONS, RIGHT, WRONG]


def test_the_defaults_are_the_recipes() -> None:
    fields = {
        "name": "tiny",
        "model": "unused",
        "data": {"task": "planted_flaws"},
        "locate": {},
        "score": {},
        "forget": {},
        "evaluate": {"sets": {"test": {"task": "planted_flaws", "split": "test"}}},
    }
    for part in ({}, {"improve": {}}):
        whole = Recipe.model_validate(fields | part).model_dump(mode="json")
        assert sees("allo", fields | part) == sees("allo", whole)


def test_every_table_says_what_is_seen(tmp_path: Path) -> None:
    synthetic.write(tmp_path)
    summary = write_summary(tmp_path)
    assert summary["methods"]["start"]["sees"] == []
    lines = (tmp_path / "comparison.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| dpo |")]
    assert len(rows) == len(summary["sets"]) + 1
    assert all(line.split(" | ")[1] == "right samples, wrong samples" for line in rows)
