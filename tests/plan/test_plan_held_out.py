"""The plan of an evaluation that has no set of prompts: held-out pairs in place of completions."""

from pathlib import Path

from allo.plan.advice import advise
from allo.plan.inference import plan_evaluation
from allo.recipe import load_recipe
from tiny_run import LAB


def test_held_out_pairs_are_planned_in_place_of_completions(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: a\nmodel: {LAB}\nmax_length: 128\ndata: {{pairs: p.jsonl}}\n")
    planned = plan_evaluation(load_recipe(file))
    assert planned.load == "32 held-out pairs of 128 tokens a side"
    none = plan_evaluation(load_recipe(file, ["data.held_out=0"]))
    assert none.load == "no rows"
    assert planned.total > 1.1 * none.total


def test_held_out_rows_that_do_not_fit_are_read_in_smaller_batches(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: a\nmodel: {LAB}\nmax_length: 128\ndata: {{pairs: p.jsonl}}\n")
    recipe = load_recipe(file)
    planned = plan_evaluation(recipe)
    one = plan_evaluation(load_recipe(file, ["evaluate.batch_size=1"]))
    advised = advise(recipe, planned, limit=(planned.total + one.total) // 2)
    assert advised.plan is not None and advised.plan.load == "16 held-out pairs of 128 tokens a side"
    assert advised.settings == {"evaluate.batch_size": 32}
