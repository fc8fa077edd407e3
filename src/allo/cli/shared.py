"""The options and checks that sub-commands share."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from allo.console import show_no_progress, tell
from allo.errors import UserError
from allo.recipe import Recipe
from allo.tasks.sources import Sources

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as improve.density=0.2."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the model's own code to find its layers.")
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=show_no_progress,
        help="Show no progress: only warnings, problems and the result.",
    ),
]


def _launch(number: int | None) -> None:
    """Run this command in several processes, and leave with its exit code."""
    if number is None:
        return
    from allo.pipeline.launch import launch

    arguments = iter(sys.argv[1:])
    kept = [
        word
        for word in arguments
        if not (word.startswith(f"{PROCESSES}=") or (word == PROCESSES and next(arguments)))
    ]
    raise typer.Exit(launch(number, kept))


PROCESSES = "--processes"
Processes = Annotated[
    int | None,
    typer.Option(
        PROCESSES,
        min=1,
        callback=_launch,
        help="Share the work among this many processes, one a GPU, started by torchrun. The result does not depend on it.",
    ),
]
Profile = Annotated[
    Literal["compact", "interop"],
    typer.Option(help="Packed indices, or plain int32 ones for vLLM and TRL to map."),
]


def count_tokens(recipe: Recipe, sources: Sources) -> Mapping[str, int]:
    """Return the tokens of each stage, from which a run estimates its time."""
    from allo.plan.duration import tokens_of

    return tokens_of(recipe, sources)


def check_writable(out: Path) -> None:
    """Check before a long pass over weights that its file can be written, and make its folder."""
    if out.is_dir():
        raise UserError(f"{out}: a folder; give the name of a file to write.")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    part.touch()
    part.unlink()


def print_fields(path: str | Path, found: object) -> None:
    """Print the path, and each field of a dataclass on a line of its own."""
    tell(str(path))
    for key, value in vars(found).items():
        tell(f"  {key:<20} {value}")
