"""With every weight and no filter, learning from labelled feedback is TRL's KTO, step by step: TRL is the oracle."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from allo.training.feedback_trainer import FeedbackTrainer
from tiny import EIGHT_STEPS, SEED, TOKENIZER, arguments, feedback, full_mask, model, weights

trl = pytest.importorskip("trl", reason="TRL is the oracle; install the extra `trl`")

# fp32, over eight optimizer steps; TRL adds up a step's rows in another order.
TOLERANCE = 1e-5
SHARED = ("loss", "grad_norm", "learning_rate", "epoch", "kl", "rewards/chosen", "rewards/rejected")
SHARED += ("rewards/margins", "logps/chosen", "logps/rejected")
BETA = 0.3
SETTINGS: dict[str, Any] = {
    "max_grad_norm": 0.5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.0,  # transformers decays no norm by name, we none by shape
    "train_sampling_strategy": "sequential",  # TRL rotates completions within fixed batches
}


def ours(folder: Path, weights_of_labels: dict[str, float]) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """Steps of four rows in two micro-batches."""
    policy = model()
    trainer = FeedbackTrainer(
        policy,
        arguments(folder, **SETTINGS),
        feedback(),
        TOKENIZER,
        mask=full_mask(policy),
        loss="kto",
        loss_settings=weights_of_labels,
        beta=BETA,
        keep=1.0,
    )
    trainer.train()
    return policy, [row for row in trainer.state.log_history if "loss" in row]


def theirs(folder: Path, weights_of_labels: dict[str, float]) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """Steps of one batch of four rows: TRL's reference point is a micro-batch's."""
    policy = model()
    steps = EIGHT_STEPS | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    config = trl.KTOConfig(
        output_dir=str(folder),
        seed=SEED,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        beta=BETA,
        disable_tqdm=True,
        log_level="error",
        **(steps | SETTINGS | weights_of_labels),
    )
    trainer = trl.KTOTrainer(
        policy,
        ref_model=model(),
        args=config,
        train_dataset=Dataset.from_list(feedback()),
        processing_class=TOKENIZER,
    )
    trainer.train()
    return policy, [row for row in trainer.state.log_history if "loss" in row]


# TRL 1.16 reads a name that transformers 5.23 has deprecated.
@pytest.mark.invariant("With every weight and no filter, learning from feedback is TRL's KTO, step by step.")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("weights_of_labels", [{}, {"desirable_weight": 1.7, "undesirable_weight": 0.6}])
def test_kto_of_whole_steps_is_trls(weights_of_labels: dict[str, float], tmp_path: Path) -> None:
    expected_policy, expected = theirs(tmp_path / "trl", weights_of_labels)
    policy, steps = ours(tmp_path / "allo", weights_of_labels)
    assert len(steps) == len(expected) == 8
    assert max(row["kl"] for row in steps) > 0.05  # the reference point moved away from 0
    assert abs(steps[0]["loss"] - steps[4]["loss"]) > 0.02  # the same rows: it learnt something to compare
    for our_step, their_step in zip(steps, expected, strict=True):
        for name in SHARED:
            if name in their_step:
                wanted = pytest.approx(their_step[name], abs=TOLERANCE, rel=TOLERANCE)
                assert our_step[name] == wanted, name
    trained, target = weights(policy), weights(expected_policy)
    for name in target:
        torch.testing.assert_close(trained[name], target[name], atol=TOLERANCE, rtol=TOLERANCE)
