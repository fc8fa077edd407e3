"""A trainer's arguments as scripts give them: a model or tokenizer by name, no arguments, optimizers, and others' keywords."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from allo.console import say
from allo.errors import UserError, refuse
from allo.models.load import load_model, load_tokenizer
from allo.recipe.training import Training
from allo.weights.selected import SelectedWeights

Optimizers = tuple[torch.optim.Optimizer | None, LRScheduler | None]

_NO_MODEL = "give the model itself, or its folder or hub id as `model`"
UNSUPPORTED = {
    "ref_model": "no second model is needed: the reference is the model as given, which costs as many values as the mask "
    "selects",
    "peft_config": "no adapter is needed: the mask says which weights train, and their change is the adapter",
    "data_collator": "rows are padded here, and a prompt that two answers share is computed once",
    "quantization_config": "the selected weights are trained inside the model, which must be dense: load it in bfloat16",
    "model_init": _NO_MODEL,
    "compute_loss_func": "a loss of your own is given as `loss`",
    "optimizer_cls_and_kwargs": "set args.optim and args.optim_args, or give `optimizers`",
    "preprocess_logits_for_metrics": "`compute_metrics` is given the logits as they are",
    "tokenizer": "its name is processing_class",
}
"""Keywords of transformers' or TRL's trainers that ours refuse unless they are None, and the reasons."""


def unsupported(given: Mapping[str, Any], *, known: Mapping[str, Any]) -> Iterator[str]:
    """Yield the faults of keywords: those of other trainers that are not None, and unknown ones."""
    for name, value in given.items():
        if name in UNSUPPORTED:
            if value is not None:
                yield f"{name}: {UNSUPPORTED[name]}. Remove it."
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"its keywords are {', '.join(known)}."
            yield f"{name}: the trainer has no such keyword; {hint}"


def default_arguments(folder: str, defaults: Training, **settings: Any) -> TrainingArguments:
    """Return a recipe's arguments, with these settings, for a folder."""
    return TrainingArguments(folder, **(defaults.model_dump() | settings))


def given_arguments(
    args: TrainingArguments | None, model: PreTrainedModel | str | Path, defaults: Training
) -> TrainingArguments:
    """Return the arguments given, or a recipe's, which are then reported."""
    if args is None:
        named = model.name_or_path if isinstance(model, PreTrainedModel) else str(model)
        folder = f"{Path(named).name or 'model'}-allo"
        say(
            f"args: none are given, so those of a recipe are taken: learning_rate {defaults.learning_rate:g}, "
            f"{defaults.num_train_epochs:g} epochs, {defaults.per_device_train_batch_size} rows times "
            f"{defaults.gradient_accumulation_steps} a step; checkpoints go to {folder}"
        )
        return default_arguments(folder, defaults, bf16=loads_in_bf16(model))
    return args


def loads_in_bf16(model: object) -> bool:
    """Return whether a model is loaded in bfloat16 if nobody says how: one given by its name, on a GPU."""
    return isinstance(model, str | Path) and torch.cuda.is_available()


def named_model(model: PreTrainedModel | str | Path) -> PreTrainedModel:
    """Return the model, loaded onto the device if it is a folder or hub id. Raises `UserError` for anything else."""
    if not isinstance(model, str | Path):
        return _whole_model(model)
    return load_model(model, dtype=torch.bfloat16 if loads_in_bf16(model) else torch.float32)


def given_model(model: PreTrainedModel | str | Path, args: TrainingArguments) -> PreTrainedModel:
    """Return the model; load it first if it is a folder or a hub id.

    It is loaded in bfloat16 if `args.bf16` is on, and otherwise in float32, as TRL does. Raises `UserError` if `model` is
    no model, or if a setting of a `DPOConfig` would be ignored.
    """
    kind, trusts = type(args).__name__, getattr(args, "trust_remote_code", False)
    settings = dict(getattr(args, "model_init_kwargs", None) or {})
    if isinstance(model, str | Path):
        dtype = settings.pop("dtype", settings.pop("torch_dtype", "bfloat16" if args.bf16 else "float32"))
        trusts = settings.pop("trust_remote_code", trusts)
        dtype = str(dtype).removeprefix("torch.")
        if dtype not in ("float32", "bfloat16"):
            raise UserError(
                f"{kind}.model_init_kwargs.dtype is {dtype!r}: allo trains models in float32 and bfloat16. Set one of them."
            )
        refuse(
            f"{kind}.model_init_kwargs.{name} is {value!r}: allo loads a model in its own way. Remove it, or load the model "
            "yourself and give it in place of its name."
            for name, value in settings.items()
            if (name, value) not in (("attn_implementation", "sdpa"), ("device_map", None))
        )
        return load_model(model, dtype=getattr(torch, dtype), device="cpu", trust_remote_code=trusts).to(
            args.device
        )
    model = _whole_model(model)
    refuse(
        f"{kind}.{name} is {value!r}: the model is loaded already. Remove it, and pass it when you load the model."
        for name, value in {"model_init_kwargs": settings, "trust_remote_code": trusts}.items()
        if value
    )
    return model


def _whole_model(model: object) -> PreTrainedModel:
    """Return a model of transformers. Raises `UserError` for anything else, such as a model inside a PEFT adapter."""
    if isinstance(model, PreTrainedModel):
        return model
    if hasattr(model, "module") or type(model).__name__ == "FullyShardedDataParallel":
        raise UserError(
            f"model is a {type(model).__name__}: give the model inside of it. One that no GPU holds is loaded by "
            "allo.load_shards, under torchrun, or by `shards` in a recipe."
        )
    advice = "merge its adapter (merge_and_unload) and give" if hasattr(model, "peft_config") else "give"
    raise UserError(
        f"model is a {type(model).__name__}: {advice} a causal language model of transformers, its folder or hub id."
    )


def given_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, model: PreTrainedModel, args: TrainingArguments | None = None
) -> PreTrainedTokenizerBase:
    """Return the tokenizer, by default the model's own; as in TRL it then pads with EOS if it has no pad token."""
    pad_token = getattr(args, "pad_token", None)
    if tokenizer is None:
        if not model.name_or_path:
            raise UserError(
                "processing_class: none is given, and the model has no name to load it by: give a tokenizer."
            )
        trusts = getattr(args, "trust_remote_code", False)
        try:
            return load_tokenizer(
                model.name_or_path, pad_token=pad_token, trust_remote_code=trusts, eos_pads=True
            )
        except UserError as error:
            raise UserError(
                f"processing_class: none is given, so it is loaded by the model's name; give the tokenizer. {error}"
            ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(
            f"processing_class is a {type(tokenizer).__name__}: allo reads text alone. Give a tokenizer, such as "
            "processor.tokenizer."
        )
    if tokenizer.pad_token is None and hasattr(args, "pad_token"):
        tokenizer.pad_token = pad_token or tokenizer.eos_token
        say(f"the tokenizer has no pad token: {tokenizer.pad_token} pads, as in TRL")
    return tokenizer


def use_optimizer(
    optimizers: Optimizers, selected: SelectedWeights, model: PreTrainedModel, *, lean: bool
) -> None:
    """Let a given optimizer train the selected weights in place of the model's tensors, with its own settings.

    Raises `UserError` for one that has trained before, has several groups, or does not train every tensor of the mask.
    """
    optimizer, scheduler = optimizers
    if optimizer is None:
        if scheduler is not None:
            raise UserError(
                "optimizers: a scheduler needs its optimizer: give both, or set args.lr_scheduler_type."
            )
        return
    if lean:
        raise UserError("optimizers: lean training has its own AdamW: remove the optimizer or `lean`.")
    if optimizer.state:
        raise UserError(
            "optimizers: the optimizer has a state of other weights: give one that has not stepped."
        )
    if len(optimizer.param_groups) != 1:
        raise UserError(
            f"optimizers: the optimizer has {len(optimizer.param_groups)} groups, but the selected weights are one vector: "
            "give one group, or set args.optim, whose weight decay spares norms and biases."
        )
    (group,) = optimizer.param_groups
    own = set(group["params"])
    left_out = [name for name, param in model.named_parameters() if param.requires_grad and param not in own]
    if left_out:
        raise UserError(
            f"optimizers: the mask selects weights of {left_out[0]}, which the optimizer does not train: make it of "
            "model.parameters() of the model that you give here."
        )
    group["params"] = selected.parameters()
