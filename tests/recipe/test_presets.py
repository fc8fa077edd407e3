"""Presets: values for keys that a recipe leaves out."""

from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.recipe import Recipe, load_recipe, save_recipe

BASE: dict[str, Any] = {"name": "r", "model": "m", "data": {"task": "gsm8k"}}


def test_the_published_form_is_one_key() -> None:
    paper, default = Recipe(**BASE, preset="paper"), Recipe(**BASE)
    assert (paper.locate and paper.locate.criterion, default.locate and default.locate.criterion) == (
        "warmup",
        "warmup_fused",
    )
    assert paper.score and (paper.score.scorer, paper.score.threshold, paper.score.marked) == (
        "implicit",
        0.5,
        "all",
    )


def test_a_recipes_own_keys_win_and_other_blocks_are_untouched() -> None:
    recipe = Recipe(
        **BASE, preset="paper", locate={"criterion": "gradient", "beta": 0.3}, score={"scorer": "edit"}
    )
    assert recipe.locate and (recipe.locate.criterion, recipe.locate.beta) == ("gradient", 0.3)
    assert recipe.score and (recipe.score.scorer, recipe.score.threshold) == ("edit", 0.5)
    assert recipe.improve == Recipe(**BASE).improve


def test_a_stage_that_is_left_out_stays_out() -> None:
    recipe = Recipe(**BASE, preset="paper", score=None, forget=None, locate=None, improve={"density": 1.0})
    assert recipe.score is None
    assert recipe.locate is None


def test_a_saved_recipe_reads_back_equal_and_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    recipe = Recipe(**BASE, preset="paper")
    (tmp_path / "saved.yaml").write_text(save_recipe(recipe))
    assert load_recipe(tmp_path / "saved.yaml") == recipe
    for unknown in ("papre", "[paper]", "{paper: true}"):
        (tmp_path / "bad.yaml").write_text(f"name: r\npreset: {unknown}\nmodel: m\ndata: {{task: gsm8k}}\n")
        with pytest.raises(UserError, match=r"bad\.yaml:2: preset"):
            load_recipe(tmp_path / "bad.yaml")
