"""The plan of an evaluation that has no set of prompts: held-out pairs in place of completions."""

from pathlib import Path

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
