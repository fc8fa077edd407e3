"""Training runs that a sharded model must end like a whole one: what `sharded_ranks.py` runs and one process repeats."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from allo.training.feedback_trainer import FeedbackTrainer
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from allo.weights.layout import Layout
from allo.weights.mask_files import mask_from_checkpoints
from allo.weights.param_mask import ParamMask
from tiny import TOKENIZER, arguments, feedback, full_mask, model, pairs, trained, wrongs

UNEVEN = {"intermediate_size": 23}  # beside a vocabulary of 163: no number of ranks divides both
MODELS = {"tied": UNEVEN, "untied": {**UNEVEN, "tie_word_embeddings": False}}


def every_third(policy: PreTrainedModel) -> ParamMask:
    """Every third entry of each tensor but the last norm, which has none."""
    shapes = Layout.of(policy).shapes
    indices = {
        name: torch.arange(0, torch.Size(shape).numel(), 3, dtype=torch.int32)
        for name, shape in shapes.items()
        if name != "model.norm.weight"
    }
    return ParamMask(indices, shapes=shapes)


def rows(policy: PreTrainedModel) -> ParamMask:
    """Whole rows of matrices, none in the last rank's part of the embeddings, and single entries of one norm."""
    shapes = Layout.of(policy).shapes
    indices = {}
    for name, shape in shapes.items():
        if len(shape) == 2:
            lines = torch.arange(0, shape[0] // 3, 2)
            indices[name] = (lines[:, None] * shape[1] + torch.arange(shape[1])).flatten().int()
    indices["model.layers.0.input_layernorm.weight"] = torch.tensor([0], dtype=torch.int32)
    return ParamMask(indices, shapes=shapes)


def of_two_checkpoints(policy: PreTrainedModel) -> Path:
    """Return the mask that `save_models` has made of a model's folder and another one."""
    return Path(policy.name_or_path).with_suffix(".mask.safetensors")


@dataclass(frozen=True)
class Case:
    """A training run; `size` rows a process, times two micro-batches, make a step on two processes."""

    trainer: type[SelectedTrainer]
    data: Callable[[], list[dict[str, Any]]]
    model: str = "tied"
    mask: Callable[[PreTrainedModel], ParamMask | Path] = every_third
    own: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluates: bool = False


SGD = {"optim": "sgd", "learning_rate": 0.3}
CASES = {
    "improve": Case(ImproveTrainer, pairs, settings={"weight_decay": 0.1, "max_grad_norm": 0.05}),
    "improve everything": Case(ImproveTrainer, pairs, "untied", full_mask, settings=SGD),
    "forget rows": Case(ForgetTrainer, wrongs, mask=rows, own={"reference": "precomputed"}, settings=SGD),
    "checkpointed layers": Case(
        ImproveTrainer,
        pairs,
        "untied",
        own={"max_tokens_per_batch": 60},
        settings={**SGD, "activation_checkpointing": True},
    ),
    "lean": Case(ForgetTrainer, wrongs, own={"lean": True}),
    "kto": Case(
        FeedbackTrainer,
        feedback,
        mask=of_two_checkpoints,
        own={"loss": "kto", "beta": 0.5, "keep": 0.6},
        settings=SGD,
    ),
    "sft": Case(
        SftTrainer,
        lambda: [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs()],
        settings=SGD,
    ),
    "evaluated": Case(
        ImproveTrainer, pairs, settings={**SGD, "eval_strategy": "epoch"}, evaluates=True, mask=rows
    ),
}


def run(
    case: Case, policy: PreTrainedModel, folder: Path, *, num_ranks: int, parts: int = 4
) -> SelectedTrainer:
    """Train 13 rows in steps of so many parts, so that the last step has fewer of them than the others and than ranks."""
    own = dict(case.own)
    if case.evaluates:
        own["eval_dataset"] = case.data()[9:14]
    settings = {"num_train_epochs": 2, **case.settings}
    return trained(
        case.trainer,
        case.data()[:13],
        folder,
        policy=policy,
        mask=case.mask(policy),
        own=own,
        **settings,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=parts // num_ranks,
    )


# With the share of the mask that a sharded model's must have in common: sums over ranks differ by rounding.
CRITERIA = {
    **dict.fromkeys(("magnitude", "random", "last"), 1.0),
    **dict.fromkeys(("gradient", "taylor", "fisher", "warmup", "warmup_fused"), 0.998),
}


def locating(criterion: str, folder: Path) -> dict[str, Any]:
    """Return the arguments of `locate` with which one process and several do the same."""
    num_ranks = dist.get_world_size() if dist.is_initialized() else 1
    settings = {"num_train_epochs": 1, "lr_scheduler_type": "constant"}
    if criterion == "warmup":
        # The Trainer multiplies the rows of a step by the processes.
        settings["gradient_accumulation_steps"] = 6 // num_ranks
    return {
        "density": 0.13,
        "criterion": criterion,
        "args": arguments(folder / "locate" / f"{criterion}-{num_ranks}", **settings),
        "processing_class": TOKENIZER,
        "exclude": ["*embed_tokens*"],
    }


def save_models(folder: Path) -> None:
    """Save the models, and the mask of the weights that differ most between one of them and another model."""
    for name, config in MODELS.items():
        model(**config).save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
    other, random = model(**MODELS["tied"]), torch.Generator().manual_seed(3)
    for param in other.parameters():
        param.data += torch.randn(param.shape, generator=random)
    other.save_pretrained(folder / "other")
    mask_from_checkpoints(
        folder / "tied", folder / "other", density=0.1, out=folder / "tied.mask.safetensors"
    )


def found(trainer: SelectedTrainer, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the logs and the weights of a run."""
    history = [row for row in trainer.state.log_history if "loss" in row or "eval_loss" in row]
    logs = {
        f"log {number} {name}": torch.tensor(float(value))
        for number, row in enumerate(history)
        for name, value in row.items()
        if not name.endswith(("runtime", "per_second", "step_time"))
    }
    return logs | {f"weight {name}": tensor.contiguous() for name, tensor in weights.items()}
