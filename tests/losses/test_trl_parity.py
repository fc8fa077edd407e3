"""With every weight and no filter, improving is TRL's DPO, IPO, APO-zero or BCO, step by step: TRL is the oracle."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from allo.losses.needs import LossFunction
from allo.losses.pair_losses import PairSums, bco
from allo.models.rows import counted_pairs
from allo.training.trainer import ImproveTrainer
from tiny import EIGHT_STEPS, SEED, TOKENIZER, arguments, full_mask, model, pairs, weights

trl = pytest.importorskip("trl", reason="TRL is the oracle; install the extra `trl`")

# fp32, over eight optimizer steps; TRL divides each micro-batch by itself, we the step by its pairs.
TOLERANCE = 1e-5
# Figures that both log under one name.
SHARED = ("loss", "grad_norm", "learning_rate", "epoch", "rewards/chosen", "rewards/rejected")
SHARED += ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
BETA = 0.3
SETTINGS: dict[str, Any] = {
    "max_grad_norm": 0.5,  # every step of these runs is clipped
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.0,  # transformers decays no norm by name, we none by shape
}


def bco_without_shift(pairs: PairSums, *, beta: float) -> Tensor:
    """TRL's `bco_pair` has no running mean."""
    return bco(pairs, beta=beta, delta=0.0)


def ours(
    folder: Path, rows: list[dict[str, Any]], *, loss: str | LossFunction
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    policy = model()
    trainer = ImproveTrainer(
        policy,
        arguments(folder, **SETTINGS),
        rows,
        TOKENIZER,
        mask=full_mask(policy),
        beta=BETA,
        keep=1.0,
        loss=loss,
    )
    trainer.train()
    return policy, trainer.state.log_history


def theirs(
    folder: Path, rows: list[dict[str, Any]], *, loss: str
) -> tuple[PreTrainedModel, list[dict[str, float]], Dataset]:
    policy = model()
    quiet = {"disable_tqdm": True, "log_level": "error"}
    config = trl.DPOConfig(
        output_dir=str(folder),
        seed=SEED,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        beta=BETA,
        loss_type=[loss],
        **(quiet | EIGHT_STEPS | SETTINGS),
    )
    trainer = trl.DPOTrainer(
        policy,
        ref_model=model(),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )
    trainer.train()
    return policy, trainer.state.log_history, trainer.train_dataset


# TRL 1.16 reads a name that transformers 5.23 has deprecated.
@pytest.mark.invariant("With every weight and no filter, ALLO is TRL's DPO, step by step.")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("loss", "their_loss"),
    [("dpo", "sigmoid"), ("ipo", "ipo"), ("apo_zero", "apo_zero"), (bco_without_shift, "bco_pair")],
)
def test_full_density_without_filter_is_trls_dpo(
    loss: str | LossFunction, their_loss: str, tmp_path: Path
) -> None:
    rows = pairs()
    expected_policy, expected, their_rows = theirs(tmp_path / "trl", rows, loss=their_loss)
    our_rows, _ = counted_pairs(TOKENIZER, rows, max_length=64)
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert [row[column] for row in our_rows] == list(their_rows[column]), column

    policy, log = ours(tmp_path / "allo", rows, loss=loss)
    steps = [row for row in log if "loss" in row]
    expected = [row for row in expected if "loss" in row]
    assert len(steps) == len(expected) == 8
    assert steps[0]["loss"] != pytest.approx(steps[-1]["loss"], abs=0.05)  # it learnt something to compare
    for ours_step, their_step in zip(steps, expected, strict=True):
        for name in SHARED:
            assert ours_step[name] == pytest.approx(their_step[name], abs=TOLERANCE, rel=TOLERANCE), name
    largest = max(abs(a["loss"] - b["loss"]) for a, b in zip(steps, expected, strict=True))
    print(f"largest difference in the loss over {len(steps)} steps: {largest:.1e}")
    trained, target = weights(policy), weights(expected_policy)
    for name in target:
        torch.testing.assert_close(trained[name], target[name], atol=TOLERANCE, rtol=TOLERANCE)
