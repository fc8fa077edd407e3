"""A rewriter for the laboratory's policies, from samples of problems that the benchmark does not judge.

It trains on sampled wrong completions of both families' training problems, each with the laboratory's exact minimal
rewrite into its solution. Trained on one family, it finds the other's flaws less well (docs/experiments.md).
"""

import json
import time
from importlib.resources import as_file, files
from pathlib import Path

from allo.pipeline import run_all
from allo.recipe import load_recipe
from allo.rewriter.cases import open_run
from allo.rewriter.data import DataSettings, make_data
from allo.rewriter.train import read_settings, train_rewriter

# The benchmark judges other splits: none of their problems shares its numbers with one here.
SPLITS = {"told": "train", "reworded": "reworded_train"}
# A row holds the problem, two solutions and the rewrite: more than the laboratory's 128 positions, which are rotary.
TRAINING = (
    *("dtype=float32", "device=cpu", "max_length=256", "training.learning_rate=2e-3"),
    *("training.per_device_train_batch_size=32", "training.gradient_accumulation_steps=1"),
)


def trained_rewriter(work: Path, *, problems: int) -> tuple[Path, float | None]:
    """Return the rewriter's folder below `work`, and the CPU seconds of sampling and training; None if it existed.

    `problems`: the number sampled in each family.
    """
    folder, begun = work / "rewriter", time.process_time()
    if folder.exists():
        return folder, None
    package, rows = files("allo"), work / "rewrites.jsonl"
    with as_file(package / "lab") as lab, as_file(package / "demo") as recipes:
        text = ""
        for family, split in SPLITS.items():
            data = {"task": "planted_flaws", "split": split, "limit": problems}
            own = {"model": str(lab), "out": str(work), "name": f"rewriter-{family}", "data": data}
            recipe = load_recipe(recipes / "allo.yaml", [f"{key}={json.dumps(own[key])}" for key in own])
            make_data(open_run(run_all(recipe, until="pair").path), DataSettings("gold"), rows)
            text += rows.read_text(encoding="utf-8")
        rows.write_text(text, encoding="utf-8")
        train_rewriter(rows, str(lab), folder, read_settings(list(TRAINING)))
    return folder, time.process_time() - begun
