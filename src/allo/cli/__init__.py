"""The `allo` command; each sub-command imports its code when it is called."""

import errno
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from allo.cli.align import align_command
from allo.cli.deltas import app as delta_app
from allo.cli.environment import common, env_command
from allo.cli.evaluate import evaluate
from allo.cli.masks import app as mask_app
from allo.cli.plan import plan_command
from allo.cli.push import push_run
from allo.cli.rewriter import app as rewriter_app
from allo.cli.shared import PROCESSES, Overrides, Processes, Quiet, count_tokens
from allo.cli.start import init_command
from allo.cli.winrate import app as winrate_app
from allo.console import interrupted_at, say, tell
from allo.errors import UserError
from allo.pipeline import NAMES, run_all, run_one
from allo.pipeline.launch import RESUMES
from allo.pipeline.shared import follow
from allo.ranks import launched_ranks
from allo.ranks.joining import joined
from allo.recipe import load_recipe, schema
from allo.recipe.sharding import is_evaluated
from allo.tasks.sources import sources_read

INTERRUPTED = 130  # typer's exit code for Ctrl-C
# Places that cannot be written: the user can fix them, and a traceback would not help.
UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES),
    *(errno.EISDIR, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOENT),
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Align language models with low redundancy: few weights, few tokens, forget then learn.",
)
app.callback(help=app.info.help)(common)
app.add_typer(mask_app, name="mask")
app.add_typer(delta_app, name="delta")
app.add_typer(rewriter_app, name="rewriter")
app.add_typer(winrate_app, name="winrate")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")]


@app.command("run")
def run_recipe(
    recipe: RecipeFile,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    force: Annotated[str | None, typer.Option(metavar="STAGE", help="Do this stage again.")] = None,
    processes: Processes = None,
    shards: Annotated[
        int | None, typer.Option(min=1, help="Divide the model among this many processes: --set shards=N.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Run every stage of a recipe; finished stages are skipped."""
    overrides = [*(overrides or []), *([] if shards is None else [f"shards={shards}"])]
    read = load_recipe(recipe, overrides)
    folder = run_all(read, until=until, force=force, tokens=count_tokens)
    say(f"the run is in {folder.path}")
    if until is None and is_evaluated(read):
        from allo.cli.result import show_result

        show_result(read, folder)
    if until is None and read.shards is not None:
        say(
            f"no answers were measured: a sharded model does not sample. Serve its result and ask that: vllm serve {folder.model}"
        )
    resolved = folder.path / "recipe.yaml"
    if overrides and load_recipe(recipe) != load_recipe(resolved):
        say(
            f"  {recipe} is as it was, and without --set it names other settings. Go on with those of this run: "
            f"allo run {shlex.quote(str(resolved))}"
        )


app.command("align")(align_command)
app.command("init")(init_command)
app.command("push")(push_run)
app.command("env")(env_command)


def _add_stage(name: str) -> None:
    @app.command(name, help=f"Run the {name} stage alone.", hidden=name == "report")
    def run_stage(
        recipe: RecipeFile,
        overrides: Overrides = None,
        force: Annotated[bool, typer.Option("--force", help="Do it again.")] = False,
        quiet: Quiet = False,
    ) -> None:
        run_one(load_recipe(recipe, overrides), name, force=force)


for _name in NAMES:
    if _name == "evaluate":
        app.command(_name)(evaluate)
    elif _name != "report":
        _add_stage(_name)


@app.command("report")
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RECIPE | RUN...", help="A recipe, or folders of finished runs.")
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a report on several runs.")] = None,
) -> None:
    """Write the report of a recipe's run, or one report on several run folders."""
    if len(runs) == 1 and runs[0].suffix in (".yaml", ".yml"):
        run_one(load_recipe(runs[0], overrides), "report", force=True)
        return
    if len(runs) > 1 and out is None:
        raise UserError(
            f"{len(runs)} runs: give a folder for their report with --out FOLDER; otherwise it would replace "
            f"{runs[0]}'s own."
        )
    from allo.stages.report import write_report

    html, markdown = write_report(runs, out or runs[0])
    say(f"{html}\n{markdown}")


@app.command("check")
def check_recipe(
    recipe: RecipeFile,
    overrides: Overrides = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Mark tokens with brackets instead of colours, as off a terminal.")
    ] = False,
) -> None:
    """Check a recipe as `run` does before its first stage, and show what it trains on. Nothing is written."""
    read = load_recipe(recipe, overrides)
    sources = sources_read(read)
    from allo.plan.preview import preview
    from allo.plan.preview_page import show

    show(preview(read, sources), plain=plain)


app.command("plan")(plan_command)


@app.command("compare")
def compare_methods(
    recipe: RecipeFile,
    overrides: Overrides = None,
    methods: Annotated[str | None, typer.Option(help="Comma-separated names. Default: the recipe's.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Comma-separated numbers. Default: the recipe's.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time, which share the cores.")] = 1,
    processes: Processes = None,
    quiet: Quiet = False,
) -> None:
    """Compare methods: tuned alike, from the same samples, on the same problems; resumable."""
    from allo.compare import compare

    comparison = compare(
        load_recipe(recipe, overrides),
        methods=_listed(methods),
        seeds=[_number(seed) for seed in _listed(seeds) or []],
        jobs=jobs,
    )
    say(f"the comparison is in {comparison.path}")


def _listed(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def _number(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"--seeds: {text!r} is not a number; give numbers such as 0,1,2.")
    return int(text)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/demo"), quiet: Quiet = False
) -> None:
    """Align the bundled laboratory model: its start, plain DPO and ALLO, side by side."""
    from allo.cli.demo import run_demo

    say(f"report: {run_demo(out)}")


@app.command("schema")
def print_schema() -> None:
    """Print the recipe's JSON schema, for editors."""
    tell(json.dumps(schema(), indent=1))


def main() -> None:
    """Run the command; of several processes, rank 0 does, and the others do their share of its stages.

    Exit codes: 0 done, 2 bad input, 130 interrupted by Ctrl-C or SIGTERM (start again to resume).
    """
    interrupted_at.clear()
    if launched_ranks() < 2:  # a launcher ends several by SIGTERM, and speaks for them
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with joined() as group:
            if group is None or group.rank == 0:
                _command()
            sys.exit(group.follow(_follow))
    except KeyboardInterrupt:
        if launched_ranks() < 2:
            say(interrupted())
        sys.exit(INTERRUPTED)
    except UserError as error:  # of the processes themselves
        say(f"allo: {error}")
        sys.exit(2)


def interrupted() -> str:
    """Return the last words of a command that was interrupted."""
    place = f" ({', '.join(interrupted_at)})" if interrupted_at else ""
    return f"allo: interrupted{place}; {RESUMES}"


def _follow(work: dict[str, Any]) -> None:
    try:
        follow(work)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(_unwritable(error)) from error


def _unwritable(error: OSError) -> str:
    return (
        f"{error.filename or 'a file'}: {error.strerror}; nothing is half-written: "
        "fix this or give another path, and start again"
    )


def _command() -> NoReturn:
    """Run the command in this process."""
    try:
        app()
    except UserError as error:
        say(f"allo: {error}")
        sys.exit(2)
    except SystemExit as leaving:
        # With `--processes`, rank 0 has said it already.
        if leaving.code == INTERRUPTED and not any(word.startswith(PROCESSES) for word in sys.argv):
            say(interrupted())
        raise
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        say(f"allo: {_unwritable(error)}")
        sys.exit(2)
    sys.exit(0)
