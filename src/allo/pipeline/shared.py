"""Stages that several processes share: rank 0 names one, and the others run it with rank 0."""

import importlib
from pathlib import Path
from typing import Any

from allo.errors import UserError
from allo.files.artifacts import RunFolder
from allo.files.stage import Stage
from allo.ranks import joined_group, rank
from allo.recipe import Recipe, save_recipe


def run_shared(stage: Stage, recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Run a stage with all ranks, if there are several, and return its counts."""
    if (group := joined_group()) is None:
        return stage.run(recipe, run)
    work = {"stage": stage.name, "folder": str(run.path), "recipe": recipe.model_dump(mode="json")}
    return group.share(work, lambda: stage.run(recipe, run))


def follow(work: dict[str, Any]) -> None:
    """Run the stage that rank 0 has named, as another rank."""
    recipe, run = Recipe.model_validate(work["recipe"]), RunFolder(Path(work["folder"]))
    resolved = run.path / "recipe.yaml"
    if not resolved.is_file() or resolved.read_text() != save_recipe(recipe):
        raise UserError(
            f"{run.path}: process {rank()} does not see the files of process 0 there. All processes need the run's folder "
            "on one shared file system, and the same working directory."
        )
    (stage,) = (
        stage
        for stage in importlib.import_module("allo.pipeline").stages_of(recipe)
        if stage.name == work["stage"]
    )
    stage.run(recipe, run)
