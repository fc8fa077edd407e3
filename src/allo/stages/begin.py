"""The beginning of a round: its starting model is the one that the last round left, or one beyond it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from allo.errors import DivergedError
from allo.files.artifacts import RunFolder, remove
from allo.files.rounds import RoundRecipe, round_name, trained
from allo.models.start import read_start, write_start
from allo.recipe import Recipe
from allo.weights.checkpoints import Checkpoint, write_like
from allo.weights.finite import check_finite
from allo.weights.momentum import extrapolated


def run(recipe: RoundRecipe, folder: RunFolder) -> dict[str, Any]:
    """Write `00-sft` of a round's folder.

    With momentum a, from the second round on, the model is theta_t + a (theta_t - theta_(t-1)). Here theta_t is the
    model that round t left, and theta_0 the run's start.
    """
    whole, number = folder.path.parent, recipe.number
    day = read_start(RunFolder(whole)).date
    folder.start.mkdir(parents=True, exist_ok=True)
    latest = _left_by(recipe, whole, number - 1)
    if number > 1 and recipe.momentum:
        earlier = _left_by(recipe, whole, number - 2)
        moved_to = folder.start / "model"
        moved = _extrapolate(latest, earlier, moved_to, momentum=recipe.momentum)
        write_start(folder, moved_to, day=day)
        return {"moved_weights": moved}
    write_start(folder, latest, within=whole, day=day)
    return {}


def _left_by(recipe: Recipe, whole: Path, number: int) -> Path:
    """Return the model that round `number` left; 0 is the run's start."""
    if number == 0:
        return Path(read_start(RunFolder(whole)).model)
    return trained(recipe, RunFolder(whole / round_name(number))) / "model"


def _extrapolate(latest: Path, earlier: Path, out: Path, *, momentum: float) -> int:
    """Write the model beyond `latest`, as seen from `earlier`, and return the number of moved weights."""
    before = Checkpoint.open(earlier)
    moved = 0

    def beyond(name: str, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
        nonlocal moved
        for new, old in zip(pieces, before.pieces(name), strict=True):
            result = extrapolated(new, old, momentum=momentum)
            check_finite([(name, result)], where=str(out), advice="Lower `momentum`.", kind=DivergedError)
            moved += int((result != new).sum())
            yield result

    remove(out)
    write_like(Checkpoint.open(latest), out, beyond)
    return moved
