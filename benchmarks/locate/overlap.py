"""Each way of locating on the laboratory's model: its mask's overlap with the AdamW warm-up's, and the final
accuracy.

The accuracy is that after forgetting and improving with the mask. The runs of a seed share all stages before
`locate`, and their warm-ups see the pairs in one order unless the row says otherwise. Token scores are those of the
`edit` scorer, which does not read the warm-up, unless the row says `implicit`. A figure is the mean over the seeds,
its interval their range.

    python -m benchmarks.locate.overlap                                     # the record
    python -m benchmarks.locate.overlap --rates 5e-5 1e-4 2e-4 --seeds 0    # warmup_fused on validation problems
"""

import argparse
import json
import os
import shutil
import statistics
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the model is small

from allo.files.artifacts import RunFolder, read_json
from allo.pipeline import run_all
from allo.recipe import load_recipe
from allo.weights.importance_map import ImportanceMap
from benchmarks.record import RESULTS, ROOT, Record

DENSITIES = (0.05, 0.10)
# The best rate tried on validation problems, with `--rates`.
FUSED = ["locate.criterion=warmup_fused", "locate.training.learning_rate=5e-5"]
OTHER_ORDER = 1000  # a data_seed that is no run's seed
WAYS = {
    "warmup": [],
    "warmup, other order of pairs": [f"locate.training.data_seed={OTHER_ORDER}"],
    "warmup_fused": FUSED,
    "warmup_fused, other order of pairs": [*FUSED, f"locate.training.data_seed={OTHER_ORDER}"],
    "gradient": ["locate.criterion=gradient"],
    "gradient, bf16 sums": ["locate.criterion=gradient", "locate.accumulate=bfloat16"],
    "taylor": ["locate.criterion=taylor"],
    "fisher": ["locate.criterion=fisher"],
    "random": ["locate.criterion=random"],
}
# The implicit scorer reads the warm-up model, which only these two have.
SCORED = {(way, "edit"): own for way, own in WAYS.items()} | {
    (way, "implicit"): WAYS[way] for way in ("warmup", "warmup_fused")
}
VALIDATION = "evaluate.sets={validation: {task: planted_flaws, split: validation, limit: 300}}"


def run_way(way: str, scorer: str, seed: int, own: list[str], *, options: argparse.Namespace) -> RunFolder:
    """Do one run, on the pairs that all runs of its seed share."""
    work: Path = options.work
    package = files("allo")
    with as_file(package / "lab") as model, as_file(package / "demo") as recipes:
        shared = [f"model={json.dumps(str(model))}", f"seed={seed}", "evaluate.start=false"]
        shared.append(f"score.scorer={scorer}")

        def recipe(folder: Path, *more: str) -> Any:
            return load_recipe(recipes / "allo.yaml", [f"out={json.dumps(str(folder))}", *shared, *more])

        before = run_all(recipe(work / f"seed-{seed}" / "pairs"), until="pair")
        folder = work / f"seed-{seed}" / f"{way}, {scorer}".replace(", ", "-").replace(" ", "-")
        if not (folder.exists() and options.keep):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(before.path, folder / before.path.name)
        return run_all(recipe(folder, *own), until=options.until)


def overlaps(run: RunFolder, reference: RunFolder) -> list[float]:
    """Return, at each density, the share of the mask's weights that the reference's mask also has."""
    ours, theirs = (ImportanceMap.load(folder.importance) for folder in (run, reference))
    return [ours.mask_at(density).overlap(theirs.mask_at(density)) for density in DENSITIES]


def figures(run: RunFolder, reference: RunFolder) -> dict[str, float]:
    located = read_json(run.manifest)["stages"]["locate"]
    counts = located["counts"]
    weights = counts["weights"] / max(DENSITIES)
    held = counts.get("training_state_bytes", counts.get("host_state_bytes", 0))
    return {
        **{f"overlap at {d:.0%}": o for d, o in zip(DENSITIES, overlaps(run, reference), strict=True)},
        **(accuracies(run) if run.evaluation.exists() else {}),
        "state of locating, B/weight": held / weights,
        "of that in host memory": counts.get("host_state_bytes", 0) / weights,
        "seconds to locate": located["seconds"],
    }


def accuracies(run: RunFolder) -> dict[str, float]:
    evaluated = read_json(run.evaluation)["models"]["aligned"]
    sets = {name: found["sampled"]["accuracy"] for name, found in evaluated["sets"].items()}
    return sets | {"KL to SFT": evaluated["kl"]["value"]}


def spread(values: list[float]) -> dict[str, float]:
    return {"value": statistics.mean(values), "low": min(values), "high": max(values)}


def compare(options: argparse.Namespace, record: Any) -> None:
    """Run every way on every seed, and write the table."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in SCORED}
    for seed in options.seeds:
        reference = None
        for (way, scorer), own in SCORED.items():
            run = run_way(way, scorer, seed, own, options=options)
            reference = reference or run
            found[way, scorer].append(figures(run, reference))
            print(seed, way, scorer, json.dumps(found[way, scorer][-1]), flush=True)
    record.write(
        [
            {"locate": way, "token scores": scorer}
            | {name: spread([one[name] for one in each]) for name in each[0]}
            for (way, scorer), each in found.items()
        ]
    )


def search(options: argparse.Namespace) -> None:
    """Try `warmup_fused` at some learning rates: accuracy on validation problems, none of which are tested on."""
    for seed in options.seeds:
        for rate in options.rates:
            for scorer in ("edit", "implicit"):
                own = [*FUSED[:1], f"locate.training.learning_rate={rate}", VALIDATION]
                run = run_way(f"validation-{rate}", scorer, seed, own, options=options)
                aligned = read_json(run.evaluation)["models"]["aligned"]
                accuracy = aligned["sets"]["validation"]["sampled"]["accuracy"]
                print(seed, rate, scorer, accuracy, aligned["kl"]["value"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare the ways of locating weights on the laboratory's model."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--until", choices=("locate", "evaluate"), default="evaluate")
    parser.add_argument("--rates", nargs="+", help="search warmup_fused's learning rate instead")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "locate", help="where the runs lie")
    parser.add_argument("--keep", action="store_true", help="go on with runs that are there already")
    parser.add_argument("--output", type=Path, default=RESULTS / "locate.json")
    options = parser.parse_args()
    if options.rates:
        search(options)
        return
    compare(options, Record(options.output, "locate", device="cpu"))


if __name__ == "__main__":
    main()
