"""The last lines of a run: its result, where its model is, and what can be done with it."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from allo.console import cell, console, say
from allo.files.artifacts import RunFolder
from allo.files.result_link import result_of, uses
from allo.files.rounds import trained
from allo.recipe import Recipe
from allo.stages.report import result_of_run, tables_of_run


def show_result(recipe: Recipe, run: RunFolder) -> None:
    """Print a finished run's result as tables and in one sentence, and the use of its model."""
    stage = trained(recipe, run)
    model = result_of(run, stage / "model")
    for title, (head, *lines) in tables_of_run(run.path):
        table = Table(title=cell(title), title_justify="left", box=SIMPLE_HEAD)
        for number, name in enumerate(head):
            table.add_column(cell(name), justify="right" if number else "left")
        for line in lines:
            table.add_row(*map(cell, line))
        console.print(table)
    say(f"{result_of_run(run.path)}\nthe model is in {model}")
    for purpose, command in uses(str(model), str(stage / "delta.safetensors"), run=str(run.path)):
        say(f"  {purpose}: {command}")
