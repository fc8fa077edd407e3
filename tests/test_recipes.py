"""Every recipe that ships is one that allo reads, and one that its schema accepts."""

import json
from pathlib import Path

import jsonschema
import pytest

from allo.pipeline import NAMES, stages_of
from allo.recipe import load_recipe, save_recipe, schema

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted([*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("src/allo/demo/*.yaml")])


def test_recipes_ship() -> None:
    assert {"allo.yaml", "dpo.yaml"} <= {path.name for path in SHIPPED}
    assert any(path.parent.name == "recipes" for path in SHIPPED)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_recipe_parses_and_round_trips(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    (tmp_path / "saved.yaml").write_text(save_recipe(recipe))
    assert load_recipe(tmp_path / "saved.yaml") == recipe
    assert {stage.name for stage in stages_of(recipe)} <= set(NAMES)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_schema_accepts_a_shipped_recipe(path: Path) -> None:
    jsonschema.validate(json.loads(load_recipe(path).model_dump_json()), schema())


def test_the_schema_refuses_what_the_recipe_refuses() -> None:
    fields = json.loads(load_recipe(SHIPPED[0]).model_dump_json()) | {"imprvoe": None}
    with pytest.raises(jsonschema.ValidationError, match="imprvoe"):
        jsonschema.validate(fields, schema())


def test_recipes_have_names_of_their_own() -> None:
    names = [load_recipe(path).name for path in SHIPPED]
    assert len(names) == len(set(names))
