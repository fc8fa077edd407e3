"""Locating on labelled completions: at the start, both sides of pairs have DPO's gradient; the warm-up learns the labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from allo.models.rows import counted_completions, counted_pairs
from allo.recipe.criteria import CRITERIA
from allo.training.dpo_passes import DpoPasses
from allo.training.feedback_trainer import FeedbackTrainer
from allo.training.locating import Search, locate
from allo.weights.layout import Layout
from tiny import TOKENIZER, arguments, feedback, model, pairs, weights

BOTH = [
    {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
    for pair in pairs()
    for side in ("chosen", "rejected")
]


def passes(policy: PreTrainedModel, rows: list[dict[str, Any]], folder: Path) -> DpoPasses:
    return DpoPasses(
        policy,
        rows,
        arguments(folder, learning_rate=1e-3, num_train_epochs=2),
        beta=0.3,
        pad_id=TOKENIZER.pad_token_id,
    )


def start_gradients(rows: list[dict[str, Any]], folder: Path) -> dict[str, Tensor]:
    policy = model()
    found = {name: torch.zeros_like(param) for name, param in policy.named_parameters()}
    passes(policy, rows, folder).take_start_gradients(
        lambda name, _, gradient: found[name].reshape(-1).add_(gradient.reshape(-1)).sum()
    )
    return found


def test_at_the_start_both_sides_of_pairs_have_dpos_gradient(tmp_path: Path) -> None:
    of_pairs = start_gradients(counted_pairs(TOKENIZER, pairs(), max_length=64)[0], tmp_path)
    single = start_gradients(counted_completions(TOKENIZER, BOTH, max_length=64)[0], tmp_path)
    assert max(gradient.abs().max() for gradient in of_pairs.values()) > 1e-2
    for name, gradient in of_pairs.items():
        torch.testing.assert_close(single[name], gradient, rtol=1e-4, atol=1e-5)


def test_the_fused_warm_up_learns_the_labels(tmp_path: Path) -> None:
    rows, _ = counted_completions(TOKENIZER, feedback(), max_length=64)
    _, metrics = passes(model(), rows, tmp_path).train_fused()
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert metrics[-1]["rewards/chosen"] - metrics[-1]["rewards/rejected"] > 0.05


def test_the_warm_up_learns_the_labels(tmp_path: Path) -> None:
    policy = model()
    start = weights(policy)
    rows, _ = counted_completions(TOKENIZER, feedback(), max_length=64)
    search = Search(Layout.of(policy), rows, arguments(tmp_path), TOKENIZER)
    found = search.statistics_of(CRITERIA["warmup"])
    losses = [row["loss"] for row in found.metrics]
    assert found.counts["completions"] == len(rows)
    assert losses[0] == pytest.approx(0.6931, abs=1e-3) and losses[-1] < losses[0] - 0.01
    found.put_back()
    assert all(torch.equal(param, start[name]) for name, param in weights(policy).items())


def test_a_trainer_locates_its_own_mask_on_labelled_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = model()
    trainer = FeedbackTrainer(policy, arguments(tmp_path), feedback(), TOKENIZER, mask=0.05)
    assert trainer.selected.density == pytest.approx(0.05, abs=1e-3)
    assert f"on {len(feedback())} completions" in capsys.readouterr().err


def test_in_memory_both_sides_of_pairs_locate_what_the_pairs_do(tmp_path: Path) -> None:
    """Their gradients at the start are the same, up to rounding."""
    args = arguments(tmp_path)
    of_pairs, single = (
        locate(model(), iter(rows), density=0.1, criterion="gradient", args=args, processing_class=TOKENIZER)
        for rows in (pairs(), BOTH)
    )
    shared = sum(
        len(set(indices.tolist()) & set(single.indices.get(name, torch.empty(0)).tolist()))
        for name, indices in of_pairs.indices.items()
    )
    assert of_pairs.num_selected == single.num_selected
    assert shared > 0.99 * of_pairs.num_selected
