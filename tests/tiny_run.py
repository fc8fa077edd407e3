"""The smallest run with all of its stages: the laboratory's recipe and model, a handful of problems."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import allo
from allo.recipe import Recipe, load_recipe

LAB = Path(allo.__file__).parent / "lab"
RECIPE = Path(__file__).parents[1] / "benchmarks" / "runs" / "published.yaml"

_STEPS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
_SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "model": str(LAB),
    "device": "cpu",
    "data.limit": 16,
    "sft": {
        "sources": [{"task": "planted_flaws", "limit": 24}],
        # The means of what is logged at every second step must not depend on where a kill fell.
        "training": {**_STEPS, "learning_rate": 1e-5, "logging_steps": 2},
    },
    "sample.num_generations": 4,
    "sample.max_new_tokens": 40,
    "sample.batch_size": 16,
    "score.batch_size": 8,
    **{f"locate.training.{key}": value for key, value in _STEPS.items()},
    **{f"forget.training.{key}": value for key, value in _STEPS.items()},
    **{f"improve.training.{key}": value for key, value in _STEPS.items()},
    "evaluate.sets": {"test": {"task": "planted_flaws", "split": "test", "limit": 8}},
    "evaluate.num_generations": 2,
    "evaluate.max_new_tokens": 40,
    "evaluate.batch_size": 8,
    "evaluate.kl": {"task": "planted_flaws", "split": "unrelated", "limit": 4},
}

# Sampling and evaluation in several batches, so that a kill can fall between two of them.
IN_BATCHES = ("sample.batch_size=4", "evaluate.batch_size=2")

# Equal runs differ in these alone: what the clock and the machine say, where the run lies, and what is
# remembered about files of that place. Their content that must be equal is compared in `contents`.
OWN = {"manifest.json", "report.html", "report.md", "recipe.yaml", ".hashes.json", ".lock"}


def overrides(out: Path, *more: str) -> list[str]:
    """The tiny run below `out`, as `--set` takes it; `more` comes last and so wins."""
    return [f"out={out}", *(f"{key}={json.dumps(value)}" for key, value in _SETTINGS.items()), *more]


def tiny(out: Path, *more: str) -> Recipe:
    return load_recipe(RECIPE, overrides(out, *more))


def steps(batch: int, accumulation: int = 1, **more: Any) -> dict[str, Any]:
    """Return a stage's block with these training arguments."""
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    return {"training": sizes | more}


def write_recipe(folder: Path, **blocks: Any) -> Path:
    """Write the recipe of a user on the laboratory's model, `recipe.yaml`, with these blocks; return its path."""
    head = {"name": "mine", "model": str(LAB), "device": "cpu", "dtype": "float32", "max_length": 128}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(head | blocks))
    return path


def arguments(verb: str, out: Path, *more: str) -> list[str]:
    """`allo VERB` on the tiny recipe: what follows `allo`."""
    return [verb, str(RECIPE), *(word for one in overrides(out, *more) for word in ("--set", one))]


def command(verb: str, out: Path, *more: str) -> list[str]:
    """`allo VERB` on the tiny recipe, as another process runs it."""
    return [sys.executable, "-m", "allo", *arguments(verb, out, *more)]


def environment() -> dict[str, str]:
    """This process's, with one thread: more would only wait for each other on so small a model."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run, byte for byte, but `OWN` and the seconds that the evaluation quotes."""
    files = {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()}
    found = {name: path.read_bytes() for name, path in files.items() if name not in OWN}
    if "08-eval.json" in found:
        evaluation = json.loads(found["08-eval.json"])
        for model in evaluation["models"].values():
            del model["seconds"]
        found["08-eval.json"] = json.dumps(evaluation).encode()
    return found
