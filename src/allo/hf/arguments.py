"""What `transformers.TrainingArguments` may say: a recipe's block, and what would be ignored or wrong."""

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from allo.console import console
from allo.errors import UserError

Arguments = TrainingArguments  # for rooms that know no transformers


def training_arguments(
    training: dict[str, Any],
    *,
    folder: Path,
    seed: int,
    device: torch.device,
    key: str,
    lean: bool = False,
    kind: type[TrainingArguments] = TrainingArguments,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> TrainingArguments:
    """`transformers.TrainingArguments` of a recipe's block.

    `key` names the block in errors. `kind` may be another library's; `settings` are its fields that other
    keys of the recipe say, and so not the block. Raises `UserError` for a key or value that transformers or
    `check_arguments` refuses, and for one of the hub's: a recipe is kept with its results, where a
    secret must not lie.
    """
    for name in training:
        if name.endswith("token"):
            raise UserError(f"{key}.{name}: no secret belongs in a recipe; set HF_TOKEN in the environment.")
        if name.startswith(("push_to_hub", "hub_")):
            raise UserError(f"{key}.{name}: nothing is uploaded; upload the result with `hf upload`.")
    known = inspect.signature(kind).parameters
    kind_name = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    for name in training.keys() - known.keys():
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"see the fields of {kind_name}."
        raise UserError(f"{key}.{name}: unknown key; {hint}")
    own = {"output_dir": str(folder), "seed": seed, "use_cpu": device.type == "cpu", **settings}
    for name in own.keys() & training.keys():
        raise UserError(f"{key}.{name}: set by allo from the recipe; remove it.")
    quiet = {"disable_tqdm": not console.is_terminal, "log_level": "error"}
    try:
        arguments = kind(**(quiet | training | own))
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"{key}: {kind_name} refuses it: {error}") from error
    try:
        check_arguments(arguments, lean=lean)
    except UserError as error:
        raise UserError(f"{key}.{error}") from error
    return arguments


_MIXED = (
    "mixed precision does not apply: the model computes in its own dtype, and the selected "
    "weights are trained in fp32. Load the model in bfloat16."
)
_ROUNDED = "evaluation would round the model's weights in place. Load the model in bfloat16."
_SHARDED = (
    "sharded parameters are not supported yet: each process holds the whole model, and only the gradient of "
)
_SHARDED += "the selected weights is sent between them. Launch plain data parallel processes."
# Arguments that would be ignored or wrong, and why.
_REFUSED = {
    "bf16": _MIXED,
    "fp16": _MIXED,
    "bf16_full_eval": _ROUNDED,
    "fp16_full_eval": _ROUNDED,
    "fsdp": _SHARDED,
    "deepspeed": _SHARDED,
    "parallelism_config": _SHARDED,
    "auto_find_batch_size": "a smaller batch would be other training than the one asked for. Lower "
    "per_device_train_batch_size and raise gradient_accumulation_steps.",
    "save_only_model": "a checkpoint holds the selected weights, which need the optimizer's state to go on.",
    "push_to_hub": "a checkpoint is no model, and nothing is uploaded. Upload the result with `hf upload`.",
    "dataloader_num_workers": "rows are lists of ids in memory: there is nothing to load beside training.",
    "torch_empty_cache_steps": "a step keeps no memory that could be given back.",
    "neftune_noise_alpha": "policy and reference must see the same embeddings.",
    "label_smoothing_factor": "the losses have no such term; improve.loss_settings has a label_smoothing of dpo's.",
}


def check_arguments(args: TrainingArguments, *, lean: bool = False) -> None:
    """Refuse what would be ignored or wrong: a `UserError` that begins with the argument's name."""
    for name, reason in _REFUSED.items():
        if getattr(args, name):
            raise UserError(f"{name}: {reason} Remove the key.")
    if lean:
        lean_settings(args)
    else:
        optimizer_of(args)


# What an optimizer asks for that trains the model's own tensors, one by one.
_WHOLE_MODEL = {"params", "model", "optimizer_dict"}


def optimizer_of(args: TrainingArguments) -> tuple[Any, dict[str, Any]]:
    """The class of `args.optim` and its settings. Raises `UserError` where it cannot train a flat vector."""
    name = getattr(args.optim, "value", args.optim)
    try:
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError, AttributeError) as error:
        raise UserError(f"optim: {name} is not available: {error}") from error
    if _WHOLE_MODEL & kwargs.keys():
        raise UserError(
            f"optim: {name} works on a model's own tensors, but the selected weights are one flat vector; "
            "use an element-wise one, such as adamw_torch."
        )
    return optimizer_class, kwargs


def lean_settings(args: TrainingArguments) -> dict[str, Any]:
    """The settings of `LeanAdamW`. Raises `UserError` where `args.optim` is no AdamW of torch's."""
    optimizer_class, kwargs = optimizer_of(args)
    if optimizer_class is not torch.optim.AdamW:
        name = getattr(args.optim, "value", args.optim)
        raise UserError(f"optim: {name}: lean training has an AdamW of its own; remove the key, or lean.")
    return {name: kwargs[name] for name in ("lr", "betas", "eps")}
