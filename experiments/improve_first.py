"""Learning before forgetting: the two trainings of a run in the other order.

    python -m experiments.improve_first recipes/lab_parts.yaml

RUN-learned learns from its pairs; RUN-forgotten then forgets, from the model that learned, which is also its reference,
the tokens that were scored before, on the weights that were located before. It is evaluated beside that model.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from allo.files.artifacts import RunFolder
from allo.models.start import write_start
from allo.pipeline import run_all
from allo.recipe import Recipe, load_recipe
from allo.stages import evaluate, forget, improve
from allo.weights.importance_map import ImportanceMap


def improve_first(recipe: Recipe) -> RunFolder:
    """Learn, then forget; return the run that forgot, whose `06-forget/model` is the result."""
    learning = recipe.model_copy(update={"name": f"{recipe.name}-learned"})
    learned = run_all(learning, until="score")
    improve.run(recipe.model_copy(update={"forget": None, "score": None}), learned)
    forgotten = RunFolder(recipe.out / f"{recipe.name}-forgotten")
    shutil.rmtree(forgotten.path, ignore_errors=True)
    forgotten.start.mkdir(parents=True)
    for path in (learned.pairs, learned.wrong, learned.token_scores):
        shutil.copy(path, forgotten.path)
    start = write_start(forgotten, learned.improve / "model")
    if recipe.locate:
        located = ImportanceMap.load(learned.importance)
        metadata = {**located.metadata, "base_fingerprint": start.fingerprint}
        replace(located, metadata=metadata).save(forgotten.importance)
    for stage in (forget, evaluate):
        stage.run(recipe.model_copy(update={"improve": None}), forgotten)
    return forgotten


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Learn first, then forget.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    options = parser.parse_args(arguments)
    print(improve_first(load_recipe(options.recipe, ["compare=null", *options.overrides])).path)


if __name__ == "__main__":
    main()
