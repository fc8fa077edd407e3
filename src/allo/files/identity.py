"""The identity of a run's folder: another recipe name, model or data origin means another run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import RunFolder, remove
from allo.files.manifest import read_manifest
from allo.recipe import Recipe
from allo.recipe.sources import Data, Source


def check_same_run(recipe: Recipe, run: RunFolder, *, is_resolved: bool) -> None:
    """Raise `UserError` if the folder holds another recipe's run.

    If the manifest is damaged, the run counts as this recipe's only if the folder's resolved recipe `is_resolved`
    from it.
    """
    ours = identity(recipe)
    try:
        theirs = (read_manifest(run, advice="") or {"identity": ours})["identity"]
    except UserError as error:
        if not is_resolved:
            raise UserError(
                f"{error} Nothing else says that the folder is this recipe's (recipe.yaml differs). Restore the file, "
                "or remove it to do every stage again."
            ) from error
        say(f"{error} It is removed: what was done is no longer known, so every stage is done again.")
        remove(run.manifest)
        return
    refuse_another(run, theirs, ours)


def refuse_another(run: RunFolder, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Raise `UserError` if a run's identity differs from the recipe's."""
    for key, own in ours.items():
        if theirs.get(key) != own:
            raise UserError(
                f"{run.path}: the folder holds a run of another recipe ({key} was {theirs.get(key)!r}, now {own!r}). "
                "Give this recipe another `name` or `out`, or remove the folder."
            )


def identity(recipe: Recipe) -> dict[str, str]:
    """Return the values that distinguish one recipe's run from another's."""
    origins: Sequence[Source] = recipe.data.mixture or [recipe.data]
    folder = Path(recipe.model).expanduser()
    return {
        "name": recipe.name,
        "model": str(folder.resolve()) if folder.exists() else recipe.model,
        "data": " + ".join(map(_origin, origins)),
    }


def _origin(source: Source) -> str:
    file = source.file or (source.pairs if isinstance(source, Data) else None)
    return str(file.resolve()) if file else str(source.task or source.hub)
