"""Conversion of a recipe's block to `transformers.TrainingArguments`, refusing fields that would be ignored or wrong."""

import copy
import dataclasses
import difflib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from allo.errors import UserError, refuse
from allo.models.load import quiet
from allo.ranks import is_joined
from allo.recipe import Recipe
from allo.training.trackers import check_trackers, tracker_names

Arguments = TrainingArguments  # for rooms that do not import transformers


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
    """Build `transformers.TrainingArguments` from a recipe's block.

    `key` names the block in errors. `kind` may be another library's class; `settings` are its fields that other keys
    of the recipe set, so the block may not. Raises `UserError` for a key or value that transformers or
    `argument_faults` names. Also for the hub's keys: a recipe is kept with its results, which must not contain
    secrets.
    """
    refuse(f"{key}.{fault}" for fault in _key_faults(training, kind))
    own = {"output_dir": str(folder), "seed": seed, "use_cpu": device.type == "cpu", **settings}
    refuse(f"{key}.{name}: set by allo from the recipe; remove it." for name in training if name in own)
    silent = {"disable_tqdm": True, "log_level": "error"}  # the console shows the steps
    try:
        # Processes of one command share their work without transformers, which would advise a launcher.
        with quiet() if is_joined() else nullcontext():
            arguments = kind(**(silent | training | own))
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"{key}: {_name_of(kind)} refuses it: {error}") from error
    try:
        check_trackers(arguments.report_to)
    except UserError as error:
        raise UserError(f"{key}.{error}") from error
    faults = argument_faults(arguments, lean=lean, trainer_is_ours=kind is TrainingArguments)
    refuse(f"{key}.{fault}" for fault in faults)
    return arguments


def _name_of(kind: type[TrainingArguments]) -> str:
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _key_faults(training: Mapping[str, Any], kind: type[TrainingArguments]) -> Iterator[str]:
    """Yield the faults of a block's keys and their values, each beginning with the key."""
    known = inspect.signature(kind).parameters
    forms = get_type_hints(TrainingArguments)  # TRL accepts more than its fields declare
    for name, value in training.items():
        if name.endswith("token"):
            yield f"{name}: no secret belongs in a recipe; set HF_TOKEN in the environment."
        elif name.startswith(("push_to_hub", "hub_")):
            yield f"{name}: nothing is uploaded; upload the finished run with `allo push RUN OWNER/NAME`."
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"see the fields of {_name_of(kind)}."
            yield f"{name}: unknown key; {hint}"
        elif name in _OF_SCRIPTS:
            yield f"{name}: {_OF_SCRIPTS[name]} Remove the key."
        else:
            try:
                TypeAdapter(forms.get(name, Any), config=_STRICT).validate_python(value)
            except ValidationError as error:
                yield f"{name}: {value!r}: {error.errors()[0]['msg']}."
    if training.get("save_only_model"):
        yield (
            "save_only_model: a run that is killed resumes from its checkpoints, which need the optimizer's state. Remove "
            "the key."
        )


def stage_arguments(
    recipe: Recipe,
    stage: str,
    *,
    folder: Path,
    device: torch.device,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> TrainingArguments:
    """Build the arguments of a stage from its block and `more`.

    Only the stages that align draw by the run's own seed; the others draw by the seed of the data.
    """
    block = getattr(recipe, stage)
    return training_arguments(
        {**tracker_names(recipe, stage), **block.training.model_dump(), **more},
        folder=folder,
        seed=recipe.seed if stage in recipe.training_stages else recipe.seed_of_data,
        device=device,
        key=f"{stage}.training",
        lean=getattr(block, "lean", False),
    )


_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
_NO_SCRIPT = "only scripts that call a Trainer read it; a recipe's stages decide what runs."
# Arguments that no Trainer reads.
_OF_SCRIPTS = {
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), _NO_SCRIPT),
    "resume_from_checkpoint": "a run resumes from its own last checkpoint.",
    "fsdp_config": "it has no effect without `fsdp`, which is not used: set `shards` in the recipe.",
}
_MIXED = (
    "mixed precision does not apply: the model computes in its own dtype, and the selected "
    "weights are trained in fp32. Load the model in bfloat16."
)
_ROUNDED = "evaluation would round the model's weights in place. Load the model in bfloat16."
_SHARDED = "FSDP1, ZeRO-3 and tensor parallel are not used. Of a model that no GPU holds, each process has its rows: load it by "
_SHARDED += "allo.load_shards, or set `shards` in the recipe, and start one process a GPU."
# Arguments that would be ignored or wrong, and the reasons.
_REFUSED = {
    "bf16": _MIXED,
    "fp16": _MIXED,
    "bf16_full_eval": _ROUNDED,
    "fp16_full_eval": _ROUNDED,
    "fsdp": _SHARDED,
    "deepspeed": _SHARDED,
    "parallelism_config": _SHARDED,
    "auto_find_batch_size": "a smaller batch would change the training that you asked for. Lower "
    "per_device_train_batch_size and raise gradient_accumulation_steps.",
    "push_to_hub": "allo uploads nothing while it trains. Upload the result with `hf upload`.",
    "dataloader_num_workers": "rows are lists of ids in memory, so workers have nothing to load.",
    "torch_empty_cache_steps": "a step leaves no cached memory to release.",
    "neftune_noise_alpha": "policy and reference must see the same embeddings.",
    "label_smoothing_factor": "the losses have no such term; for dpo, set improve.loss_settings.label_smoothing.",
}


_NO_DDP = "the model is not wrapped in DDP: only the gradient of the selected weights is sent."
_NO_WORKERS = _REFUSED["dataloader_num_workers"]
_OWN_EVALUATION = "evaluation has one way here: `compute_metrics` is given all logits and ids together."
_OWN_BATCHES = (
    "each process has all rows of a step and computes its share, so nothing is split or dispatched."
)
_NO_UPLOAD = _REFUSED["push_to_hub"]
_PLAIN_CALLS = "the selected weights are trained in the model's own layers, which this would bypass."
# Arguments that our trainers do not read, so they must have their defaults.
_UNREAD = {
    "optim_target_modules": "`mask` says which weights are trained.",
    "average_tokens_across_devices": "a step's loss is always divided by the items of all processes.",
    "torch_compile": _PLAIN_CALLS,
    "torch_compile_backend": _PLAIN_CALLS,
    "torch_compile_mode": _PLAIN_CALLS,
    "use_liger_kernel": _PLAIN_CALLS,
    "liger_kernel_config": _PLAIN_CALLS,
    "use_cache": "training reads whole rows, so it keeps no keys and values.",
    "eval_do_concat_batches": _OWN_EVALUATION,
    "eval_use_gather_object": _OWN_EVALUATION,
    "eval_accumulation_steps": _OWN_EVALUATION,
    "include_for_metrics": _OWN_EVALUATION,
    "batch_eval_metrics": _OWN_EVALUATION,
    "label_names": "the losses read fixed columns.",
    "enable_jit_checkpoint": "a checkpoint is written at a step's end, by save_strategy; a killed run resumes from it.",
    "hub_token": _NO_UPLOAD,
    "hub_private_repo": _NO_UPLOAD,
    "hub_model_id": _NO_UPLOAD,
    "hub_strategy": _NO_UPLOAD,
    "hub_always_push": _NO_UPLOAD,
    "hub_revision": _NO_UPLOAD,
    "accelerator_config": _OWN_BATCHES,
    "dataloader_persistent_workers": _NO_WORKERS,
    "dataloader_prefetch_factor": _NO_WORKERS,
    "dataloader_multiprocessing_context": _NO_WORKERS,
    "dataloader_in_order": _NO_WORKERS,
    "length_column_name": "rows have no such column; micro-batches group rows of similar length.",
    "ddp_find_unused_parameters": _NO_DDP,
    "ddp_bucket_cap_mb": _NO_DDP,
    "ddp_broadcast_buffers": _NO_DDP,
    "ddp_static_graph": _NO_DDP,
}
_SAMPLING = ("random", "sequential")


def refused_fields() -> dict[str, str]:
    """Return the fields of `TrainingArguments` that must have their defaults, and the reasons."""
    return {name: why for name, why in (_REFUSED | _UNREAD).items() if name != "bf16"}


def argument_faults(
    args: TrainingArguments, *, lean: bool = False, trainer_is_ours: bool = True
) -> Iterator[str]:
    """Yield the faults of fields that would be ignored or wrong, each beginning with the field's name.

    `trainer_is_ours`: a trainer on selected weights, which reads fewer fields than transformers' own.
    """
    refused = [name for name in _REFUSED if getattr(args, name)]
    yield from (f"{name}: {_REFUSED[name]} Remove the key." for name in refused)
    if args.mixed_precision != "no" and not {"bf16", "fp16"} & {*refused}:  # accelerate's launcher sets it
        yield f"mixed_precision {args.mixed_precision} of the launcher: {_MIXED}"
    if args.save_only_model and args.load_best_model_at_end:
        yield (
            "load_best_model_at_end: with save_only_model, checkpoints lack the fp32 weights that training would end with. "
            "Remove one of the two."
        )
    try:
        lean_settings(args) if lean else optimizer_of(args)
    except UserError as error:
        yield str(error)
        return
    if trainer_is_ours:
        yield from _unread(args)


def faults_before_loading(args: TrainingArguments | None, *, lean: bool) -> Iterator[str]:
    """Yield `argument_faults` that need no model: half precision is compared with the model's own later."""
    if isinstance(args, TrainingArguments):
        own = copy.copy(args)
        own.bf16, own.mixed_precision = False, "no"
        yield from argument_faults(own, lean=lean)


def own_arguments(
    args: TrainingArguments, model: PreTrainedModel, *, lean: bool, is_config: bool, evaluates: bool
) -> TrainingArguments:
    """Return a checked copy for a trainer on selected weights.

    `is_config`: the class is another library's, with its defaults. `evaluates`: there are rows to evaluate.
    """
    args = copy.copy(args)
    if args.bf16 and model.dtype == torch.bfloat16:
        # The model computes in bf16 and the selected weights are trained in fp32, as in mixed precision.
        args.bf16, args.mixed_precision = False, "no"
    if args.bf16 and is_config:
        raise UserError(
            f"{type(args).__name__}.bf16 is on (its default), but the model computes in "
            f"{str(model.dtype).removeprefix('torch.')}: set bf16=False, or load the model in bfloat16."
        )
    refuse(argument_faults(args, lean=lean))
    if not evaluates and args.eval_strategy != "no":
        raise UserError(f"eval_strategy: {args.eval_strategy.value} needs an eval_dataset; remove the key.")
    if args.n_gpu > 1:  # the Trainer would multiply the batch by the number of visible GPUs
        args._n_gpu = 1
    # The collators read the ids' own columns, and the filter would hide a NaN in the logged loss.
    args.remove_unused_columns = args.logging_nan_inf_filter = False
    return args


def _unread(args: TrainingArguments) -> Iterator[str]:
    if args.train_sampling_strategy not in _SAMPLING:
        yield (
            f"train_sampling_strategy: {args.train_sampling_strategy} is none of {', '.join(_SAMPLING)}; micro-batches "
            "group rows of similar length in any case. Remove the key."
        )
    by_reason: dict[str, list[str]] = {}
    for name, reason in _UNREAD.items():
        if not is_default(args, name):
            by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():  # transformers fills in some beside others
        yield f"{', '.join(names)}: {reason} Remove the key{'s' if len(names) > 1 else ''}."
    if args.optim_args and not reads_optim_args(args):
        yield f"optim_args: {getattr(args.optim, 'value', args.optim)} reads none of them. Remove the key."


def is_default(args: TrainingArguments, name: str) -> bool:
    """Return True if a field has its default; one without a default never does."""
    value = getattr(args, name)
    if name == "accelerator_config":  # transformers fills in the default
        return bool(value == AcceleratorConfig())
    if name == "average_tokens_across_devices" and args.world_size <= 1:
        return True  # transformers switches it off for a single process
    field = type(args).__dataclass_fields__[name]
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return bool(value == field.default or getattr(value, "value", value) == field.default)


def reads_optim_args(args: TrainingArguments) -> bool:
    """Return True if `args.optim_args` changes the optimizer's settings; for most optimizers it does not."""
    without = copy.copy(args)
    without.optim_args = None
    return optimizer_of(args)[1] != optimizer_of(without)[1]


# Arguments of optimizers that train the model's own tensors, one by one.
_WHOLE_MODEL = {"params", "model", "optimizer_dict"}


def optimizer_of(args: TrainingArguments) -> tuple[Any, dict[str, Any]]:
    """Return the class of `args.optim` and its settings. Raises `UserError` if it cannot train a flat vector."""
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
    """Return the settings of `LeanAdamW`. Raises `UserError` unless `args.optim` is torch's AdamW."""
    optimizer_class, kwargs = optimizer_of(args)
    if optimizer_class is not torch.optim.AdamW:
        name = getattr(args.optim, "value", args.optim)
        raise UserError(f"optim: {name}: lean training has its own AdamW; remove this key or `lean`.")
    return {name: kwargs[name] for name in ("lr", "betas", "eps")}
