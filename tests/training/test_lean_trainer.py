"""The trainers with `lean`: the same losses up to rounding, exact resume, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpointing import SAVING, Stop, assert_same_state
from transformers import PreTrainedModel, TrainerCallback

from allo.errors import UserError
from allo.training.run import state_bytes, train
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer
from tiny import TOKENIZER, arguments, every_third, logged, model, pairs, trained, weights, wrongs

DATA = {ForgetTrainer: wrongs, ImproveTrainer: pairs}
# Largest difference of a logged loss from the default's, as a share of the fall of the default's in eight steps.
LOSS = 0.02
LEAN = {"lean": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", DATA)
def test_the_losses_are_the_defaults(kind: type[SelectedTrainer], dtype: torch.dtype, tmp_path: Path) -> None:
    losses, exact = (
        logged(trained(kind, DATA[kind](), tmp_path, policy=model(dtype), own=own)) for own in (LEAN, {})
    )
    fall = exact[0] - exact[-1]
    assert fall > 0.03
    assert losses == pytest.approx(exact, rel=0, abs=LOSS * fall)


def lean_improver(
    folder: Path, *, dtype: torch.dtype, callbacks: list[TrainerCallback] | None = None
) -> ImproveTrainer:
    policy = model(dtype)
    settings = SAVING | {"logging_steps": 2}
    return ImproveTrainer(
        policy,
        arguments(folder, **settings),
        pairs(),
        TOKENIZER,
        mask=every_third(policy),
        lean=True,
        callbacks=callbacks,
    )


@pytest.mark.invariant("A lean run stopped and resumed ends bit-equal.")
@pytest.mark.parametrize(
    ("stop", "dtype"),
    [
        (3, torch.bfloat16),
        (5, torch.float32),
        pytest.param(3, torch.float32, marks=pytest.mark.slow),
        pytest.param(5, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_resumed_ends_as_not_interrupted(
    stop: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    whole = lean_improver(tmp_path / "whole", dtype=dtype)
    expected = train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(lean_improver(tmp_path / "cut", dtype=dtype, callbacks=[Stop(stop)]))
    resumed = lean_improver(tmp_path / "cut", dtype=dtype)
    assert train(resumed) == expected
    assert_same_state(resumed, whole)


def test_a_trained_weight_takes_eight_bytes_and_its_slot_two(tmp_path: Path) -> None:
    policy = model(torch.bfloat16)
    trainer = trained(ImproveTrainer, pairs(), tmp_path, policy=policy, own=LEAN)
    state = [v for entry in trainer.optimizer.state.values() for v in entry.values() if torch.is_tensor(v)]
    assert {value.dtype for value in state} == {torch.int8, torch.uint8, torch.float32}
    k, tensors = trainer.selected.num_selected, len(trainer.selected.masters())
    # At a tensor's end a block may be unfinished: 256 entries of gradient and codes, and two scales.
    unfinished = tensors * (256 * (2 + 2) + 2 * 4 + 8)
    assert k * (2 + 2 + 2 + 2 + 2) < state_bytes(trainer) < k * (2 + 2 + 2 + 2.04 + 2) + unfinished
    slots = trainer.selected.slot("ref").values()
    assert all(bits.device.type == "cpu" for bits in slots)


def test_a_precomputed_reference_needs_no_slot(tmp_path: Path) -> None:
    swapped, precomputed = (
        trained(ImproveTrainer, pairs(), tmp_path, own=LEAN | {"reference": reference})
        for reference in ("swap", "precomputed")
    )
    assert precomputed.selected.slots == [] != swapped.selected.slots
    assert logged(precomputed) == pytest.approx(logged(swapped), rel=1e-4)


def unselected(policy: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights that `every_third` leaves out."""
    chosen = every_third(policy).indices
    left = {}
    for name, param in weights(policy).items():
        keep = torch.ones(param.numel(), dtype=torch.bool)
        if name in chosen:
            keep[chosen[name].long()] = False
        left[name] = param.view(-1)[keep]
    return left


def test_unselected_weights_keep_their_bits(tmp_path: Path) -> None:
    policy = model(torch.bfloat16)
    before, all_before = unselected(policy), weights(policy)
    trained(ForgetTrainer, wrongs(), tmp_path, policy=policy, own=LEAN, weight_decay=0.5)
    for name, param in unselected(policy).items():
        assert torch.equal(param.view(torch.int16), before[name].view(torch.int16)), name
    assert any(not torch.equal(param, all_before[name]) for name, param in weights(policy).items())


@pytest.mark.parametrize("optim", ["sgd", "adafactor"])
def test_another_optimizer_is_refused(optim: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^optim: {optim}: lean training has its own AdamW"):
        trained(ImproveTrainer, pairs(), tmp_path, own=LEAN, optim=optim)


@pytest.mark.parametrize("settings", [{"optim": "adamw_torch"}, {"adam_beta2": 0.9, "adam_epsilon": 1e-4}])
def test_adamws_settings_apply(settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = trained(ImproveTrainer, pairs(), tmp_path, own=LEAN, **settings)
    (group, *_) = trainer.optimizer.param_groups
    assert group["betas"] == (0.9, settings.get("adam_beta2", 0.999))
    assert group["eps"] == settings.get("adam_epsilon", 1e-8)
