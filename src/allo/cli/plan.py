"""`allo plan`: memory and time before anything runs. Imports are late."""

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from allo.cli.shared import Overrides
from allo.console import tell
from allo.errors import UserError
from allo.recipe import Recipe, load_recipe, read_recipe
from allo.recipe.starting import start_text
from allo.tasks.sources import Sources

Gpu = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory of a GPU, such as 24GB: advise on stages that do not fit."),
]
Teraflops = Annotated[
    float, typer.Option("--tflops", min=0.001, help="TFLOP/s that a GPU reaches in training.")
]
Link = Annotated[float, typer.Option(min=0.001, help="GB/s that a GPU sends to another in its node.")]
Network = Annotated[float, typer.Option(min=0.001, help="GB/s that a GPU sends to another node.")]
Rate = Annotated[
    float | None,
    typer.Option(
        "--tokens-per-second", min=0.001, help="Tokens that training reads a second: estimate the time."
    ),
]


def plan_command(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="A YAML recipe. Default: that of `allo init pairs`."),
    ] = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option(help="Another model: a hub id, a GGUF file, or a folder, also of config.json alone."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="No model yet, but its size, such as 8B: a typical Llama."),
    ] = None,
    gpu: Gpu = None,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs, of all nodes together.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines that the GPUs are in.")] = 1,
    teraflops: Teraflops = 400,
    link: Link = 300,
    network: Network = 50,
    rate: Rate = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Print how much memory each stage takes, and how long it takes; no weights are read."""
    from allo.plan.machine import Machine
    from allo.plan.memory import parse_size
    from allo.plan.size import folder_of, parse_weights, shape_of, words

    machine = Machine(gpus, nodes, teraflops * 1e12, link * 1e9, network * 1e9)
    limit = None if gpu is None else parse_size(gpu)
    if model is not None and size is not None:
        raise UserError("--model and --size: give one of them.")
    if recipe is None and model is None and size is None:
        raise UserError("give a recipe, --model MODEL, or a size such as --size 8B.")
    shape = None if size is None else shape_of(parse_weights(size))
    with contextlib.nullcontext() if shape is None else folder_of(shape) as folder:
        named = model if folder is None else str(folder)
        given = [*(overrides or []), *([] if named is None else [f"model={json.dumps(named)}"])]
        read = _recipe(recipe, given)
        tokens = None if recipe is None else _tokens(read)
        if rate is not None and tokens is None:
            raise UserError("--tokens-per-second: give a recipe, whose rows are counted.")
        from allo.plan import plan, table
        from allo.plan.several import Geometry
        from allo.plan.several_table import show_steps, steps_as_json

        planned = plan(read, limit=limit)
        geometry = Geometry.of(read)
    if as_json:
        steps = steps_as_json(planned, geometry, machine)
        tell(json.dumps(table.as_json(planned, gpus=gpus, tokens=tokens, rate=rate) | steps, indent=1))
        return
    if shape is not None:
        tell(table.wrapped(f"Planned for {size}, taken as {words(shape)}."))
    if recipe is None:
        tell(table.wrapped("No recipe was given: planned is that of `allo init pairs`."))
    table.show(planned, gpus=gpus)
    if gpus > 1:
        show_steps(planned, geometry, machine)
    _tell_times(read, tokens, rate)


def _tell_times(recipe: Recipe, tokens: dict[str, int] | str | None, rate: float | None) -> None:
    """Say how long the stages take, and the share of each."""
    from allo.pipeline.estimate import shares_said
    from allo.plan import table

    tell(table.times(tokens, rate))
    if isinstance(tokens, dict) and (shares := shares_said(recipe, tokens)):
        tell(f"\n{table.wrapped(shares)}")


def _recipe(path: Path | None, overrides: list[str]) -> Recipe:
    if path is not None:
        return load_recipe(path, overrides)
    return read_recipe(start_text("pairs"), path=Path("pairs.yaml"), overrides=overrides)


def _tokens(recipe: Recipe) -> dict[str, int] | str:
    """Return the tokens of each stage; the reason, if the rows cannot be read."""
    from allo.plan.duration import tokens_of

    try:
        return tokens_of(recipe, Sources(recipe))
    except UserError as error:
        return str(error)
