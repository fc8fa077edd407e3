"""The last lines of a run: its result, where its model is, and what can be done with it."""

from allo.console import say
from allo.files.artifacts import RunFolder
from allo.files.result_link import result_of, uses
from allo.files.rounds import trained
from allo.recipe import Recipe
from allo.stages.report import result_of_run


def show_result(recipe: Recipe, run: RunFolder) -> None:
    """Print a finished run's result in one sentence, and the use of its model."""
    stage = trained(recipe, run)
    model = result_of(run, stage / "model")
    say(f"{result_of_run(run.path)}\nthe model is in {model}")
    for purpose, command in uses(str(model), str(stage / "delta.safetensors")):
        say(f"  {purpose}: {command}")
