"""A training block of a recipe: what it may say, what is refused and with which words."""

from pathlib import Path
from typing import Any

import pytest
import torch

from allo.errors import UserError
from allo.training.arguments import training_arguments
from allo.training.run import train
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from tiny import NUM_PAIRS, TOKENIZER, arguments, full_mask, logged, model, pairs, trained, wrongs


@pytest.mark.parametrize(
    "name", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop"]
)
def test_optimizers_that_work_entry_by_entry_train(name: str, tmp_path: Path) -> None:
    rate = 0.3 if name == "sgd" else 0.01
    trainer = trained(SftTrainer, wrongs(), tmp_path, optim=name, learning_rate=rate)
    assert logged(trainer)[-1] < logged(trainer)[0] - 0.01


@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "lomo", "galore_adamw"])
def test_an_optimizer_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^test\.training\.optim: {name} is not available: .*install"):
        arguments(tmp_path, optim=name, optim_target_modules=["q_proj"])


def test_the_rows_of_metrics_jsonl_hold_nothing_by_the_clock(tmp_path: Path) -> None:
    policy = model()
    settings = {"eval_strategy": "steps", "eval_steps": 4, "logging_steps": 4}
    args = arguments(tmp_path, **settings)
    rows = train(
        ImproveTrainer(policy, args, pairs(), TOKENIZER, mask=full_mask(policy), eval_dataset=pairs())
    )
    assert [row["step"] for row in rows] == [4, 4, 8, 8]
    assert ["eval_loss" in row for row in rows] == [False, True, False, True]
    assert not [
        name for row in rows for name in row if "runtime" in name or "second" in name or "time" in name
    ]


def test_an_unknown_key_is_named_with_its_block(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^improve\.training\.learning_rat: .*did you mean learning_rate\?"):
        training_arguments(
            {"learning_rat": 1}, folder=tmp_path, seed=0, device=torch.device("cpu"), key="improve.training"
        )


def test_what_allo_sets_is_not_the_blocks_to_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test\.training\.use_cpu: set by allo"):
        arguments(tmp_path, use_cpu=True)
    with pytest.raises(UserError, match=r"test\.training: .*adamx"):
        arguments(tmp_path, optim="adamx")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bf16": True}, r"^test\.training\.bf16: mixed precision"),
        ({"bf16_full_eval": True}, r"^test\.training\.bf16_full_eval: evaluation would round"),
        ({"fp16_full_eval": True}, r"^test\.training\.fp16_full_eval: evaluation would round"),
        ({"fsdp": "full_shard"}, r"^test\.training\.fsdp: FSDP1, ZeRO-3 and tensor parallel are not used"),
        ({"auto_find_batch_size": True}, r"^test\.training\.auto_find_batch_size: .*Lower per_device"),
        ({"save_only_model": True}, r"^test\.training\.save_only_model: .*optimizer"),
        ({"neftune_noise_alpha": 5}, r"^test\.training\.neftune_noise_alpha: policy and reference"),
        ({"label_smoothing_factor": 0.1}, r"^test\.training\.label_smoothing_factor: the losses have no"),
        ({"eval_strategy": "epoch"}, "eval_strategy: epoch needs"),
    ],
)
def test_settings_that_would_not_apply_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        trained(ImproveTrainer, pairs(), tmp_path, **settings)


@pytest.mark.parametrize("name", ["hub_token", "push_to_hub_token", "token"])
def test_a_secret_is_refused_and_not_repeated(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^test\.training\.{name}: .*set HF_TOKEN") as refusal:
        arguments(tmp_path, **{name: "hf_secret"})
    assert "hf_secret" not in str(refusal.value)


@pytest.mark.parametrize("name", ["push_to_hub", "push_to_hub_model_id", "hub_model_id"])
def test_nothing_is_uploaded(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^test\.training\.{name}: nothing is uploaded"):
        arguments(tmp_path, **{name: True})


@pytest.mark.parametrize("name", ["push_to_hub", "deepspeed"])
def test_arguments_that_no_recipe_made_are_checked_too(name: str, tmp_path: Path) -> None:
    policy, args = model(), arguments(tmp_path)
    setattr(args, name, True)  # transformers itself asks for a login or a package first
    with pytest.raises(UserError, match=rf"^{name}: .*Remove the key"):
        ImproveTrainer(policy, args, pairs(), TOKENIZER, mask=full_mask(policy))


def test_what_counts_tokens_is_no_secret(tmp_path: Path) -> None:
    assert arguments(tmp_path, include_num_input_tokens_seen=True)


def test_the_mask_of_another_model_is_refused(tmp_path: Path) -> None:
    mask = full_mask(model(hidden_size=32))
    with pytest.raises(UserError, match=r"embed_tokens.*\[163, 32\].*\[163, 16\]|mask"):
        trained(ImproveTrainer, pairs(), tmp_path, mask=mask)


def test_token_weights_of_another_length_are_refused(tmp_path: Path) -> None:
    rows = wrongs()
    rows[3]["token_weights"].append(1.0)
    with pytest.raises(UserError, match=r"token_weights has \d+ entries for \d+ completion tokens"):
        trained(ForgetTrainer, rows, tmp_path)


def test_what_does_not_fit_is_dropped_and_counted_and_must_leave_something(tmp_path: Path) -> None:
    # Prompts are cut from the left; a completion of 12 tokens needs 13 places.
    trainer = trained(ImproveTrainer, pairs(), tmp_path, own={"max_length": 10})
    longest = [max(len(TOKENIZER(row[side]).input_ids) for side in ("chosen", "rejected")) for row in pairs()]
    assert 0 < trainer.num_dropped == sum(length + 1 > 10 for length in longest) < NUM_PAIRS
    with pytest.raises(
        UserError, match=r"no row is left to train on: all 16 were dropped .*Raise max_length"
    ):
        trained(ImproveTrainer, pairs(), tmp_path, own={"max_length": 2})
    with pytest.raises(UserError, match="there is no row to train on"):
        trained(ImproveTrainer, [], tmp_path)
    rows = [row | {"token_weights": [0.0] * len(row["token_weights"])} for row in wrongs()]
    with pytest.raises(
        UserError, match=r"no row is left to train on: all 16 were dropped .*Raise the score threshold"
    ):
        trained(ForgetTrainer, rows, tmp_path)


def test_several_visible_gpus_leave_the_batch_as_it_is(tmp_path: Path) -> None:
    policy, args = model(), arguments(tmp_path)
    args._n_gpu = 2  # what transformers finds on such a machine
    trainer = ImproveTrainer(policy, args, pairs(), TOKENIZER, mask=full_mask(policy))
    rows = next(iter(trainer.get_train_dataloader()))
    assert len(rows) == args.per_device_train_batch_size * args.gradient_accumulation_steps
