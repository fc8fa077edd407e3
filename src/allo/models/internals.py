"""The internals of other libraries that allo overrides, calls or reads, each with the reason.

Any release may change them, so the module or room that uses them checks them when it is imported.
"""

import dis
import importlib.metadata
import inspect
import pkgutil

from allo.errors import UserError, and_more

# The versions that work: from the lower bound in pyproject.toml to the last one that all tests ran with.
WORKING = {
    "transformers": ">=5.23,<5.24",
    "accelerate": ">=1.10.1,<1.16",
    "trl": "==1.16.*",
    "peft": ">=0.20,<0.22",
    "torch": ">=2.6,<2.14",
}

_CHECKPOINT = "a checkpoint holds the selected weights, without pickle"
_EVALUATION = "evaluation computes the loss as training does"
_GROWN = "a rehearsed cache is as large as at the last step"
_MICRO_BATCHES = "a step's rows are counted by micro-batches"
_MOVED = "rows take other places in the batch, with keys and states"
_NO_DDP = "the model is not wrapped in DDP"
_PLAIN = "only models with plain attention share prompts"
_PREFILL = "a prompt is read with plain attention's mask"
_RENAMED = "weights under an older name are recognised"
_STORED = "weights have their names and places on disk"
_SHARED = "completions share their prompt's keys and values"

# User -> internal -> reason. An internal is `module:Class.name`, with the parameters that a method must have; "..."
# stands for further optional ones.
INTERNALS = {
    "allo.models": {
        "torch._subclasses.fake_tensor:FakeTensor": "weights in a rehearsal have no values",
        "transformers.conversion_mapping:get_model_conversion_mapping(model, ...)": _RENAMED,
        "transformers.core_model_loading:dot_natural_key": _STORED,
        "transformers.core_model_loading:PrefixChange": _STORED,
        "transformers.core_model_loading:WeightRenaming": _STORED,
        "transformers.core_model_loading:WeightTransform.rename_source_key(self, source_key)": _RENAMED,
        "transformers.core_model_loading:rename_source_key(source_key, weight_renamings, weight_converters, base_model_prefix, meta_state_dict, ...)": _STORED,
        "transformers.integrations.gguf.reader:read_gguf_metadata(gguf_path, ...)": "a GGUF file's tensors are named in a moment",
        "transformers:PreTrainedModel._get_dtype_plan(self, dtype)": "weights that a family keeps in fp32 are known before loading",
        "transformers:PreTrainedModel._keys_to_ignore_on_load_missing": "weights that a model can do without may be absent",
        "transformers:PreTrainedModel._keys_to_ignore_on_load_unexpected": "stored weights that a model ignores are no fault",
        "transformers:PreTrainedModel._supports_attention_backend": _PLAIN,
        "transformers:PretrainedConfig._attn_implementation": _PLAIN,
        "transformers.cache_utils:DynamicLayer": _PLAIN,
        "transformers.cache_utils:DynamicLayer.keys": _SHARED,
        "transformers.cache_utils:DynamicLayer.values": _SHARED,
        "transformers.cache_utils:DynamicSlidingWindowLayer": _PLAIN,
        "transformers.cache_utils:DynamicSlidingWindowLayer.sliding_window": _SHARED,
        "transformers:DynamicCache.layers": _SHARED,
        "transformers:DynamicCache.update(self, key_states, value_states, layer_idx, *args, **kwargs)": _SHARED,
        "transformers.initialization:no_init_weights()": "a model of a rehearsal has no values to draw",
        "transformers.masking_utils:sdpa_mask": _PREFILL,
        "transformers:DynamicCache.reorder_cache(self, beam_idx)": _MOVED,
        "transformers:DynamicCache.is_linear": "a model without attention is not said to have an eager one",
        "transformers.cache_utils:DynamicLayer.is_initialized": _GROWN,
        "transformers.cache_utils:DynamicSlidingWindowLayer.cumulative_length": _GROWN,
        "transformers:GenerationMixin._supports_default_dynamic_cache()": "models with a cache of their own are refused",
        "transformers:PreTrainedModel._is_stateful": "recurrent models do not share prompts in training",
        "transformers.convert_slow_tokenizer:bytes_to_unicode()": "parts of characters are shown as bytes",
        "transformers.utils:logging": "models load without progress bars",
        "transformers:PreTrainedModel._no_split_modules": "layers are the parts that FSDP2 gathers",
        "transformers:PreTrainedModel._is_hf_initialized": "a shard's weights that were read are not drawn again",
        "torch:ops.aten._softmax_backward_data.default": "attention by blocks keeps no scores for the backward pass",
        "torch:_C.DisableTorchFunctionSubclass": "a mask of blocks is a tensor for every other operation",
    },
    # The room knows no transformers until it is given a model; `allo.models` checks these.
    "allo.weights.layout": {
        "transformers.core_model_loading:WeightConverter.reverse_transform(self)": _STORED,
        "transformers.core_model_loading:PrefixChange": _STORED,
        "transformers.core_model_loading:apply_converters(source_key, weight_converters)": _STORED,
        "transformers.core_model_loading:revert_weight_conversion(model, state_dict)": _STORED,
        "transformers.core_model_loading:convert_and_load_state_dict_in_model._weight_conversions": _STORED,
        "transformers:PreTrainedModel._keys_to_ignore_on_save": _STORED,
    },
    "allo.training": {
        "transformers:Trainer.save_model(self, output_dir, _internal_call)": _CHECKPOINT,
        "transformers:Trainer._load_from_checkpoint(self, resume_from_checkpoint, model)": _CHECKPOINT,
        "transformers:Trainer._load_best_model(self)": _CHECKPOINT,
        "transformers:Trainer._run_epoch": "no step follows the last of max_steps",
        "transformers:Trainer._save_optimizer_and_scheduler(self, output_dir)": _CHECKPOINT,
        "transformers:Trainer._load_optimizer_and_scheduler(self, checkpoint)": _CHECKPOINT,
        "transformers:Trainer._save_rng_state(self, output_dir)": _CHECKPOINT,
        "transformers:Trainer._load_rng_state(self, checkpoint)": _CHECKPOINT,
        "transformers:Trainer.train(self, ...)": "a precomputed reference comes first",
        "transformers:Trainer._prepare_inputs(self, inputs)": "batches move to the model's device",
        "transformers:Trainer._get_train_sampler(self, train_dataset)": "rows keep the Trainer's order",
        "transformers:Trainer.get_train_dataloader(self)": _MICRO_BATCHES,
        "transformers:Trainer.get_eval_dataloader(self, eval_dataset)": _EVALUATION,
        "transformers:Trainer.training_step(self, model, inputs, num_items_in_batch)": _MICRO_BATCHES,
        "transformers:Trainer.floating_point_ops(self, inputs)": _MICRO_BATCHES,
        "transformers:Trainer._track_num_input_tokens(self, inputs)": _MICRO_BATCHES,
        "transformers:Trainer.evaluate(self, eval_dataset, ignore_keys, metric_key_prefix)": _EVALUATION,
        "transformers:Trainer.evaluation_loop(self, dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)": _EVALUATION,
        "transformers.trainer_utils:EvalLoopOutput": _EVALUATION,
        "transformers:Trainer.callback_handler": _EVALUATION,
        "transformers:Trainer.create_accelerator_and_postprocess(self)": _NO_DDP,
        "accelerate:Accelerator.prepare_model(self, model, device_placement, evaluation_mode)": _NO_DDP,
        "transformers:Trainer.create_optimizer(self, model)": "the selected weights are one flat vector",
        "transformers:Trainer.get_optimizer_cls_and_kwargs(args, ...)": "the recipe's `optim` names the optimizer",
        "transformers:Trainer._clip_grad_norm(self, model)": "the flat gradient is clipped",
        "transformers:Trainer._get_grad_norm(self, model, grad_norm)": "the flat gradient's norm is checked",
        "transformers:Trainer.log(self, logs, start_time)": "logs hold means over all ranks",
        "transformers:Trainer.is_fsdp_enabled": "sharded parameters are refused",
        "transformers:Trainer.is_deepspeed_enabled": "sharded parameters are refused",
        "transformers:TrainingArguments._n_gpu": "further GPUs do not multiply the batch",
        "transformers.trainer_callback:PrinterCallback": "logs are not printed",
        "transformers.trainer_pt_utils:AcceleratorConfig": "settings that would be ignored are refused",
        "transformers.trainer_pt_utils:nested_concat(tensors, new_tensors, padding_index)": "batches of logits have different lengths",
        "transformers.modeling_layers:GradientCheckpointingLayer": "layers recompute activations in eval mode",
        "transformers:PreTrainedModel.activation_checkpointing_enable": "layers recompute activations in eval mode",
        "accelerate.data_loader:prepare_data_loader(dataloader, device, num_processes, process_index, ...)": "a resumed run sees the same order",
    },
    # The room knows no accelerate until another has loaded it; `allo.training` checks these.
    "allo.ranks": {
        "accelerate.state:AcceleratorState._reset_state(reset_partial_state)": "outside shared work, rank 0 is a single process",
        "accelerate.state:GradientState._reset_state()": "outside shared work, rank 0 is a single process",
    },
    "allo.training.trackers": {
        f"transformers.integrations.integration_utils:{name}": "each stage has a run of its own, with an image of its mask"
        for name in (
            *("INTEGRATION_TO_CALLBACK", "get_available_reporting_integrations"),
            *("TensorBoardCallback", "TrackioCallback._trackio", "WandbCallback._wandb"),
        )
    },
    "allo.baselines.adapters": {
        "trl:DPOTrainer._prepare_dataset(self, dataset, processing_class, args, dataset_name)": "pairs are already token ids",
        "trl:DPOTrainer._send_telemetry(self)": "nothing is sent",
        "peft.tuners.shira:ShiraLayer.shira_indices": "SHiRA's indices count as bytes of the adapter",
    },
    "allo.baselines.on_policy": {
        f"trl:{trainer}.{method}": reason
        for trainer in ("RLOOTrainer", "GRPOTrainer")
        for method, reason in {
            "_tokenize_prompts(self, prompts)": "prompts are tokenized by allo",
            "_send_telemetry(self)": "nothing is sent",
            "training_step(self, model, inputs, num_items_in_batch)": "logits are checked before sampling",
        }.items()
    },
    "allo.plan.live_bytes": {
        "torch.utils._python_dispatch:TorchDispatchMode": "every operation is counted",
        "torch.utils._pytree:tree_leaves(tree, ...)": "every result is counted",
        "torch:UntypedStorage._cdata": "views of one storage count once",
        "torch:ops.aten.add.Tensor._schema": "operations in place make no tensor",
    },
    "allo.plan.remembered": {
        "torch._subclasses.fake_tensor:FakeTensor": "results are made again without values",
        "torch:UntypedStorage._cdata": "views of an argument are made as views",
        "torch.utils._pytree:TreeSpec": "the form of several results is kept",
        "torch.utils._pytree:tree_flatten(tree, ...)": "results of several tensors are made again",
        "torch.utils._pytree:tree_unflatten(leaves, treespec)": "results of several tensors are made again",
    },
    "allo.plan.rehearsal": {
        "torch._subclasses.fake_tensor:FakeTensorMode": "tensors have no values",
        "torch.utils._pytree:tree_map_only": "tensors lose their values",
        "torch:ops.aten._local_scalar_dense.default": "an unknown number is 0",
        "torch:ops.aten._grouped_mm.default": "experts have shapes in every dtype",
    },
}


def check(user: str) -> None:
    """Raise `UserError` if an internal that this room or module uses is absent or has other parameters."""
    changes = {name: change for name in INTERNALS[user] if (change := _change(name)) is not None}
    if changes:
        name, change = next(iter(changes.items()))
        package = name.partition(":")[0].partition(".")[0]
        raise UserError(
            f"{package} {importlib.metadata.version(package)}: {name.partition('(')[0].replace(':', '.')} {change}"
            f"{and_more(changes)}. {user} uses it so that {INTERNALS[user][name]}. Install a version that works: "
            f"pip install '{package}{WORKING[package]}'."
        )


def _change(internal: str) -> str | None:
    """Describe how an internal differs from what is expected; None if it does not."""
    path, opened, expected = internal.removesuffix(")").partition("(")
    try:
        found = pkgutil.resolve_name(path)
    except ImportError as error:
        return f"cannot be imported ({error})"
    except AttributeError:
        return None if not opened and _is_set_by_code(path) else "is gone"
    if not opened:
        return None
    there = [each.replace(annotation=each.empty) for each in inspect.signature(found).parameters.values()]
    names = [str(each.replace(default=each.empty)) for each in there]
    first, more, _ = expected.partition("...")
    wanted = [name for name in first.split(", ") if name]
    further = there[len(wanted) :]
    if names[: len(wanted)] == wanted and (all(map(_is_optional, further)) if more else not further):
        return None
    return f"takes ({', '.join(names)}) and not ({expected})"


def _is_optional(parameter: inspect.Parameter) -> bool:
    return str(parameter).startswith("*") or parameter.default is not parameter.empty


def _is_set_by_code(path: str) -> bool:
    """Return True if a method of a class, or a function, sets an attribute that only objects have."""
    owner, _, name = path.rpartition(".")
    try:
        found = pkgutil.resolve_name(owner)
    except AttributeError:
        return False
    classes = found.mro() if isinstance(found, type) else ()
    members = [found, *(member for each in classes for member in vars(each).values())]
    functions = (getattr(member, "fget", getattr(member, "func", member)) for member in members)
    codes = (each.__code__ for each in functions if hasattr(each, "__code__"))
    return any(
        step.opname == "STORE_ATTR" and step.argval == name
        for code in codes
        if name in code.co_names
        for step in dis.get_instructions(code)
    )
