"""The beginning of a round: its starting model is the one that the last round left."""

from pathlib import Path
from typing import Any

from allo.files.artifacts import RunFolder
from allo.files.rounds import RoundRecipe, round_name, trained
from allo.models.start import read_start, write_start


def run(recipe: RoundRecipe, folder: RunFolder) -> dict[str, Any]:
    """Write `00-sft` of a round's folder."""
    whole = folder.path.parent
    start = read_start(RunFolder(whole))
    left = trained(recipe, RunFolder(whole / round_name(recipe.number - 1))) / "model"
    folder.start.mkdir(parents=True, exist_ok=True)
    write_start(folder, Path(start.model) if recipe.number == 1 else left, within=whole, day=start.date)
    return {}
