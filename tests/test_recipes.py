"""Every recipe that ships is one that allo reads, and one that its schema accepts."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from allo.compare.methods import chosen
from allo.compare.trials import RATE, Purpose, Trial
from allo.compare.tuning import next_trials, tuned
from allo.pipeline import NAMES, stages_of
from allo.recipe import load_recipe, save_recipe, schema

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted([*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("src/allo/demo/*.yaml")])

COMPARISONS = [path for path in SHIPPED if load_recipe(path).compare]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


def test_recipes_ship() -> None:
    assert {"allo.yaml", "dpo.yaml"} <= {path.name for path in SHIPPED}
    assert any(path.parent.name == "recipes" for path in SHIPPED)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_recipe_parses_and_round_trips(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    (tmp_path / "saved.yaml").write_text(save_recipe(recipe))
    assert load_recipe(tmp_path / "saved.yaml") == recipe
    assert {stage.name.rpartition("/")[2] for stage in stages_of(recipe)} <= {*NAMES, "begin"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_schema_accepts_a_shipped_recipe(path: Path) -> None:
    jsonschema.validate(json.loads(load_recipe(path).model_dump_json()), schema())


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.name)
def test_every_method_that_a_recipe_compares_makes_a_recipe(path: Path) -> None:
    base = load_recipe(path)
    assert base.compare is not None
    methods = {
        method.name: method
        for names in (None, list(base.compare.methods))
        for method in chosen(base.compare, names)
    }
    assert base.compare.reference in methods
    for method in methods.values():
        for settings in ({}, *method.settings):
            for purpose in PURPOSES:
                made = Trial(method, {RATE: 1.0, **settings}, 0, purpose).recipe(base)
                assert stages_of(made)[-1].name == "report", method.name


@pytest.mark.parametrize("best", [(0.5, 4), (1.6, 12), (5.0, 4)])
def test_methods_with_many_passes_are_tuned_over_one_grid_of_rates_and_passes(
    best: tuple[float, int],
) -> None:
    compare = load_recipe(ROOT / "recipes" / "lab_passes.yaml").compare
    assert compare is not None
    passes = "improve.training.num_train_epochs"
    grids = {}
    for method in chosen(compare, None):
        tried: dict[str, Trial] = {}

        def at(trial: Trial, begins: int = method.changes[passes]) -> tuple[float, int]:
            return trial.settings[RATE], trial.settings.get(passes, begins)

        def result(trial: Trial, at=at, tried=tried) -> dict[str, Any] | None:
            right = int(at(trial) == best)
            validation = {"sampled": {"correct": [right], "of": 1}, "prompts": ["p"]}
            return {"sets": {"validation": validation}} if trial.name in tried else None

        while wave := next_trials(method, compare, result):
            tried |= {trial.name: trial for trial in wave}
        grids[method.name] = sorted((*at(trial), trial.seed) for trial in tried.values())
        taken = Trial(method, tuned(method, compare, result), 0, "test")
        assert at(taken) == best
    assert {"allo", "own_samples", "rft_long", "rloo_long"} < set(grids)
    expected = [
        (rate, passes, seed) for rate in compare.rates for passes in (4, 12) for seed in compare.tuning_seeds
    ]
    assert all(grid == expected for grid in grids.values())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_command_in_a_recipes_comment_gives_a_recipe(path: Path) -> None:
    for command in re.findall(r"^#   (allo (?:.*\\\n#)*.*)$", path.read_text(), re.MULTILINE):
        _, verb, recipe, *options = shlex.split(command.replace("\\\n#", " "))
        assert verb in ("run", "compare") and ROOT / recipe == path
        load_recipe(path, [value for key, value in pairwise(options) if key == "--set"])


def test_the_study_of_weight_selection_differs_in_its_weights_alone() -> None:
    base = load_recipe(ROOT / "recipes" / "study_weight_selection.yaml")
    assert base.compare is not None
    made = {
        method.name: Trial(method, {RATE: 1.0}, 0, "test").recipe(base)
        for method in chosen(base.compare, None)
    }
    weights = {
        name: (one.locate.criterion if one.locate else None, one.improve.density)
        for name, one in made.items()
        if one.improve
    }
    assert weights == {
        "top": ("warmup", 0.1),
        "last": ("last", 0.1),
        "random": ("random", 0.1),
        "full": (None, 1.0),
    }
    rest = []
    for one in made.values():
        assert one.forget is None and one.improve and (one.improve.keep, one.improve.loss) == (1.0, "dpo")
        fields = one.model_dump(mode="json", exclude={"locate"})
        del fields["improve"]["density"], fields["evaluate"]["start"]
        rest.append(fields)
    assert all(fields == rest[0] for fields in rest)


def test_the_schema_refuses_what_the_recipe_refuses() -> None:
    fields = json.loads(load_recipe(SHIPPED[0]).model_dump_json()) | {"imprvoe": None}
    with pytest.raises(jsonschema.ValidationError, match="imprvoe"):
        jsonschema.validate(fields, schema())


def test_recipes_have_names_of_their_own() -> None:
    names = [load_recipe(path).name for path in SHIPPED]
    assert len(names) == len(set(names))
