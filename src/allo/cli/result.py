"""The last lines of a run: its result, where its model is, and what can be done with it."""

from pathlib import Path

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
    for title, (head, *lines), remark in tables_of_run(run.path):
        table = Table(title=cell(title), title_justify="left", box=SIMPLE_HEAD)
        for number, name in enumerate(head):
            table.add_column(cell(name), justify="right" if number else "left")
        for line in lines:
            table.add_row(*map(cell, line))
        console.print(table)
        say(f"  {remark}.\n", wrapped=True)
    say(f"{result_of_run(run.path)}\nthe model is in {model}")
    delta, base = str(stage / "delta.safetensors"), _base(recipe, run)
    for purpose, command in uses(str(model), delta, run=str(run.path), base=base):
        # A line break would cut a command that is copied.
        console.print(cell(f"  {purpose}: {command}"), soft_wrap=True)


def _base(recipe: Recipe, run: RunFolder) -> str:
    """Return the place of the model that the run's delta belongs to: a GGUF file is converted again when it is applied."""
    from allo.models.start import read_start

    file = Path(recipe.model).expanduser()  # a shell expands no ~ in quotes
    return str(file) if recipe.sft is None and file.is_file() else read_start(run).model
