"""Learning from labelled completions: a step's reference point is the same however its rows are cut, and is resumed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpointing import SAVING, Stop, assert_same_state

from allo.errors import UserError
from allo.models.policy import per_token_logps
from allo.training.feedback_trainer import FeedbackTrainer
from allo.training.run import train
from allo.training.trainer import ImproveTrainer
from tiny import TOKENIZER, arguments, every_third, feedback, logged, model, pairs, trained, weights

SGD = {"optim": "sgd", "learning_rate": 0.3}
CUT = {"rtol": 0, "atol": 1e-6}
SEQUENTIAL = {"train_sampling_strategy": "sequential"}
LOSSES = ("kto", "bco")


def feedback_trainer(folder: Path, *, stop: int | None = None, **own: Any) -> FeedbackTrainer:
    policy = model()
    callbacks = [] if stop is None else [Stop(stop)]
    return FeedbackTrainer(
        policy,
        arguments(folder, **SAVING),
        feedback(),
        TOKENIZER,
        mask=every_third(policy),
        callbacks=callbacks,
        **own,
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_it_raises_the_good_above_the_bad(loss: str, tmp_path: Path) -> None:
    trainer = trained(
        FeedbackTrainer, feedback(), tmp_path, own={"loss": loss, "keep": 1.0}, num_train_epochs=4
    )
    margins = logged(trainer, "rewards/margins")
    assert margins[-1] > margins[0] + 0.05 and logged(trainer)[-1] < logged(trainer)[0]


@pytest.mark.invariant("A step's reference point, of KTO and of BCO, is the same however its rows are cut.")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("filter", ["lowest", "random"])
def test_neither_micro_batches_nor_budgets_change_a_step(loss: str, filter: str, tmp_path: Path) -> None:
    own = {"loss": loss, "beta": 0.5, "keep": 0.6, "filter": filter}
    one = trained(
        FeedbackTrainer,
        feedback(),
        tmp_path,
        own=own,
        **SGD,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
    )
    for other in (
        trained(
            FeedbackTrainer,
            feedback(),
            tmp_path,
            own=own,
            **SGD,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=4,
        ),
        trained(FeedbackTrainer, feedback(), tmp_path, own=own | {"max_tokens_per_batch": 40}, **SGD),
    ):
        assert logged(other) == pytest.approx(logged(one), abs=1e-5)
        if loss == "kto":
            assert logged(other, "kl") == pytest.approx(logged(one, "kl"), abs=1e-5)
            assert max(logged(one, "kl")) > 0
        for name, param in weights(one.model).items():
            torch.testing.assert_close(weights(other.model)[name], param, **CUT)


def test_kl_is_of_each_prompt_with_the_completion_of_the_row_before(tmp_path: Path) -> None:
    """By hand: all rows of the first step of the second run, under both models."""
    trainer = trained(FeedbackTrainer, feedback(), tmp_path, own={"keep": 1.0}, **SEQUENTIAL)
    rows = trainer.train_dataset[:4]
    moved = [
        {**row, "completion_ids": before["completion_ids"]}
        for row, before in zip(rows, [rows[3], *rows[:3]], strict=True)
    ]
    with torch.no_grad():
        batch = trainer._batch(moved)
        after = per_token_logps(trainer.model, batch).sum()
        start = per_token_logps(model(), batch).sum()
    assert trainer._kl_of(rows) == pytest.approx(max(0.0, (after - start).item() / 4), rel=1e-4)


def test_a_prompt_that_no_longer_fits_before_another_completion_loses_its_beginning(tmp_path: Path) -> None:
    trainer = feedback_trainer(tmp_path, max_length=14)
    long = {"prompt_ids": list(range(1, 13)), "completion_ids": [5], "label": True, "number": 0}
    other = {"prompt_ids": [1], "completion_ids": [5] * 10, "label": True, "number": 1}
    assert trainer._with_completion(long, other)["prompt_ids"][-3:] == [10, 11, 12]
    assert len(trainer._with_completion(long, other)["prompt_ids"]) == 4


def test_the_shift_is_midway_between_good_and_bad_rewards_of_the_steps_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = model()
    own: dict[str, Any] = {"loss": "bco", "keep": 1.0, "mask": every_third(policy)}
    trainer = FeedbackTrainer(policy, arguments(tmp_path, **SEQUENTIAL), feedback(), TOKENIZER, **own)
    seen: list[float] = []
    step = trainer.training_step
    monkeypatch.setattr(trainer, "training_step", lambda *a: (seen.append(trainer.shift), step(*a))[1])
    trainer.train()
    sums = {"chosen": [0.0, 0], "rejected": [0.0, 0]}
    expected = []
    for number, row in enumerate(row for row in trainer.state.log_history if "loss" in row):
        expected.append(sum(total / max(count, 1) for total, count in sums.values()) / 2)
        labels = [one["label"] for one in feedback()][number % 4 * 4 :][:4]
        for side, count in (("chosen", sum(labels)), ("rejected", 4 - sum(labels))):
            sums[side][0] += count * row.get(f"rewards/{side}", 0.0)
            sums[side][1] += count
    assert seen == pytest.approx(expected, abs=1e-6) and max(map(abs, seen)) > 1e-3


def test_on_both_sides_of_pairs_bco_is_that_of_pairs(tmp_path: Path) -> None:
    """One is a mean over completions, the other over pairs of two."""
    both = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs()
        for side in ("chosen", "rejected")
    ]
    settings = SGD | SEQUENTIAL
    single = settings | {"per_device_train_batch_size": 4, "learning_rate": 0.6, "max_grad_norm": 0.0}
    of_pairs = trained(ImproveTrainer, pairs(), tmp_path, own={"loss": "bco"}, **settings, max_grad_norm=0.0)
    alone = trained(FeedbackTrainer, both, tmp_path, own={"loss": "bco"}, **single)
    assert logged(of_pairs) == pytest.approx([2 * loss for loss in logged(alone)], abs=1e-5)
    assert isinstance(alone, FeedbackTrainer) and isinstance(of_pairs, ImproveTrainer)
    assert alone.shift == pytest.approx(of_pairs.reward_mean.value, abs=1e-6)
    for name, param in weights(of_pairs.model).items():
        torch.testing.assert_close(weights(alone.model)[name], param, **CUT)


@pytest.mark.parametrize("loss", LOSSES)
def test_interrupted_and_resumed_it_ends_as_not_interrupted(loss: str, tmp_path: Path) -> None:
    whole = feedback_trainer(tmp_path / "whole", loss=loss)
    expected = train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(feedback_trainer(tmp_path / "cut", loss=loss, stop=5))
    resumed = feedback_trainer(tmp_path / "cut", loss=loss)
    assert train(resumed) == expected
    assert_same_state(resumed, whole)
    assert resumed.shift == whole.shift and (loss == "kto" or whole.shift != 0)


def test_evaluation_has_one_reference_point_for_all_rows_and_leaves_training_alone(tmp_path: Path) -> None:
    own = {"loss": "kto", "keep": 1.0}
    plain = trained(FeedbackTrainer, feedback(), tmp_path, own=own, **SGD, num_train_epochs=1)
    found = []
    for size in (2, 16):
        watched = trained(
            FeedbackTrainer,
            feedback(),
            tmp_path,
            own=own | {"eval_dataset": feedback()},
            **SGD,
            num_train_epochs=1,
            eval_strategy="epoch",
            per_device_eval_batch_size=size,
        )
        found.append(logged(watched, "eval_loss"))
        for name, param in weights(plain.model).items():
            torch.testing.assert_close(weights(watched.model)[name], param, rtol=0, atol=0)
    assert found[0] == pytest.approx(found[1], abs=1e-6) and len(found[0]) == 1


def test_an_evaluation_that_fails_leaves_training_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: FeedbackTrainer, batch: Any, *, denominator: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    trainer = feedback_trainer(tmp_path, loss="kto", eval_dataset=feedback()[:4])
    trainer.kl = 0.25
    trainer.record(1, {"kl": 0.25})
    before = dict(trainer._sums)
    monkeypatch.setattr(FeedbackTrainer, "loss", fails)
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluate()
    assert trainer.kl == 0.25 and trainer._sums == before


def test_good_completions_count_as_a_whole_and_bad_ones_by_the_filter(tmp_path: Path) -> None:
    trainer = trained(FeedbackTrainer, feedback(), tmp_path, own={"keep": 0.3})
    lengths = [len(row["completion_ids"]) for row in trainer.train_dataset if not row["label"]]
    kept = sum(math.ceil(0.3 * length - 1e-9) for length in lengths) / sum(lengths)
    assert logged(trainer, "improve/kept_tokens")[-1] < 1
    trainer._sums = {}
    with torch.no_grad():
        trainer.loss(trainer._batch(trainer.train_dataset), denominator=1.0)
    total, count = trainer._sums["improve/kept_tokens"]
    assert total / count == pytest.approx(kept)


def test_what_kto_cannot_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reference: kto .* nothing can be precomputed: set it to swap"):
        feedback_trainer(tmp_path, reference="precomputed")
    policy = model()
    alone = arguments(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=1)
    with pytest.raises(UserError, match=r"kto takes its reference point from the other rows of a step"):
        FeedbackTrainer(policy, alone, feedback(), TOKENIZER, mask=every_third(policy))
    with pytest.raises(
        UserError, match=r"name the file under `data\.feedback` in a recipe, or give .* `FeedbackTrainer`"
    ):
        ImproveTrainer(policy, arguments(tmp_path), feedback(), TOKENIZER, mask=every_third(policy))


def test_an_unbalance_is_said_with_the_weight_that_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feedback_trainer(tmp_path)
    said = capsys.readouterr().err
    assert "10 good and 6 bad completions" in said and "set loss_settings.desirable_weight to 0.6" in said
    feedback_trainer(tmp_path, loss_settings={"desirable_weight": 0.6})
    assert "desirable_weight" not in capsys.readouterr().err
    feedback_trainer(tmp_path, loss="bco")
    assert "desirable_weight" not in capsys.readouterr().err


@pytest.mark.parametrize("own", [{"beta": 0.0}, {"beta": math.nan}, {"keep": 0.0}, {"keep": 1.5}])
def test_beta_and_keep_are_bounded(own: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{min(own)} is "):
        feedback_trainer(tmp_path, **own)
