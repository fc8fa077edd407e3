"""A tiny run with pairs, and its dense counterparts."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allo.files.artifacts import RunFolder, write_jsonl
from allo.files.records import Pair, Wrong
from allo.models.start import save_whole, write_start
from allo.recipe import Recipe
from tiny import NUM_PAIRS, TOKENIZER, model, pairs, text

DENSITY = 0.1
BETA = 0.2
FP32 = {"rtol": 1e-4, "atol": 1e-6}
EOS = TOKENIZER.eos_token_id
# One step an epoch over all pairs, so that the order of the pairs is none of the matter.
TRAINING = {
    "learning_rate": 0.1,
    "optim": "sgd",
    "num_train_epochs": 3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
}
# As above in one micro-batch a step; the rule brings its own optimizer.
FUSED = {name: value for name, value in TRAINING.items() if name != "optim"} | {
    "learning_rate": 0.01,
    "per_device_train_batch_size": NUM_PAIRS,
    "gradient_accumulation_steps": 1,
}


def wrong_completions() -> list[Wrong]:
    """Every second one was cut off before its end; each has a solution, and most a right sample."""
    return [
        Wrong(
            id=f"p{row}/0",
            prompt_id=f"p{row}",
            prompt=pair["prompt"],
            completion=pair["rejected"],
            finished=row % 2 == 0,
            solution=pair["chosen"],
            right=[pair["chosen"], pair["rejected"] + text(row, 1)] if row % 3 else [],
        )
        for row, pair in enumerate(pairs())
    ]


def with_pairs(place: Path) -> RunFolder:
    """A run's folder up to the pairs, with a tiny model to start from."""
    folder = RunFolder(place)
    folder.start.mkdir(parents=True)
    save_whole(model(), TOKENIZER, folder.start / "model")
    write_start(folder, folder.start / "model")
    write_jsonl(folder.pairs, [Pair(prompt_id=str(row), **pair) for row, pair in enumerate(pairs())])
    write_jsonl(folder.wrong, wrong_completions())
    return folder


def recipe(criterion: str = "warmup", scorer: str = "uniform", **own: Any) -> Recipe:
    training = FUSED if criterion == "warmup_fused" else TRAINING
    fields: dict[str, Any] = {
        "name": "tiny",
        "model": "unused",
        "dtype": "float32",
        "device": "cpu",
        "max_length": 64,
        "data": {"pairs": "unused.jsonl"},
        "locate": {"criterion": criterion, "beta": BETA, "training": training},
        "score": {"scorer": scorer, "batch_size": 4, "weights": "soft"},
        "improve": {"density": DENSITY},
        "evaluate": {"sets": {"none": {"task": "planted_flaws"}}},
    }
    return Recipe.model_validate(fields | own)


def dense_logps(policy: PreTrainedModel, prompt: str, completion: str, *, finished: bool = True) -> Tensor:
    """Log-prob of each completion token from the model's own logits."""
    before = TOKENIZER(prompt).input_ids
    after = TOKENIZER(completion, add_special_tokens=False).input_ids + ([EOS] if finished else [])
    logps = policy(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
    return logps[len(before) - 1 : -1].gather(1, torch.tensor(after).unsqueeze(1)).squeeze(1)
