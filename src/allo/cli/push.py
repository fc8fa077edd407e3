"""`allo push`: a run's model, or its delta alone, with its card as a repository of the hub."""

from pathlib import Path
from typing import Annotated

import typer

from allo.console import tell
from allo.errors import UserError
from allo.files.artifacts import RunFolder

CARD = "README.md"


def push_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="A model repository; made if it is not there.")
    ],
    delta: Annotated[bool, typer.Option("--delta", help="Upload the delta instead of the model.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload a run's model and its card to a repository of the Hugging Face hub.

    It uses HF_TOKEN or the hub's own login. All files go in one commit, which is printed.
    """
    files = files_of(RunFolder(run), delta=delta)
    from allo.delta import push_files, read_delta

    if delta:
        read_delta(next(path for name, path in files.items() if name != CARD))
    kind = "delta" if delta else "model"
    commit = push_files(files, repo, private=private, message=f"Upload a {kind} of allo")
    tell(f"{repo}@{commit}: {', '.join(files)}")


def files_of(run: RunFolder, *, delta: bool) -> dict[str, Path]:
    """Return a finished run's files by their names in a repository. Raises `UserError` for what is missing."""
    stage = next((one for one in (run.improve, run.forget) if (one / "model").is_dir()), None)
    if stage is None or not run.card.is_file():
        missing = run.card if stage is not None else run.improve / "model"
        raise UserError(
            f"{missing}: not there. Give the folder of a finished run; `allo run` finishes it, and `allo run "
            "--force report` writes the card of a run made by an earlier version."
        )
    if delta:
        return {CARD: run.card, "delta.safetensors": stage / "delta.safetensors"}
    # The base's own card may lie in the folder; the repository has one of this model.
    found = {path.name: path for path in sorted((stage / "model").iterdir()) if path.is_file()}
    return found | {CARD: run.card}
