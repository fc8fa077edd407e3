"""Passes over preference pairs that keep no optimizer's state: sums at the start, and the fused warm-up."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP

from allo.errors import DivergedError, UserError
from allo.files.artifacts import read_json
from allo.models.rows import counted_pairs
from allo.pipeline import run_all
from allo.stages.settings import check_locate
from allo.training.dpo_passes import DpoPasses, learning_rates
from allo.training.trainer import ImproveTrainer
from allo.weights.fused_warmup import FusedWarmup
from allo.weights.host_sums import HostSums
from allo.weights.importance_map import ImportanceMap
from tiny import NUM_PAIRS, TOKENIZER, arguments, full_mask, logged, model, pairs, shapes, trained
from tiny_run import tiny

BETA = 0.2
FP32 = {"rtol": 1e-4, "atol": 1e-5}
NUM_LAYERS = model().config.num_hidden_layers


def passes(
    folder: Path,
    *,
    policy: PreTrainedModel | None = None,
    max_tokens_per_batch: int | None = None,
    **settings: Any,
) -> DpoPasses:
    """Over the tiny pairs, every row of which fits."""
    rows, counts = counted_pairs(TOKENIZER, pairs(), max_length=64)
    assert len(rows) == NUM_PAIRS and not counts.dropped
    return DpoPasses(
        model() if policy is None else policy,
        rows,
        arguments(folder, **settings),
        beta=BETA,
        pad_id=TOKENIZER.pad_token_id,
        max_tokens_per_batch=max_tokens_per_batch,
    )


@pytest.mark.parametrize(
    "own",
    [
        {"per_device_train_batch_size": 5},
        {"max_tokens_per_batch": 60},
        {"activation_checkpointing": True},
    ],
    ids=["rows", "tokens", "checkpointing"],
)
def test_how_the_pass_is_cut_does_not_change_the_sums(own: dict[str, Any], tmp_path: Path) -> None:
    sums = [HostSums(shapes(model())) for _ in range(2)]
    passes(tmp_path, per_device_train_batch_size=1).take_start_gradients(
        lambda name, _, gradient: sums[0].add(name, gradient)
    )
    passes(tmp_path, **own).take_start_gradients(lambda name, _, gradient: sums[1].add(name, gradient))
    for name in shapes(model()):
        assert bool(sums[0][name].any())
        torch.testing.assert_close(sums[0][name], sums[1][name], **FP32)


def test_checkpointed_layers_move_as_others_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer is computed again from its weights before the pass moves them."""
    settings = {"learning_rate": 0.01, "warmup_steps": 0}
    plain, _ = passes(tmp_path, **settings).train_fused()
    computed = 0
    forward = LlamaMLP.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal computed
        computed += torch.is_grad_enabled()
        return forward(*args, **kwargs)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    checkpointed, metrics = passes(tmp_path, activation_checkpointing=True, **settings).train_fused()
    micro_batches = 2 * len(metrics)
    assert computed == 2 * NUM_LAYERS * micro_batches, "each layer twice a micro-batch"
    for name, delta in plain.deltas.items():
        torch.testing.assert_close(checkpointed.deltas[name], delta, **FP32)


@pytest.mark.parametrize("kind", ["cosine", "constant", "linear"])
def test_the_schedule_is_the_trainers(kind: str, tmp_path: Path) -> None:
    settings = {"lr_scheduler_type": kind, "warmup_steps": 0.25}
    policy = model()
    trainer = trained(ImproveTrainer, pairs(), tmp_path, policy=policy, mask=full_mask(policy), **settings)
    rates = logged(trainer, "learning_rate")
    assert learning_rates(arguments(tmp_path, **settings), len(rates)) == pytest.approx(rates)
    _, metrics = passes(tmp_path, **settings).train_fused()
    assert [row["learning_rate"] for row in metrics] == pytest.approx(rates)
    assert [row["epoch"] for row in metrics] == pytest.approx(logged(trainer, "epoch")[: len(metrics)])


@pytest.mark.parametrize("own", [{}, {"data_seed": 7}])
def test_a_fused_warmup_sees_the_pairs_as_a_plain_one(own: dict[str, int], tmp_path: Path) -> None:
    policy = model()
    trainer = ImproveTrainer(
        policy, arguments(tmp_path, **own), pairs(), TOKENIZER, mask=full_mask(policy), keep=1.0
    )
    seen: list[list[int]] = []
    step = trainer.training_step

    def watched(model: nn.Module, rows: Any, count: Any = None) -> Tensor:
        seen.append([row["number"] for row in rows])
        return step(model, rows, count)

    trainer.training_step = watched
    trainer.train()
    steps = itertools.islice(passes(tmp_path, **own)._steps(), len(seen))
    assert [[row["number"] for row in rows] for rows in steps] == seen


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
    passes(tmp_path, **settings).train_fused()
    # 16 pairs in batches of 3: a full step of four, and a step of a full batch and a single pair.
    assert used == pytest.approx([0.03] * 4 + [0.03, 0.01])


def test_the_loss_falls_from_log_2(tmp_path: Path) -> None:
    """It begins there for any model, since the reference is the model as it begins."""
    _, metrics = passes(tmp_path, gradient_accumulation_steps=1).train_fused()
    first, *_, last = metrics
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert last["loss"] < 0.6 and last["rewards/margins"] > 0.1


def test_a_broken_warmup_stops_and_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss is nan at step \d.*locate\.training\.learning_rate"):
        passes(tmp_path, learning_rate=1e30, warmup_steps=0).train_fused()


def test_a_weight_that_the_last_step_makes_infinite_is_named(tmp_path: Path) -> None:
    """No loss is taken after it, and an infinite change would rank first."""
    with pytest.raises(DivergedError, match=r"tensor model\.\S+ has .*infinite\. Lower locate\.training"):
        passes(
            tmp_path,
            policy=model().to(torch.float16),
            per_device_train_batch_size=NUM_PAIRS,
            gradient_accumulation_steps=1,
            learning_rate=1e6,
            warmup_steps=0,
            max_steps=1,
        ).train_fused()


@pytest.mark.slow  # the recipes that start from pairs have this criterion and are run
def test_a_whole_run_on_a_fused_warmup(tmp_path: Path) -> None:
    """Scored by the warm-up's own implicit reward; elsewhere, with the same seed, the same bytes."""
    fused = "locate.criterion=warmup_fused"
    run = run_all(tiny(tmp_path / "here", fused), until="improve")
    again = run_all(tiny(tmp_path / "there", fused), until="score")
    for name in ("04-importance.safetensors", "04-warmup/metrics.jsonl", "05-token-scores.parquet"):
        assert (run.path / name).read_bytes() == (again.path / name).read_bytes(), name
    stages = read_json(run.manifest)["stages"]
    assert stages["improve"]["counts"]["trained_weights"] == stages["locate"]["counts"]["weights"]
    found = ImportanceMap.load(run.importance)
    assert found.metadata["criterion"] == "warmup_fused"
    assert all(bool((scores > 0).all()) for scores in found.scores.values())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("locate.accumulate=bfloat16", "locate.accumulate: criterion warmup accumulates nothing"),
        (
            "locate={criterion: warmup_fused, training: {max_grad_norm: 1.0}}",
            "locate.training.max_grad_norm: criterion warmup_fused has an update rule of its own",
        ),
    ],
)
def test_what_would_be_ignored_is_refused_before_the_first_stage(
    setting: str, words: str, tmp_path: Path
) -> None:
    recipe = tiny(tmp_path, setting)
    with pytest.raises(UserError, match=words):
        run_all(recipe)
    assert not (recipe.run_folder / "00-sft").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optim", "sgd"),
        ("weight_decay", 0.1),
        ("max_grad_norm", 0.5),
        ("adam_beta1", 0.8),
        ("dataloader_drop_last", True),
        ("full_determinism", True),
    ],
)
def test_an_argument_that_no_pass_reads_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    made = passes(tmp_path, **{field: value})
    with pytest.raises(UserError, match=rf"^{field}: the fused warm-up .* would ignore it"):
        made.train_fused()


@pytest.mark.parametrize(
    "criterion", ["warmup_fused", "gradient", "fisher", "taylor", "magnitude", "last", "random"]
)
@pytest.mark.parametrize(
    "key", ["optim=sgd", "weight_decay=0.1", "max_grad_norm=0.5", "activation_checkpointing=true"]
)
def test_a_criterion_refuses_what_it_would_ignore_before_the_first_stage(
    criterion: str, key: str, tmp_path: Path
) -> None:
    own = [f"locate.criterion={criterion}", f"locate.training.{key}", "score=null", "forget=null"]
    recipe = tiny(tmp_path, *own)
    assert recipe.locate is not None
    if key.startswith("activation") and criterion in ("warmup_fused", "gradient", "fisher", "taylor"):
        check_locate(recipe.locate)
        return
    with pytest.raises(UserError, match=rf"^locate.training.{key.partition('=')[0]}: criterion {criterion}"):
        check_locate(recipe.locate)
