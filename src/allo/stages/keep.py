"""The first round's importance, kept for a later round's starting model."""

from dataclasses import replace
from typing import Any

from allo.files.artifacts import RunFolder
from allo.files.rounds import round_name
from allo.models.start import read_start
from allo.recipe import Recipe
from allo.weights.importance_map import ImportanceMap


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `04-importance.safetensors` of a later round's folder."""
    kept = ImportanceMap.load(RunFolder(folder.path.parent / round_name(1)).importance)
    start = read_start(folder).fingerprint
    of_this = {**kept.metadata, "base_fingerprint": start, "kept_from": round_name(1)}
    replace(kept, metadata=of_this).save(folder.importance)
    return {"weights": sum(len(indices) for indices in kept.indices.values())}
