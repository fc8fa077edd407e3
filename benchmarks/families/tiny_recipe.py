"""The smallest recipe with every stage, on pairs of the laboratory's task: a right solution and a flawed one."""

import json
from pathlib import Path
from typing import Any

from allo.recipe import Recipe, load_recipe
from allo.recipe.criteria import CRITERIA
from allo.tasks.planted_flaws import demonstrations

DENSITY = {"forget": 0.05, "improve": 0.1}
_STEPS = {
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_steps": 2,
}


def tiny_pairs(number: int) -> list[dict[str, Any]]:
    """Return that many preference pairs."""
    drawn = demonstrations("train", size=20 * number)
    flawed = [each for each in drawn if each.flaw is not None][:number]
    return [
        {"prompt": each.prompt.prompt, "chosen": each.prompt.solution, "rejected": each.completion}
        for each in flawed
    ]


def recipe_of(
    model: Path, work: Path, name: str, *, dtype: str = "float32", criterion: str = "warmup"
) -> Recipe:
    """Return the recipe of a run in `work` / `name`."""
    work.mkdir(parents=True, exist_ok=True)
    pairs = work / "pairs.jsonl"
    pairs.write_text("".join(f"{json.dumps(pair)}\n" for pair in tiny_pairs(4)), encoding="utf-8")
    trains = CRITERIA[criterion].trains
    fields = {
        "name": name,
        "out": str(work),
        "model": str(model),
        "dtype": dtype,
        "device": "cpu",
        "max_length": 96,
        "data": {"pairs": str(pairs)},
        "locate": {"criterion": criterion, "training": _STEPS if trains else {}},
        # Every token of a random model has some weight.
        "score": {"scorer": "implicit" if trains else "confidence", "threshold": 1.0, "batch_size": 4},
        "forget": {"density": DENSITY["forget"], "training": _STEPS},
        "improve": {"density": DENSITY["improve"], "training": _STEPS},
        "evaluate": {
            "sets": {"test": {"task": "planted_flaws", "split": "test", "limit": 3}},
            "num_generations": 2,
            "max_new_tokens": 6,
            "batch_size": 4,
            "kl": {"task": "planted_flaws", "split": "unrelated", "limit": 2},
        },
    }
    file = work / f"{name}.yaml"
    file.write_text(json.dumps(fields), encoding="utf-8")
    return load_recipe(file)
