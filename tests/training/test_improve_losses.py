"""Training under each loss: what it moves, what it remembers, what it pays for; anchor, filter and whole completions."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpointing import SAVING, Stop, assert_same_state
from torch import Tensor

from allo.errors import UserError
from allo.losses import token_losses as losses
from allo.losses.pair_losses import PairSums
from allo.training.checkpointing import LOSS_FILE, load_tree
from allo.training.run import train
from allo.training.trainer import ForgetTrainer, ImproveTrainer
from tiny import NUM_PAIRS, TOKENIZER, arguments, every_third, logged, model, pairs, trained, weights, wrongs

FP32 = 1e-5
# Plain steps: Adam would magnify what rounding makes of a weight without gradient.
SGD = {"optim": "sgd", "learning_rate": 0.3}
# Weights after eight steps, however a step's rows are cut.
CUT = {"rtol": 0, "atol": 1e-6}
LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {},
    "ipo": {},
    "bco": {},
    "apo_zero": {},
    "simpo": {"loss": "simpo", "beta": 2.0},
}


def improver(folder: Path, *, stop: int | None = None, settings: Any = SAVING, **own: Any) -> ImproveTrainer:
    policy = model()
    callbacks = [] if stop is None else [Stop(stop)]
    return ImproveTrainer(
        policy,
        arguments(folder, **settings),
        pairs(),
        TOKENIZER,
        mask=every_third(policy),
        callbacks=callbacks,
        **own,
    )


def whole_loss(trainer: Any) -> float:
    """Over all rows, under the weights as they are."""
    with torch.no_grad():
        rows = trainer.train_dataset
        return trainer.loss(trainer._batch(rows), denominator=trainer.num_items(rows)).item()


def hinge(pairs: PairSums, *, beta: float, margin: float = 1.0) -> Tensor:
    return (margin - beta * (pairs.chosen_logratios - pairs.rejected_logratios)).relu()


@pytest.mark.parametrize("loss", [*LOSSES, hinge])
def test_each_loss_lowers_itself_and_prefers_the_chosen(loss: Any, tmp_path: Path) -> None:
    own = {"keep": 1.0, "loss": loss} | LOSSES.get(loss, {})
    trainer = improver(tmp_path, settings={"num_train_epochs": 4}, **own)
    before = whole_loss(trainer)
    trainer.train()
    assert whole_loss(trainer) < before - 0.05 * abs(before)
    margins = logged(trainer, "rewards/margins")
    assert margins[-1] > margins[0] + 0.1


# BCO's memory.


@pytest.mark.invariant("BCO's shift is the mean reward of the steps before, and survives a resume.")
def test_the_shift_of_a_step_is_the_mean_reward_of_those_before(tmp_path: Path) -> None:
    trainer = improver(tmp_path, settings={}, loss="bco", keep=1.0)
    seen: list[float] = []
    step = trainer.training_step
    trainer.training_step = lambda *a: (seen.append(trainer.reward_mean.value), step(*a))[1]  # type: ignore[method-assign]
    trainer.train()
    both = zip(logged(trainer, "rewards/chosen"), logged(trainer, "rewards/rejected"), strict=True)
    halves = [(chosen + rejected) / 2 for chosen, rejected in both]
    expected = [0.0] + [sum(halves[:n]) / n for n in range(1, 8)]
    assert seen == pytest.approx(expected, abs=1e-6) and max(map(abs, seen)) > 1e-3


def test_the_shift_is_of_the_tokens_that_are_kept(tmp_path: Path) -> None:
    trainer = trained(ImproveTrainer, pairs(), tmp_path, own={"loss": "bco", "keep": 0.3})
    batch = trainer._batch(trainer.train_dataset)
    trainer.loss(batch, denominator=1.0)
    with torch.no_grad():
        chosen, rejected = trainer.logratios(batch)[0].chunk(2)
    lowest = [row[mask].sort().values for row, mask in zip(rejected, kept(trainer)[1], strict=True)]
    total = chosen.sum() + sum(own[: math.ceil(0.3 * len(own) - 1e-9)].sum() for own in lowest)
    assert trainer._step_rewards.total == pytest.approx(0.1 * total.item(), rel=FP32)
    assert trainer._step_rewards.count == 2 * NUM_PAIRS


def test_neither_micro_batches_nor_evaluation_move_the_shift(tmp_path: Path) -> None:
    own = {"loss": "bco"}
    one = trained(ImproveTrainer, pairs(), tmp_path, own=own, **SGD)
    cut = SGD | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    for other in (
        trained(ImproveTrainer, pairs(), tmp_path, own=own, **cut),
        trained(ImproveTrainer, pairs(), tmp_path, own=own | {"max_tokens_per_batch": 60}, **SGD),
    ):
        assert other.reward_mean.value == pytest.approx(one.reward_mean.value, rel=1e-4)
        for name, param in weights(one.model).items():
            torch.testing.assert_close(weights(other.model)[name], param, **CUT)
    evaluating = {"eval_strategy": "steps", "eval_steps": 1}
    watched = trained(
        ImproveTrainer, pairs(), tmp_path, own=own | {"eval_dataset": pairs()}, **SGD, **evaluating
    )
    assert watched.reward_mean == one.reward_mean


@pytest.mark.invariant("BCO's shift is the mean reward of the steps before, and survives a resume.")
@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.slow), 5])
def test_interrupted_and_resumed_with_its_shift_ends_as_not_interrupted(stop: int, tmp_path: Path) -> None:
    settings = SAVING | {"logging_steps": 2}
    whole = improver(tmp_path / "whole", settings=settings, loss="bco", filter="random")
    expected = train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(improver(tmp_path / "cut", stop=stop, settings=settings, loss="bco", filter="random"))
    resumed = improver(tmp_path / "cut", settings=settings, loss="bco", filter="random")
    assert train(resumed) == expected
    assert_same_state(resumed, whole)
    assert resumed.reward_mean == whole.reward_mean and whole.reward_mean.count == 2 * 2 * NUM_PAIRS
    assert load_tree(tmp_path / "cut" / "checkpoint-8" / LOSS_FILE) == vars(whole.reward_mean)


# SimPO needs no reference.


@pytest.mark.invariant("A loss without a reference pays for none.")
def test_a_loss_without_reference_pays_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImproveTrainer, "_ref_logps", None)  # called, it would fail
    for reference in ("swap", "precomputed"):
        trainer = improver(tmp_path, settings={}, loss="simpo", keep=1.0, beta=2.0, reference=reference)
        trainer.train()
        assert not trainer.selected.slots and not (tmp_path / "reference.safetensors").exists()
        assert trainer.evaluate(pairs())["eval_rewards/accuracies"] > 0.8


def test_simpo_is_its_formula_on_a_dense_model(tmp_path: Path) -> None:
    own = {"loss": "simpo", "keep": 1.0, "beta": 2.0, "loss_settings": {"gamma": 0.3}}
    trainer = trained(ImproveTrainer, pairs(), tmp_path, own=own)
    expected = []
    with torch.no_grad():
        for row in trainer.train_dataset:
            means = []
            for side in ("chosen_ids", "rejected_ids"):
                ids, start = row["prompt_ids"] + row[side], len(row["prompt_ids"]) - 1
                logps = trainer.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
                targets = torch.tensor(row[side])
                means.append(logps[start : start + len(targets)].gather(1, targets[:, None]).mean().item())
            expected.append(math.log1p(math.exp(-(2.0 * (means[0] - means[1]) - 0.3))))
    assert whole_loss(trainer) == pytest.approx(sum(expected) / NUM_PAIRS, abs=FP32)


# ALLO's own levers.


def test_the_anchor_adds_the_chosen_answers_mean_negative_log_likelihood(tmp_path: Path) -> None:
    policy = model()
    anchored = ImproveTrainer(
        policy, arguments(tmp_path), pairs(), TOKENIZER, mask=every_third(policy), anchor=0.7
    )
    batch = anchored._batch(anchored.train_dataset)
    chosen, _ = batch["completion_mask"].chunk(2)
    with torch.no_grad():
        logps = anchored.logratios(batch)[1].chunk(2)[0]
        # Policy and reference are equal: DPO's part is log 2 a pair.
        expected = math.log(2) - 0.7 * (logps.sum(-1) / chosen.sum(-1)).mean().item()
    assert whole_loss(anchored) == pytest.approx(expected, abs=FP32)


def test_an_anchored_run_keeps_the_chosen_answers_likelier(tmp_path: Path) -> None:
    runs = [trained(ImproveTrainer, pairs(), tmp_path, own={"anchor": a}) for a in (0.0, 1.0)]
    plain, anchored = (logged(run, "logps/chosen")[-1] for run in runs)
    assert anchored > plain + 1


def kept(trainer: ImproveTrainer) -> tuple[Tensor, Tensor, Tensor]:
    """Rejected log-ratios, their mask, and what is kept of them."""
    batch = trainer._batch(trainer.train_dataset)
    with torch.no_grad():
        rejected = trainer.logratios(batch)[0].chunk(2)[1]
        return rejected, batch["completion_mask"].chunk(2)[1], trainer._pairs(batch)[1]


def test_the_highest_log_ratios_are_kept_where_the_filter_says_so(tmp_path: Path) -> None:
    trainer = trained(ImproveTrainer, pairs(), tmp_path, own={"filter": "highest", "keep": 0.3})
    for ratios, mask, chosen in zip(*kept(trainer), strict=True):
        own = ratios[mask].sort(descending=True).values
        number = math.ceil(0.3 * len(own) - 1e-9)
        assert sorted(ratios[chosen].tolist(), reverse=True) == own[:number].tolist()


def test_random_tokens_are_drawn_a_row_and_a_step(tmp_path: Path) -> None:
    trainer = improver(tmp_path, settings={}, filter="random", keep=0.5)
    _, mask, first = kept(trainer)
    lengths = mask.sum(-1)
    assert first.sum(-1).tolist() == [math.ceil(n / 2) for n in lengths.tolist()], "also while all tie"
    assert not (first & ~mask).any()
    assert torch.equal(kept(trainer)[2], first)
    alone = trainer._batch(trainer.train_dataset[5:6])
    assert torch.equal(trainer._pairs(alone)[1][0, : lengths[5]], first[5, : lengths[5]]), (
        "alone as in a batch"
    )
    trainer.state.global_step = 1
    assert not torch.equal(kept(trainer)[2], first)


@pytest.mark.parametrize("own", [{"filter": "random"}, {"filter": "highest", "anchor": 0.5}])
def test_no_lever_depends_on_how_a_step_is_cut(own: dict[str, Any], tmp_path: Path) -> None:
    one = trained(ImproveTrainer, pairs(), tmp_path, own=own, **SGD)
    cut = SGD | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    other = trained(ImproveTrainer, pairs(), tmp_path, own=own, **cut)
    for name, param in weights(one.model).items():
        torch.testing.assert_close(weights(other.model)[name], param, **CUT)


def test_whole_completions_are_forgotten_by_npo_of_their_weighted_sums(tmp_path: Path) -> None:
    trainer = trained(ForgetTrainer, wrongs(), tmp_path, own={"loss": "sequence", "beta": 0.2})
    assert logged(trainer)[0] == pytest.approx(2 / 0.2 * math.log(2), rel=1e-6)
    assert logged(trainer)[-1] < logged(trainer)[0]
    batch = trainer._batch(trainer.train_dataset)
    with torch.no_grad():
        logratios, _ = trainer.logratios(batch)
    sums = (logratios * batch["token_weights"]).sum(-1).double()
    expected = (2 / 0.2 * torch.log1p(torch.exp(0.2 * sums))).mean().item()
    assert whole_loss(trainer) == pytest.approx(expected, abs=FP32)
    assert sums.mean() < -1


def test_npo_of_a_completion_is_its_formula_and_tends_to_gradient_ascent() -> None:
    sums = torch.tensor([0.0, 2.0, -30.0], dtype=torch.float64, requires_grad=True)
    expected = [20 * math.log(2), 20 * math.log1p(math.exp(0.2)), 20 * math.log1p(math.exp(-3.0))]
    assert losses.npo_sequence(sums, beta=0.1).tolist() == pytest.approx(expected, rel=1e-12)
    (slope,) = torch.autograd.grad(losses.npo_sequence(sums, beta=1e-6).sum(), sums)
    torch.testing.assert_close(slope, torch.ones_like(sums), rtol=0, atol=1e-4)


def test_a_trainer_refuses_what_the_loss_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^keep: simpo has no reference"):
        improver(tmp_path, loss="simpo")
    with pytest.raises(UserError, match=r"^loss_settings\.gamma: dpo takes no such setting"):
        improver(tmp_path, loss_settings={"gamma": 1.0})


@pytest.mark.parametrize("filter", ["lowest", "random"])
def test_each_micro_batch_is_laid_out_once_a_step(filter: Any, tmp_path: Path) -> None:
    """The reference's pass and the policy's read the same batches."""
    trainer = improver(tmp_path, filter=filter)
    collated: list[list[int]] = []
    lay_out = trainer.data_collator

    class Seen:
        num_tokens = lay_out.num_tokens

        def __call__(self, rows: Any) -> Any:
            collated.append([row["number"] for row in rows])
            return lay_out(rows)

    trainer.data_collator = Seen()
    trainer.create_optimizer()
    trainer.training_step(trainer.model, trainer.train_dataset)
    assert len(collated) > 1
    assert sorted(number for rows in collated for number in rows) == list(range(len(trainer.train_dataset)))
