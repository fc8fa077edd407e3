"""The `allo` command; each sub-command imports its code when it is called."""

import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from allo.cli.evaluate import evaluate
from allo.cli.push import push_run
from allo.cli.rewriter import app as rewriter_app
from allo.cli.winrate import app as winrate_app
from allo.console import say, tell
from allo.errors import UserError
from allo.pipeline import NAMES, run_all, run_one
from allo.recipe import load_recipe, schema
from allo.recipe.granularity import WEIGHT
from allo.recipe.locate import KINDS
from allo.tasks.sources import sources_read

if TYPE_CHECKING:
    from allo.weights.param_mask import MaskRow

INTERRUPTED = 130  # typer's exit code for Ctrl-C
# Places that cannot be written: the user can fix them, and a traceback would not help.
UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES),
    *(errno.EISDIR, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOENT),
}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Align language models with low redundancy: few weights, few tokens, forget then learn.",
)
mask_app = typer.Typer(no_args_is_help=True, help="Masks: which weights may change.")
delta_app = typer.Typer(no_args_is_help=True, help="Deltas: only the weights that alignment changed.")
app.add_typer(mask_app, name="mask")
app.add_typer(delta_app, name="delta")
app.add_typer(rewriter_app, name="rewriter")
app.add_typer(winrate_app, name="winrate")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")]
DeltaPlace = Annotated[
    str,
    typer.Argument(help="A delta file, or hf://OWNER/NAME on the hub, with @REVISION and /FILE if needed."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as improve.density=0.2."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the model's own code to find its layers.")
]
Profile = Annotated[
    Literal["compact", "interop"],
    typer.Option(help="Packed indices, or plain int32 ones for vLLM and TRL to map."),
]


@app.command("run")
def run_recipe(
    recipe: RecipeFile,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    force: Annotated[str | None, typer.Option(metavar="STAGE", help="Do this stage again.")] = None,
) -> None:
    """Run every stage of a recipe; finished stages are skipped."""
    read = load_recipe(recipe, overrides)
    folder = run_all(read, until=until, force=force)
    say(f"the run is in {folder.path}")
    if until is None:
        from allo.cli.result import show_result

        show_result(read, folder)


app.command("push")(push_run)


def _add_stage(name: str) -> None:
    @app.command(name, help=f"Run the {name} stage alone.", hidden=name == "report")
    def run_stage(
        recipe: RecipeFile,
        overrides: Overrides = None,
        force: Annotated[bool, typer.Option("--force", help="Do it again.")] = False,
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


@app.command("plan")
def plan_recipe(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of a GPU, such as 24GB: advise on stages that do not fit."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Print how much memory each stage takes; no weights are read."""
    from allo.plan.memory import parse_size

    limit = None if gpu is None else parse_size(gpu)
    read = load_recipe(recipe, overrides)
    from allo.plan import plan
    from allo.plan import table as show

    planned = plan(read, limit=limit)
    if as_json:
        tell(json.dumps(show.as_json(planned, gpus=gpus), indent=1))
    else:
        show.show(planned, gpus=gpus)


@app.command("compare")
def compare_methods(
    recipe: RecipeFile,
    overrides: Overrides = None,
    methods: Annotated[str | None, typer.Option(help="Comma-separated names. Default: the recipe's.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Comma-separated numbers. Default: the recipe's.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the cores.")] = 1,
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
def demo_command(out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/demo")) -> None:
    """Align the bundled laboratory model: SFT, plain DPO and ALLO, side by side."""
    from allo.cli.demo import run_demo

    say(f"report: {run_demo(out)}")


@app.command("schema")
def print_schema() -> None:
    """Print the recipe's JSON schema, for editors."""
    tell(json.dumps(schema(), indent=1))


@mask_app.command("from-checkpoints")
def mask_from_checkpoints(
    base: Annotated[Path, typer.Argument(help="Folder with safetensors.")],
    tuned: Annotated[Path, typer.Argument(help="The same model, tuned.")],
    density: Annotated[float, typer.Option(help="Share of all weights to select, in (0, 1].")],
    out: Annotated[Path, typer.Option(help="The mask's file.")],
    granularity: Annotated[
        str, typer.Option(help="weight, or whole groups: row, column, block(n).")
    ] = WEIGHT,
    include: Annotated[
        list[str] | None, typer.Option(help=f"Select only here: {', '.join(KINDS)}, or a pattern of names.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Select nothing here; as --include.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    profile: Profile = "compact",
) -> None:
    """Select the weights that differ most between two checkpoints."""
    _check_writable(out)
    from allo.weights.mask_files import mask_from_checkpoints

    def kinds() -> dict[str, set[str]]:
        from allo.models.load import tensor_kinds  # it takes transformers, and few masks need it

        return tensor_kinds(base, trust_remote_code=trust_remote_code)

    mask = mask_from_checkpoints(
        base,
        tuned,
        density=density,
        out=out,
        granularity=granularity,
        profile=profile,
        include=include or [],
        exclude=exclude or [],
        kinds=kinds,
    )
    say(f"{out}: {mask.num_selected} of {mask.num_weights} weights, density {mask.density:.6g}")


@mask_app.command("info")
def mask_info(file: Annotated[Path, typer.Argument(help="A mask.")]) -> None:
    """Print a mask's density by layer and kind of tensor, and the experts with most selected weights."""
    from allo.weights.experts import expert_rows
    from allo.weights.param_mask import ParamMask

    mask = ParamMask.load(file)
    for key, value in mask.metadata.items():
        tell(f"{key:<18} {value}")
    tell(f"{'selected':<18} {mask.num_selected} of {mask.num_weights} ({mask.density:.6g})\n")
    tell(f"{'layer':<6} {'kind':<28} {'selected':>12} {'of':>14} {'density':>9}")
    _print_rows(mask.statistics())
    if experts := expert_rows(mask.shapes, mask.indices):
        holding = sum(row.selected > 0 for row in experts)
        tell(f"\n{holding} of {len(experts)} experts hold selected weights; those with most:")
        _print_rows(sorted(experts, key=lambda row: -row.selected)[:10])


def _print_rows(rows: "list[MaskRow]") -> None:
    for row in rows:
        density = row.selected / max(row.total, 1)
        tell(f"{row.layer:<6} {row.kind:<28} {row.selected:>12} {row.total:>14} {density:>9.5f}")


@delta_app.command("extract")
def delta_extract(base: Path, tuned: Path, out: Path, profile: Profile = "compact") -> None:
    """Write the changes from BASE to TUNED as one small file."""
    _check_writable(out)
    from allo.delta import extract

    _print_fields(out, extract(base, tuned, out, profile=profile))


@delta_app.command("apply")
def delta_apply(base: Path, delta: DeltaPlace, out: Path) -> None:
    """Write BASE with DELTA applied to the folder OUT, bit for bit the tuned checkpoint."""
    from allo.delta import apply, fetch

    apply(base, fetch(delta), out)
    say(f"{out}: written")


@delta_app.command("merge")
def delta_merge(first: DeltaPlace, second: DeltaPlace, out: Path) -> None:
    """Write one delta with the changes of both FIRST and SECOND, which have the same base.

    If both set a weight, SECOND's is taken; num_overruled counts the weights where they differ.
    """
    _check_writable(out)
    from allo.delta import fetch, merge

    found = merge(fetch(first), fetch(second), out)
    _print_fields(out, found.merged)
    tell(f"  {'num_shared':<20} {found.num_shared}\n  {'num_overruled':<20} {found.num_overruled}")


@delta_app.command("export")
def delta_export(
    base: Path,
    delta: DeltaPlace,
    out: Path,
    format: Annotated[
        Literal["full", "peft-shira"],
        typer.Option(help="The whole model as `apply` writes it, or an adapter of PEFT."),
    ],
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write the tuned model as a folder OUT that other libraries load.

    A peft-shira adapter gives BASE, loaded in fp32, exactly the tuned weights. It holds weights of Linear layers only. A layer
    whose tuned weights sparse differences cannot reach exactly is stored whole, and counted (num_whole).
    """
    from allo.delta import apply, export_shira, fetch

    if format == "full":
        apply(base, fetch(delta), out)
        say(f"{out}: written")
        return
    from allo.models.load import linear_names

    linear = linear_names(base, trust_remote_code=trust_remote_code)
    _print_fields(out, export_shira(base, fetch(delta), out, linear=linear))


@delta_app.command("push")
def delta_push(
    delta: Path,
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="A model repository; created if it is missing.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload DELTA to a repository of the Hugging Face hub, with HF_TOKEN or the hub's own login.

    Prints the hf:// place that other commands accept as a delta.
    """
    from allo.delta import push

    tell(push(delta, repo, private=private))


@delta_app.command("info")
def delta_info(delta: DeltaPlace) -> None:
    """Print a delta's changes and its base."""
    from allo.delta import fetch, info

    _print_fields(delta, info(fetch(delta)))


def _check_writable(out: Path) -> None:
    """Check before a long pass over weights that its file can be written, and make its folder."""
    if out.is_dir():
        raise UserError(f"{out}: a folder; give the name of a file to write.")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    part.touch()
    part.unlink()


def _print_fields(path: str | Path, found: object) -> None:
    tell(str(path))
    for key, value in vars(found).items():
        tell(f"  {key:<20} {value}")


def main() -> None:
    """Run the command. Exit codes: 0 done, 2 bad input, 130 interrupted (start again to resume)."""
    try:
        app()
    except UserError as error:
        say(f"allo: {error}")
        sys.exit(2)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            say("allo: interrupted; start it again to resume where it stopped")
        raise
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        say(
            f"allo: {error.filename or 'a file'}: {error.strerror}; nothing is half-written: "
            "fix this or give another path, and start again"
        )
        sys.exit(2)
