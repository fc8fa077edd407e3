"""The effect of locating again between forgetting and learning: all of ALLO on the laboratory's model, twice per
seed.

Both runs of a seed share everything up to forgetting, by recipes/lab_parts.yaml. Then one learns on the weights
located first, the other on those that a second warm-up, of the model that forgot, changes most. A figure is the mean
over the seeds, its interval their range. The overlap is the share of the second mask's weights that the first also
has.

    python -m experiments.locate_between
"""

import argparse
import json
import os
import shutil
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the model is small

from allo.files.artifacts import RunFolder, read_json
from allo.models.start import read_start, write_start
from allo.pipeline import run_all
from allo.recipe import Recipe, load_recipe
from allo.stages import evaluate, improve, locate
from allo.weights.importance_map import ImportanceMap
from benchmarks.locate.overlap import spread
from benchmarks.record import RESULTS, ROOT, Record

RECIPE = ROOT / "recipes" / "lab_parts.yaml"
ONCE, AGAIN = "before forgetting", "again, before learning"


def aligned(seed: int, work: Path) -> tuple[Recipe, RunFolder]:
    """Do a whole run that locates once."""
    with as_file(files("allo") / "lab") as model:
        own = [
            f"model={json.dumps(str(model))}",
            f"out={json.dumps(str(work / f'seed-{seed}'))}",
            f"seed={seed}",
        ]
        recipe = load_recipe(RECIPE, [*own, "compare=null"])
        return recipe, run_all(recipe)


def realigned(recipe: Recipe, run: RunFolder) -> RunFolder:
    """Repeat the run's learning on the weights that a warm-up of the forgotten model changes most."""
    forgotten = _copied(run, "forgotten")
    write_start(forgotten, forgotten.forget / "model")
    locate.run(recipe, forgotten)
    again = _copied(run, "again")
    found = ImportanceMap.load(forgotten.importance)
    # The ranks are of the forgotten model, but the learned difference is stored against the run's start.
    metadata = {**found.metadata, "base_fingerprint": read_start(again).fingerprint}
    replace(found, metadata=metadata).save(again.importance)
    improve.run(recipe, again)
    evaluate.run(recipe, again)
    return again


def _copied(run: RunFolder, name: str) -> RunFolder:
    """Copy a run as it was before it learned."""
    copy = RunFolder(run.path.with_name(name))
    shutil.rmtree(copy.path, ignore_errors=True)
    shutil.copytree(run.path, copy.path)
    shutil.rmtree(copy.improve)
    copy.evaluation.unlink()
    return copy


def figures(run: RunFolder, first: RunFolder, density: float) -> dict[str, float]:
    evaluated = read_json(run.evaluation)["models"]["aligned"]
    masks = [ImportanceMap.load(folder.importance).mask_at(density) for folder in (run, first)]
    return {
        **{name: found["sampled"]["accuracy"] for name, found in evaluated["sets"].items()},
        "KL to the start": evaluated["kl"]["value"],
        "overlap of the masks": masks[0].overlap(masks[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Locate once, or again between forgetting and learning.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "locate-between", help="where the runs lie"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "locate-between.json")
    options = parser.parse_args()
    record = Record(options.output, "locate-between", device="cpu")
    found: dict[str, list[dict[str, float]]] = {ONCE: [], AGAIN: []}
    for seed in options.seeds:
        recipe, once = aligned(seed, options.work)
        assert recipe.improve is not None
        for name, run in ((ONCE, once), (AGAIN, realigned(recipe, once))):
            found[name].append(figures(run, once, recipe.improve.density))
            print(seed, name, json.dumps(found[name][-1]), flush=True)
    rows: list[dict[str, Any]] = [
        {"located": name} | {figure: spread([one[figure] for one in each]) for figure in each[0]}
        for name, each in found.items()
    ]
    record.write(rows)


if __name__ == "__main__":
    main()
