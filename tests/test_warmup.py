"""Passes over preference pairs that keep no optimizer's state: sums at the start, and the fused warm-up."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from allo.artifacts import read_json
from allo.core.fused_warmup import FusedWarmup
from allo.core.host_sums import HostSums
from allo.core.importance_map import ImportanceMap
from allo.errors import UserError
from allo.hf.rows import pair_rows
from allo.hf.trainer import ImproveTrainer
from allo.hf.warmup import learning_rates, take_start_gradients, train_fused
from allo.pipeline import run_all
from tiny import NUM_PAIRS, TOKENIZER, arguments, full_mask, logged, model, pairs, shapes, trained
from tiny_run import tiny

BETA = 0.2
FP32 = {"rtol": 1e-4, "atol": 1e-5}
PAD = TOKENIZER.pad_token_id


def rows() -> list[dict[str, Any]]:
    found, dropped = pair_rows(TOKENIZER, pairs(), max_length=64)
    assert len(found) == NUM_PAIRS and not dropped
    return found


def test_the_batch_size_does_not_change_the_sums() -> None:
    policy = model()
    sums = {size: HostSums(shapes(policy)) for size in (1, 5)}
    for size, own in sums.items():
        take_start_gradients(
            policy,
            rows(),
            beta=BETA,
            batch_size=size,
            pad_id=PAD,
            take=lambda name, _, gradient, own=own: own.add(name, gradient),
        )
    for name in shapes(policy):
        assert bool(sums[1][name].any())
        torch.testing.assert_close(sums[1][name], sums[5][name], **FP32)


@pytest.mark.parametrize("kind", ["cosine", "constant", "linear"])
def test_the_schedule_is_the_trainers(kind: str, tmp_path: Path) -> None:
    settings = {"lr_scheduler_type": kind, "warmup_steps": 0.25}
    policy = model()
    trainer = trained(ImproveTrainer, pairs(), tmp_path, policy=policy, mask=full_mask(policy), **settings)
    rates = logged(trainer, "learning_rate")
    assert learning_rates(arguments(tmp_path, **settings), len(rates)) == pytest.approx(rates)
    _, metrics = train_fused(model(), rows(), arguments(tmp_path, **settings), beta=BETA, pad_id=PAD)
    assert [row["learning_rate"] for row in metrics] == pytest.approx(rates)
    assert [row["epoch"] for row in metrics] == pytest.approx(logged(trainer, "epoch")[: len(metrics)])


def test_micro_batches_share_their_steps_rate_by_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    update = FusedWarmup.update

    def watched(self: FusedWarmup, name: str, param: nn.Parameter, gradient: Tensor) -> None:
        if name == "model.norm.weight":
            used.append(self.rate)
        update(self, name, param, gradient)

    monkeypatch.setattr(FusedWarmup, "update", watched)
    settings = {
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 1,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "learning_rate": 0.12,
    }
    train_fused(model(), rows(), arguments(tmp_path, **settings), beta=BETA, pad_id=PAD)
    # 16 pairs in batches of 3: a full step of four, and a step of a full batch and a single pair.
    assert used == pytest.approx([0.03] * 4 + [0.03, 0.01])


def test_the_loss_falls_from_log_2(tmp_path: Path) -> None:
    """It begins there for any model, since the reference is the model as it begins."""
    _, metrics = train_fused(model(), rows(), arguments(tmp_path), beta=BETA, pad_id=PAD)
    first, *_, last = metrics
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert last["loss"] < 0.6 and last["rewards/margins"] > 0.1


def test_a_broken_warmup_stops_and_says_what_to_lower(tmp_path: Path) -> None:
    settings = arguments(tmp_path, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(UserError, match=r"loss is nan at step \d.*locate\.training\.learning_rate"):
        train_fused(model(), rows(), settings, beta=BETA, pad_id=PAD)


def test_a_whole_run_on_a_fused_warmup(tmp_path: Path) -> None:
    """Scored by the warm-up's own implicit reward; elsewhere, with the same seed, the same bytes."""
    fused = "locate.criterion=warmup_fused"
    run = run_all(tiny(tmp_path / "here", fused))
    again = run_all(tiny(tmp_path / "there", fused), until="score")
    for name in ("04-importance.safetensors", "04-warmup/metrics.jsonl", "05-token-scores.parquet"):
        assert (run.path / name).read_bytes() == (again.path / name).read_bytes(), name
    stages = read_json(run.manifest)["stages"]
    assert stages["improve"]["counts"]["trained_weights"] == stages["locate"]["counts"]["weights"]
    found = ImportanceMap.load(run.importance)
    assert found.metadata["criterion"] == "warmup_fused"
    assert all(bool((scores > 0).all()) for scores in found.scores.values())
