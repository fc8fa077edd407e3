"""Forgetting that ends once it is done."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpointing import SAVING, Stop, assert_same_state
from transformers import TrainerCallback

from allo.training.run import train
from allo.training.trainer import ForgetTrainer
from tiny import NUM_PAIRS, TOKENIZER, arguments, every_third, logged, model, trained, weights, wrongs

BELIEVED = "probabilities/forgotten"
# Every step sees every row, so that what it finds falls from step to step.
ALL_ROWS = {"per_device_train_batch_size": NUM_PAIRS, "gradient_accumulation_steps": 1, "num_train_epochs": 8}


def forgotten(folder: Path, until: float | None = None, **settings: Any) -> ForgetTrainer:
    own = {"loss": "unlikelihood", "until": until}
    return trained(ForgetTrainer, wrongs(), folder, own=own, **(ALL_ROWS | settings))


def between(folder: Path, step: int) -> float:
    """A probability that the step finds its tokens below, and no step before it."""
    found = logged(forgotten(folder), BELIEVED)
    assert found[step - 1] < min(found[: step - 1])
    return (found[step - 1] + min(found[: step - 1])) / 2


@pytest.mark.invariant("The first step that finds it forgotten is the last, also of a run that was killed.")
@pytest.mark.parametrize("step", [3, 5])
def test_the_first_step_that_finds_it_forgotten_is_the_last(step: int, tmp_path: Path) -> None:
    until = between(tmp_path, step)
    ended, whole = forgotten(tmp_path, until), forgotten(tmp_path)
    assert ended.state.global_step == step
    assert logged(ended) == logged(whole)[:step]
    assert logged(ended, BELIEVED)[-1] < until <= min(logged(ended, BELIEVED)[:-1])


def test_where_it_is_never_forgotten_nothing_changes(tmp_path: Path) -> None:
    ended, whole = forgotten(tmp_path, 1e-9), forgotten(tmp_path)
    assert logged(ended) == logged(whole)
    assert all(torch.equal(param, weights(whole.model)[name]) for name, param in weights(ended.model).items())


def test_a_higher_rate_ends_sooner(tmp_path: Path) -> None:
    until = between(tmp_path, 5)
    slow, fast = (forgotten(tmp_path, until, learning_rate=rate) for rate in (1e-2, 1e-1))
    assert fast.state.global_step < slow.state.global_step == 5


def forgetter(folder: Path, until: float, *callbacks: TrainerCallback, **settings: Any) -> ForgetTrainer:
    policy = model()
    return ForgetTrainer(
        policy,
        arguments(folder, **(ALL_ROWS | settings)),
        wrongs(),
        TOKENIZER,
        mask=every_third(policy),
        loss="unlikelihood",
        until=until,
        callbacks=list(callbacks),
    )


@pytest.mark.invariant("The first step that finds it forgotten is the last, also of a run that was killed.")
@pytest.mark.parametrize(
    "own",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"logging_steps": 2},
        pytest.param({"save_strategy": "epoch"}, marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_resumed_ends_as_not_interrupted(own: dict[str, Any], tmp_path: Path) -> None:
    """Also where it is killed after its last step, with all its checkpoints there."""
    settings = SAVING | {"save_steps": 1} | own
    until = between(tmp_path / "sought", 5)
    whole = forgetter(tmp_path / "whole", until, **settings)
    expected = train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(forgetter(tmp_path / "cut", until, Stop(3), **settings))
    for _ in range(2):
        resumed = forgetter(tmp_path / "cut", until, **settings)
        assert train(resumed) == expected
        assert_same_state(resumed, whole)
    assert whole.state.global_step == 5
