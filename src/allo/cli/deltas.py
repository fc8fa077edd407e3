"""`allo delta`: only the weights that alignment changed."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from allo.cli.shared import Profile, TrustRemoteCode, check_writable, print_fields
from allo.console import say, tell
from allo.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Deltas: only the weights that alignment changed.")

Base = Annotated[Path, typer.Argument(help="The starting model: a folder, or a GGUF file.")]
DeltaPlace = Annotated[
    str,
    typer.Argument(help="A delta file, or hf://OWNER/NAME on the hub, with @REVISION and /FILE if needed."),
]


@app.command("extract")
def delta_extract(base: Base, tuned: Path, out: Path, profile: Profile = "compact") -> None:
    """Write the changes from BASE to TUNED as one small file."""
    check_writable(out)
    from allo.delta import extract
    from allo.weights.checkpoints import Checkpoint

    with _stored(base, lambda: {entry.dtype for entry in Checkpoint.open(tuned).stored.values()}) as folder:
        print_fields(out, extract(folder, tuned, out, profile=profile))


@app.command("apply")
def delta_apply(base: Base, delta: DeltaPlace, out: Path) -> None:
    """Write BASE with DELTA applied to the folder OUT, bit for bit the tuned checkpoint."""
    _apply(base, delta, out)


@app.command("merge")
def delta_merge(first: DeltaPlace, second: DeltaPlace, out: Path) -> None:
    """Write one delta with the changes of both FIRST and SECOND, which have the same base.

    If both set a weight, SECOND's is taken; num_overruled counts the weights where they differ.
    """
    check_writable(out)
    from allo.delta import fetch, merge

    found = merge(fetch(first), fetch(second), out)
    print_fields(out, found.merged)
    tell(f"  {'num_shared':<20} {found.num_shared}\n  {'num_overruled':<20} {found.num_overruled}")


@app.command("export")
def delta_export(
    base: Base,
    delta: DeltaPlace,
    out: Path,
    format: Annotated[
        Literal["full", "peft-shira", "vllm-sparse"],
        typer.Option(help="The whole model as `apply` writes it, an adapter of PEFT, or a patch for vLLM."),
    ],
    served: Annotated[
        str | None,
        typer.Option(metavar="DELTA", help="For vllm-sparse: the delta of BASE that the server has now."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write the tuned model as a folder OUT that other libraries load, or as a patch for a running server.

    A peft-shira adapter gives BASE, loaded in fp32, exactly the tuned weights. It holds weights of Linear layers only. If
    sparse differences cannot give a layer's tuned weights exactly, the layer is stored whole and counted (num_whole).

    A vllm-sparse patch is one file: indices and new values of each changed tensor, in vLLM's layout. It fits a server that
    has BASE or, with --served, what that delta makes of BASE.
    """
    if served is not None and format != "vllm-sparse":
        raise UserError("--served: only --format vllm-sparse depends on what a server has")
    if format == "full":
        _apply(base, delta, out)
        return
    from allo.delta import export_patch, export_shira, fetch

    if format == "vllm-sparse":
        if base.suffix == ".gguf":
            raise UserError(
                f"{base}: vLLM patches the tensors of a checkpoint's folder, and a server of a GGUF file has none of these"
            )
        check_writable(out)
        before = None if served is None else fetch(served)
        print_fields(out, export_patch(base, fetch(delta), out, served=before))
        return
    from allo.models.load import linear_names

    file = fetch(delta)
    with _stored(base, lambda: _dtypes_of_delta(file)) as folder:
        linear = linear_names(folder, trust_remote_code=trust_remote_code)
        print_fields(out, export_shira(folder, file, out, linear=linear))


def _apply(base: Path, delta: str, out: Path) -> None:
    from allo.delta import apply, fetch

    file = fetch(delta)
    with _stored(base, lambda: _dtypes_of_delta(file)) as folder:
        apply(folder, file, out)
    say(f"{out}: written")


def _dtypes_of_delta(file: Path) -> set[Any]:
    from allo.delta import read_delta

    return read_delta(file).base_dtypes


@contextmanager
def _stored(base: Path, dtypes: Callable[[], Collection[Any]]) -> Iterator[Path]:
    """Yield the base's folder; of a GGUF file, one converted to the dtype of all `dtypes`."""
    if base.suffix != ".gguf":  # transformers is loaded for a conversion alone
        yield base
        return
    from allo.models.start import converted

    with converted(base, dtypes=dtypes()) as folder:
        yield folder


@app.command("push")
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


@app.command("info")
def delta_info(delta: DeltaPlace) -> None:
    """Print a delta's changes and its base."""
    from allo.delta import fetch, info

    print_fields(delta, info(fetch(delta)))
