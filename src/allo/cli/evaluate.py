"""`allo evaluate`: a recipe's stage or, with `--harness`, standard tasks on any model. Imports are late."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from allo.cli.shared import Processes, Quiet
from allo.console import say
from allo.errors import UserError
from allo.pipeline import run_one
from allo.recipe import load_recipe

Place = Annotated[
    Path | None,
    typer.Argument(
        metavar="RECIPE | RUN | MODEL", help="A recipe; with --harness also a run's folder, or a model's."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a recipe's key, such as evaluate.greedy=false."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Repeat the stage, even if it is finished.")]
Harness = Annotated[
    Literal["lm_eval"] | None, typer.Option(help="Measure standard tasks through EleutherAI's lm-eval.")
]
Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME", help="Tasks of lm-eval, or allo's own: allo_ecqa, allo_math and the like."
    ),
]
Base = Annotated[str | None, typer.Option(help="A model's folder or hub id, instead of MODEL.")]
DeltaPlace = Annotated[
    str | None, typer.Option(metavar="FILE", help="A delta to --base; also hf://OWNER/NAME.")
]
Start = Annotated[bool, typer.Option("--start", help="For a run: also measure its starting model.")]
Output = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="JSON to add the results to. Default: the run's 08-eval.json."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first problems of each task.")]
NumFewshot = Annotated[int | None, typer.Option(min=0, help="Examples shown. Default: the task's.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows computed together.")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Longest completion. Default: the task's; for allo's own tasks, the run's."),
]
Device = Annotated[str | None, typer.Option(help="Default: the run's, otherwise the first GPU or the CPU.")]
Dtype = Annotated[
    Literal["float32", "bfloat16"] | None, typer.Option(help="Default: that of the stored weights.")
]
IncludePath = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Your own task files in lm-eval's YAML.")
]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="allo's own tasks: local rows. Default: the run's, otherwise the hub."
    ),
]
ChatTemplate = Annotated[
    bool | None,
    typer.Option(
        "--apply-chat-template/--no-chat-template", help="Default: the run's `chat`, otherwise none."
    ),
]
PadToken = Annotated[str | None, typer.Option(help="Pad token for a tokenizer without one, such as its EOS.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")]

_OF_THE_STAGE = {"place", "overrides", "force", "processes", "quiet"}


def evaluate(
    context: typer.Context,
    place: Place = None,
    overrides: Overrides = None,
    force: Force = False,
    harness: Harness = None,
    tasks: Tasks = None,
    base: Base = None,
    delta: DeltaPlace = None,
    start: Start = False,
    output: Output = None,
    limit: Limit = None,
    num_fewshot: NumFewshot = None,
    batch_size: BatchSize = 8,
    max_new_tokens: MaxNewTokens = None,
    device: Device = None,
    dtype: Dtype = None,
    include_path: IncludePath = None,
    data_folder: DataFolder = None,
    chat: ChatTemplate = None,
    pad_token: PadToken = None,
    trust_remote_code: TrustRemoteCode = False,
    processes: Processes = None,
    quiet: Quiet = False,
) -> None:
    """Run the evaluate stage alone or, with --harness, standard tasks on a run's result or any model."""
    if harness is None:
        run_one(load_recipe(_recipe_of_the_stage(place, context), overrides), "evaluate", force=force)
        return
    if force:
        raise UserError("--force applies to the stage only: with --harness every task is measured again.")
    if (place is None) == (base is None):
        raise UserError("--harness measures one model: give either a recipe, run or model folder, or --base.")
    names = _names(tasks)
    from allo.harness.job import model_job, run_job, run_of
    from allo.harness.measure import HarnessSettings
    from allo.harness.tables import show

    settings = HarnessSettings(
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        include_path=include_path,
        data_folder=data_folder,
    )
    run = None if place is None else run_of(place, overrides)
    if run is None:
        _refuse_for_a_model(str(place or base), start, overrides)
        job = model_job(str(place or base), delta, settings, output=output, chat=chat, pad_token=pad_token)
    else:
        if delta is not None:
            raise UserError(f"{place}: a run has its own delta; for another one give --base and --delta.")
        if pad_token is not None:
            raise UserError(f"{place}: --pad-token is for a model; a run's recipe has `pad_token`.")
        job = run_job(*run, settings, start=start, output=output, chat=chat)
    show(job.do(names, dtype=dtype, device=device, trust_remote_code=trust_remote_code))
    say(f"the results are in {job.output}")


def _refuse_for_a_model(model: str, start: bool, overrides: list[str] | None) -> None:
    if start:
        raise UserError(f"{model}: --start is for a run, whose starting model allo knows.")
    if overrides:
        raise UserError(f"{model}: --set is for a recipe or a run; a model has no recipe.")


def _recipe_of_the_stage(place: Path | None, context: typer.Context) -> Path:
    """Return the recipe. Raises `UserError` without one, and for an option that the stage does not use."""
    alien = [option for name, option in _given(context).items() if name not in _OF_THE_STAGE]
    if place is None or alien:
        raise UserError(
            "allo evaluate: give a recipe to run its evaluate stage, or --harness lm_eval --tasks NAME,NAME and a model "
            f"to measure standard tasks{', which ' + alien[0] + ' is for' if alien else ''}."
        )
    return place


def _names(tasks: str | None) -> list[str]:
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if not names:
        raise UserError("--harness needs --tasks, such as --tasks gsm8k_cot,openbookqa.")
    return names


def _given(context: typer.Context) -> dict[str, str]:
    """Return the parameters given on the command line: their names and options."""
    return {
        param.name: param.opts[0]
        for param in context.command.params
        if param.name
        and (source := context.get_parameter_source(param.name))
        and source.name == "COMMANDLINE"
    }
