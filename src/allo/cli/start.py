"""`allo init`: a commented recipe to edit."""

from pathlib import Path
from typing import Annotated

import typer

from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import write_atomic
from allo.recipe import read_recipe
from allo.recipe.starting import ROWS_KEY, StartKind, reward_text, run_name, start_text
from allo.recipe.text import with_values
from allo.tasks.row_kinds import Kind, kind_of_rows

TAKES: dict[StartKind, tuple[Kind, ...]] = {
    "pairs": ("pairs", "rated"),
    "feedback": ("feedback",),
    "problems": ("problems",),
    "reward": ("prompts", "problems"),
}
"""The kinds of rows that each recipe takes."""


def init_command(
    kind: Annotated[StartKind, typer.Argument(help="The rows that you have.")],
    model: Annotated[str | None, typer.Option(help="A folder, a hub id or a GGUF file.")] = None,
    data: Annotated[str | None, typer.Option(help="The rows: a file, or a data set of the hub.")] = None,
    out: Annotated[Path | None, typer.Option(help="The recipe's file. Default: KIND.yaml.")] = None,
) -> None:
    """Write a short commented recipe to edit; for `reward`, also a reward function beside it."""
    out = out or Path(f"{kind}.yaml")
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out}: give the name of a recipe's file, such as {kind}.yaml.")
    written = {out: ""}
    values: dict[str, object] = {"name": run_name(out.stem)}
    if model is not None:
        values["model"] = model
    if data is not None:
        _check_kind(kind, data)
        values[f"data.{ROWS_KEY[kind]}"] = data
    if kind == "reward":
        function = out.with_suffix(".py")
        values["judge.function"] = f"{function}:reward"
        written[function] = reward_text()
    written[out] = with_values(start_text(kind), values)
    read_recipe(written[out], path=out)
    for path in written:
        if path.exists():
            raise UserError(
                f"{path}: is there already, and is not overwritten; give another name with --out."
            )
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
        say(f"{path}: written")
    say(f"edit it, then: allo check {out}, and allo run {out}")


def _check_kind(kind: StartKind, data: str) -> None:
    """Raise `UserError` if the rows are there and of another kind."""
    if not Path(data).expanduser().exists():
        return
    found = kind_of_rows(data)
    if found not in TAKES[kind]:
        fitting = next(name for name, kinds in TAKES.items() if found in kinds)
        raise UserError(f"{data}: has rows of the kind {found}: `allo init {fitting}` is for them.")
