"""Checkpoints: small, without pickle, and a run that was stopped ends as one that was not."""

import copy
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, TrainerCallback

from allo.errors import UserError
from allo.training.checkpointing import load_tree, save_tree, whole_checkpoints
from allo.training.run import train
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer
from tiny import TOKENIZER, arguments, every_third, logged, model, pairs, trained, weights, wrongs

SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}


class Stop(TrainerCallback):
    """Stands for a kill after the given optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def improver(folder: Path, *, stop: int | None = None, **settings: Any) -> ImproveTrainer:
    policy = model()
    return ImproveTrainer(
        policy,
        arguments(folder, **(SAVING | settings)),
        pairs(),
        TOKENIZER,
        mask=every_third(policy),
        callbacks=[] if stop is None else [Stop(stop)],
    )


def interrupted(folder: Path, *, stop: int, **settings: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(improver(folder, stop=stop, **settings))


def assert_same_state(one: SelectedTrainer, other: SelectedTrainer) -> None:
    """Bit for bit: weights, masters, slots, the optimizer's and the scheduler's state."""
    for name, param in weights(one.model).items():
        assert torch.equal(param, weights(other.model)[name]), name
    for name, entries in one.selected.state_dict().items():
        assert torch.equal(entries, other.selected.state_dict()[name]), name
    ours, theirs = (trainer.optimizer.state_dict() for trainer in (one, other))
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in ours["state"].items():
        assert state.keys() == theirs["state"][index].keys()
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs["state"][index][name])), name
    assert one.lr_scheduler.state_dict() == other.lr_scheduler.state_dict()


def test_a_checkpoint_holds_k_entries_and_no_model(tmp_path: Path) -> None:
    trainer = improver(tmp_path)
    train(trainer)
    checkpoints = whole_checkpoints(tmp_path)
    assert list(checkpoints) == [6, 8]  # two are kept
    names = {path.name for path in checkpoints[8].iterdir()}
    assert names == {
        "selected.safetensors",
        "optimizer.safetensors",
        "scheduler.safetensors",
        "rng.safetensors",
        "trainer_state.json",
        "complete",
    }
    saved = load_file(checkpoints[8] / "selected.safetensors")
    k = trainer.selected.num_selected
    assert sum(entries.numel() for entries in saved.values()) == 2 * k  # masters and the reference
    moments = load_file(checkpoints[8] / "optimizer.safetensors")
    num_groups = len(trainer.optimizer.param_groups)
    assert sum(entries.numel() for entries in moments.values()) == 2 * k + num_groups  # and step counts


# In the middle of an epoch; at the beginning of one (step 4 saved).
@pytest.mark.parametrize(
    ("stop", "optim"),
    [
        (3, "adafactor"),
        (5, "adamw_torch_fused"),
        pytest.param(3, "adamw_torch_fused", marks=pytest.mark.slow),
        pytest.param(5, "adafactor", marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_resumed_ends_as_not_interrupted(stop: int, optim: str, tmp_path: Path) -> None:
    settings = {"optim": optim, "logging_steps": 2}
    whole = improver(tmp_path / "whole", **settings)
    expected = train(whole)
    interrupted(tmp_path / "cut", stop=stop, **settings)
    resumed = improver(tmp_path / "cut", **settings)
    assert train(resumed) == expected
    assert_same_state(resumed, whole)


@pytest.mark.parametrize("max_steps", [-1, 3])  # the end of an epoch, and within one
def test_a_second_run_of_a_finished_one_trains_nothing(max_steps: int, tmp_path: Path) -> None:
    settings = {"max_steps": max_steps, "save_steps": 1}
    first = improver(tmp_path, **settings)
    rows = train(first)
    second = improver(tmp_path, **settings)
    second.add_callback(Stop(8))
    assert train(second) == rows
    assert_same_state(second, first)


def test_a_checkpoint_that_was_cut_short_is_removed_and_not_resumed_from(tmp_path: Path) -> None:
    expected = train(improver(tmp_path / "whole"))
    interrupted(tmp_path / "cut", stop=5)
    (tmp_path / "cut" / "checkpoint-4" / "complete").unlink()
    assert list(whole_checkpoints(tmp_path / "cut")) == [2]
    started: list[int] = []

    class Begin(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            started.append(state.global_step)
            assert not (tmp_path / "cut" / "checkpoint-4").exists()

    resumed = improver(tmp_path / "cut")
    resumed.add_callback(Begin())
    assert train(resumed) == expected
    assert started == [2]


def test_a_loss_that_is_no_number_stops_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    healthy = improver(tmp_path / "healthy", save_steps=1)
    train(healthy)

    class Blow(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:  # the fourth step ruins the weights, the fifth shows it
                trainer.optimizer.param_groups[0]["lr"] = 1e30

    trainer = improver(tmp_path / "ill", save_steps=1)
    trainer.add_callback(Blow())
    good = tmp_path / "ill" / "checkpoint-3"
    with pytest.raises(UserError, match=f" is nan at step 5: stopped; .* {good}.*learning rate"):
        train(trainer)
    assert 3 in whole_checkpoints(tmp_path / "ill")
    fresh = improver(tmp_path / "fresh")
    fresh._load_from_checkpoint(str(good))
    assert all(param.isfinite().all() for param in fresh.model.parameters())
    assert not torch.equal(fresh.model.lm_head.weight, model().lm_head.weight)


def test_an_infinite_token_weight_stops_before_anything_is_trained(tmp_path: Path) -> None:
    rows = copy.deepcopy(wrongs())
    rows[0]["token_weights"][1] = math.inf
    policy = model()
    with pytest.raises(UserError, match=r"row 0: `token_weights` .* finite number"):
        trained(ForgetTrainer, rows, tmp_path, policy=policy, learning_rate=1e-12)
    assert all(param.isfinite().all() for param in policy.parameters())


def test_the_best_model_comes_back_at_the_end(tmp_path: Path) -> None:
    policy = model()
    best = ImproveTrainer(
        policy,
        arguments(
            tmp_path,
            **SAVING,
            eval_strategy="steps",
            eval_steps=2,
            load_best_model_at_end=True,
            metric_for_best_model="rewards/margins",
            greater_is_better=False,  # margins grow, so the first evaluation is "best"
        ),
        pairs(),
        TOKENIZER,
        mask=every_third(policy),
        eval_dataset=pairs(),
    )
    best.train()
    assert best.state.best_global_step == 2
    after_two = trained(ImproveTrainer, pairs(), tmp_path / "two", lr_scheduler_type="linear", max_steps=2)
    assert logged(after_two) == logged(best)[:2]
    saved = load_file(tmp_path / "checkpoint-2" / "selected.safetensors")
    for name, master in best.selected.masters().items():
        assert torch.equal(master, saved[f"{name}.master"]), name


def test_save_model_saves_the_whole_model(tmp_path: Path) -> None:
    trainer = trained(ImproveTrainer, pairs(), tmp_path / "run")
    trainer.save_model(str(tmp_path / "model"))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    for name, param in weights(loaded).items():
        assert torch.equal(param, weights(trainer.model)[name]), name
    assert (tmp_path / "model" / "tokenizer.json").exists()
    assert not (tmp_path / "model" / "training_args.bin").exists()  # a pickle


def test_a_tree_comes_back_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.randn(3)
    tree = {
        "numbers": [1, -2.5, 1e-310, math.inf, True, None, "text"],
        0: {"exp_avg": shared, "step": torch.tensor(3.0), "bf16": torch.randn(2, 3).bfloat16().T},
        "again": (shared, ()),
        "python": random.getstate(),
        "bytes": torch.get_rng_state(),
    }
    save_tree(tmp_path / "tree.safetensors", tree)
    found = load_tree(tmp_path / "tree.safetensors")
    assert found["numbers"] == tree["numbers"] and found["python"] == tree["python"]
    for name in ("again", "bytes", 0):
        torch.testing.assert_close(found[name], tree[name], rtol=0, atol=0)
    assert found.keys() == tree.keys()


def test_what_is_neither_number_nor_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="cannot store a ndarray"):
        save_tree(tmp_path / "tree.safetensors", {"keys": np.zeros(1)})
