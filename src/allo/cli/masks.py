"""`allo mask`: which weights may change."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allo.cli.shared import Profile, TrustRemoteCode, check_writable
from allo.console import say, tell
from allo.errors import UserError
from allo.recipe.granularity import WEIGHT
from allo.recipe.locate import KINDS

if TYPE_CHECKING:
    from allo.weights.param_mask import MaskRow

app = typer.Typer(no_args_is_help=True, help="Masks: which weights may change.")


@app.command("from-checkpoints")
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
    check_writable(out)
    from allo.weights.mask_files import mask_from_checkpoints

    def kinds() -> dict[str, set[str]]:
        from allo.models.load import tensor_kinds  # it takes transformers, and few masks need it

        return tensor_kinds(base, trust_remote_code=trust_remote_code)

    def trained() -> set[str] | None:
        """Return the tensors that a run trains; None, with the reason, if no model is known by the configuration."""
        if not (base / "config.json").is_file():
            return None
        from allo.models.start import trained_names

        try:
            return trained_names(base, trust_remote_code=trust_remote_code)
        except UserError as error:
            say(f"every tensor of {base} counts as trained: {error}")
            return None

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
        trained=trained(),
    )
    say(f"{out}: {mask.num_selected} of {mask.num_weights} weights, density {mask.density:.6g}")


@app.command("info")
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
