"""Every field of `transformers.TrainingArguments`: read by our trainers or the Trainer below them, or refused by name."""

import copy
import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from allo.errors import UserError
from allo.training import arguments as room
from allo.training.arguments import argument_faults
from allo.training.trainer import ImproveTrainer, SftTrainer
from tiny import NUM_PAIRS, TOKENIZER, arguments, full_mask, logged, model, pairs, trained, weights, wrongs

pytestmark = pytest.mark.invariant(
    "A field of TRL's `DPOConfig` or of `TrainingArguments` is honoured or refused."
)

# Read by our step, optimizer, loaders or loops.
OURS = {
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("learning_rate", "weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "train_sampling_strategy", "dataloader_drop_last", "data_seed", "eval_strategy"),
    *("include_num_input_tokens_seen", "output_dir", "save_only_model"),
}
# Read by transformers where we add nothing: the schedule, the loop, logging, saving, evaluation's times, the device.
THEIRS = {
    *("num_train_epochs", "max_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "seed"),
    *(
        "full_determinism",
        "tf32",
        "use_cpu",
        "ddp_backend",
        "ddp_timeout",
        "local_rank",
        "skip_memory_metrics",
    ),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "debug"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level"),
    *("log_level_replica", "disable_tqdm", "report_to", "run_name", "project"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("eval_steps", "eval_delay", "eval_on_start", "save_strategy", "save_steps", "save_on_each_node"),
    *("save_total_limit", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("ignore_data_skip", "restore_callback_states_from_checkpoint"),
}
# True of our trainers at both values: nothing is pinned, columns are known by name, evaluation keeps no predictions
# without `compute_metrics`, and a NaN ends the run.
BOTH = {"dataloader_pin_memory", "remove_unused_columns", "prediction_loss_only", "logging_nan_inf_filter"}
# For the script that makes the arguments; the Trainer reads none of them. `fsdp_config` says nothing without `fsdp`.
SCRIPTS = {"do_train", "do_eval", "do_predict", "resume_from_checkpoint", "fsdp_config"}

OTHER: dict[str, Any] = {
    "optim_target_modules": ["q_proj"],
    "average_tokens_across_devices": False,
    "torch_compile_backend": "inductor",
    "torch_compile_mode": "default",
    "liger_kernel_config": {"rope": True},
    "eval_do_concat_batches": False,
    "eval_accumulation_steps": 2,
    "include_for_metrics": ["loss"],
    "label_names": ["labels"],
    "hub_token": "hf_secret",
    "hub_model_id": "a/b",
    "hub_strategy": "end",
    "hub_revision": "main",
    "accelerator_config": AcceleratorConfig(split_batches=True),
    "dataloader_num_workers": 2,
    "dataloader_prefetch_factor": 2,
    "dataloader_multiprocessing_context": "spawn",
    "dataloader_in_order": False,
    "length_column_name": "size",
    "ddp_bucket_cap_mb": 25,
    "torch_empty_cache_steps": 2,
    "neftune_noise_alpha": 5.0,
    "label_smoothing_factor": 0.1,
}
REFUSED = {*room._REFUSED, *room._UNREAD}


def test_each_field_has_one_reading() -> None:
    """A field that a new transformers adds fails here until someone has looked at what it does to us."""
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    tables = [OURS, THEIRS, BOTH, SCRIPTS, REFUSED]
    named = [name for table in tables for name in table]
    assert len(named) == len(set(named))
    assert set(named) == fields


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_be_ignored_is_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = copy.copy(arguments(tmp_path))
    assert not list(argument_faults(args))
    setattr(args, name, OTHER.get(name, True))
    monkeypatch.setattr(type(args), "world_size", 2)  # one process has no tokens to average
    (fault,) = argument_faults(args)
    assert re.search(rf"^{name}: .*\. .*Remove the key\.$", fault)
    assert "hf_secret" not in fault


def test_a_trainer_refuses_what_no_recipe_checked(tmp_path: Path) -> None:
    policy = model()
    args = TrainingArguments(str(tmp_path), use_cpu=True, torch_compile_mode="default")
    os.environ.pop("ACCELERATE_DYNAMO_MODE", None)
    os.environ.pop("ACCELERATE_DYNAMO_BACKEND", None)
    with pytest.raises(UserError, match=r"^torch_compile, torch_compile_backend, torch_compile_mode: "):
        ImproveTrainer(policy, args, pairs(), TOKENIZER, mask=full_mask(policy))
    with pytest.raises(UserError, match=r"^test\.training\.label_names: "):
        arguments(tmp_path, label_names=["labels"])


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_orders_that_need_a_column_of_lengths_are_refused(strategy: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^test\.training\.train_sampling_strategy: {strategy} is none of"):
        arguments(tmp_path, train_sampling_strategy=strategy)


def test_arguments_of_an_optimizer_that_reads_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^test\.training\.optim_args: adamw_torch reads none of them"):
        arguments(tmp_path, optim="adamw_torch", optim_args="amsgrad=True")
    assert arguments(tmp_path, optim="sgd", optim_args="momentum=0.9")


def test_mixed_precision_of_the_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UserError, match=r"^test\.training\.mixed_precision bf16 of the launcher: "):
        arguments(tmp_path)


def test_mixed_precision_is_what_a_bf16_model_does(tmp_path: Path) -> None:
    args = copy.copy(arguments(tmp_path))
    args.bf16, args.mixed_precision = True, "bf16"
    policy = model(torch.bfloat16)
    mixed = SftTrainer(policy, args, wrongs(), TOKENIZER, mask=full_mask(policy))
    mixed.train()
    plain = trained(
        SftTrainer, wrongs(), tmp_path, policy=(other := model(torch.bfloat16)), mask=full_mask(other)
    )
    assert logged(mixed) == logged(plain)
    policy = model()
    with pytest.raises(UserError, match=r"^bf16: mixed precision does not apply"):
        SftTrainer(policy, args, wrongs(), TOKENIZER, mask=full_mask(policy))


def test_rows_come_in_their_order_and_a_last_short_step_is_left_out(tmp_path: Path) -> None:
    settings = {
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": 3,
        "num_train_epochs": 1,
    }
    policy = model()
    for drop in (False, True):
        args = arguments(tmp_path, dataloader_drop_last=drop, **settings)
        loader = SftTrainer(policy, args, wrongs(), TOKENIZER, mask=full_mask(policy)).get_train_dataloader()
        numbers = [[row["number"] for row in step] for step in loader]
        assert [number for step in numbers for number in step] == list(range(12 if drop else NUM_PAIRS))


def test_recomputed_activations_change_no_number(tmp_path: Path) -> None:
    plain = trained(ImproveTrainer, pairs(), tmp_path / "plain")
    again = trained(ImproveTrainer, pairs(), tmp_path / "again", activation_checkpointing=True)
    assert again.model.is_activation_checkpointing and not plain.model.is_activation_checkpointing
    assert logged(again) == pytest.approx(logged(plain), abs=1e-6)
    for name, tensor in weights(plain.model).items():
        torch.testing.assert_close(weights(again.model)[name], tensor)


@pytest.mark.parametrize("shared", [True, False])
def test_tokens_seen_are_those_that_the_model_reads(shared: bool, tmp_path: Path) -> None:
    own = {"shared_prefix": shared}
    settings = {"num_train_epochs": 1}
    for kind in ("all", "non_padding"):
        policy, read, masked = model(), [0], [0]

        def count(module: Any, args: Any, kwargs: Any, read: Any = read, masked: Any = masked) -> None:
            if torch.is_grad_enabled():
                read[0] += kwargs["input_ids"].numel()
                masked[0] += int((kwargs["input_ids"] != TOKENIZER.pad_token_id).sum())

        policy.model.register_forward_pre_hook(count, with_kwargs=True)
        trainer = trained(
            ImproveTrainer,
            pairs(),
            tmp_path / kind,
            policy=policy,
            own=own,
            include_num_input_tokens_seen=kind,
            **settings,
        )
        seen = trainer.state.num_input_tokens_seen
        assert seen == (read if kind == "all" else masked)[0] > 0
        assert [row for row in trainer.state.log_history if "loss" in row][-1][
            "num_input_tokens_seen"
        ] == seen
