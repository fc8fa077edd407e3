"""TRL's metrics of the policy's distributions, beside the losses': equal on the same batch, for any accumulation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from allo.models.collate import pad
from allo.models.policy import (
    completion_distributions,
    head_of,
    hidden_states,
    measured_token_logps,
    per_token_logps,
)
from allo.training import recording
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from tiny import EIGHT_STEPS, SEED, TOKENIZER, full_mask, logged, model, pairs, trained, wrongs

BATCH = 4
METRICS = ("logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy", "num_tokens")
PLAIN = {"weight_decay": 0.0, "adam_epsilon": 1e-4}


# TRL 1.16 reads a name that transformers 5.23 has deprecated.
@pytest.mark.invariant("TRL's metrics of logits, entropy, accuracy and tokens have TRL's values.")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_metrics_are_trls_on_the_same_batch_for_any_accumulation(tmp_path: Path) -> None:
    """TRL takes the mean over micro-batches of their means, so it is asked with one micro-batch a step."""
    trl = pytest.importorskip("trl", reason="TRL is the oracle; install the extra `trl`")
    rows, held_out = pairs(), pairs()[:BATCH]
    one = {"per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1}
    config = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"),
        seed=SEED,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        disable_tqdm=True,
        log_level="error",
        **(EIGHT_STEPS | PLAIN | one),
    )
    theirs = trl.DPOTrainer(
        model(),
        ref_model=model(),
        args=config,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held_out),
        processing_class=TOKENIZER,
    )
    theirs.train()
    expected = theirs.evaluate()
    for size in (1, 4):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": BATCH // size}
        policy = model()
        own = {"keep": 1.0, "eval_dataset": held_out}
        trainer = trained(
            ImproveTrainer,
            rows,
            tmp_path / str(size),
            policy=policy,
            mask=full_mask(policy),
            own=own,
            **settings,
            **PLAIN,
        )
        for name in METRICS:
            assert logged(trainer, name) == pytest.approx(logged(theirs, name), abs=1e-4, rel=1e-4), name
        found = trainer.evaluate()
        for name in METRICS:
            assert found[f"eval_{name}"] == pytest.approx(expected[f"eval_{name}"], abs=1e-4), name
    entropies = logged(trainer, "entropy")
    assert max(entropies) - min(entropies) > 0.01  # there was something to compare


@pytest.mark.parametrize("config", [{}, {"final_logit_softcapping": 2.0}], ids=str)
def test_measures_are_those_of_the_dense_distributions(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allo.losses.logps._CHUNK_BYTES", 4 * len(TOKENIZER) * 3)  # chunks of three tokens
    policy = model(**config)
    batch = pad([([1, 2, 3], [4, 5, 6, 7, 8]), ([9, 10], [11]), ([12], [13, 14])], pad_id=0)
    logps, sums = measured_token_logps(policy, batch)
    torch.testing.assert_close(logps, per_token_logps(policy, batch))
    dense = completion_distributions(policy, batch)
    targets = batch["targets"][batch["completion_mask"]]
    owner = batch["completion_mask"].nonzero()[:, 0]
    for row in range(3):
        mine = dense[owner == row]
        assert sums[row, 0].item() == pytest.approx(-(mine.exp() * mine).sum().item(), rel=1e-5)
        assert sums[row, 2].item() == (mine.argmax(-1) == targets[owner == row]).sum().item()
    logits = (
        head_of(policy).logits(hidden_states(policy, batch).flatten(0, 1)).view(*batch["input_ids"].shape, -1)
    )
    mean = logits.mean(-1).flatten()[batch["sources"]] * batch["completion_mask"]
    torch.testing.assert_close(sums[:, 1], mean.sum(1), rtol=1e-4, atol=1e-4)
    assert not sums.requires_grad and logps.requires_grad


def test_forgetting_and_fine_tuning_have_their_own(tmp_path: Path) -> None:
    for kind, names in (
        (ForgetTrainer, {"entropy", "logits/rejected", "num_tokens"}),
        (SftTrainer, {"entropy", "mean_token_accuracy", "num_tokens"}),
    ):
        trainer = trained(kind, wrongs(), tmp_path / kind.__name__, num_train_epochs=1)
        (first, *_) = [row for row in trainer.state.log_history if "loss" in row]
        found = {name for name in first if name in {*METRICS}}
        assert found == names
        assert first["entropy"] > 0
        total = sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in trainer.train_dataset)
        assert logged(trainer, "num_tokens")[-1] == total


def test_tokens_are_counted_on_by_a_resumed_run(tmp_path: Path) -> None:
    whole = trained(
        ImproveTrainer, pairs(), tmp_path / "whole", save_strategy="steps", save_steps=3, logging_steps=2
    )
    counts = logged(whole, "num_tokens")
    per_epoch = sum(
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
        for row in whole.train_dataset
    )
    assert counts[-1] == 2 * per_epoch and counts == sorted(counts)
    resumed = trained(
        ImproveTrainer,
        pairs(),
        tmp_path / "again",
        save_strategy="steps",
        save_steps=3,
        logging_steps=2,
        max_steps=3,
    )
    assert logged(resumed, "num_tokens")[-1] < counts[-1]
    resumed.args.max_steps = -1
    resumed.train(resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-3"))
    assert logged(resumed, "num_tokens") == counts


def test_what_is_not_logged_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr(recording, "measured_token_logps", refuse)
    trained(ImproveTrainer, pairs(), tmp_path, logging_strategy="no", max_steps=1)
    with pytest.raises(AssertionError, match="measured"):
        trained(ImproveTrainer, pairs(), tmp_path, max_steps=1)
