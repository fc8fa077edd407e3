"""KTO and BCO of single completions: their papers' formulas, at hand-made numbers, and BCO of pairs as their sum."""

import math

import pytest
import torch
from torch import Tensor

from allo.errors import UserError
from allo.losses.feedback_losses import AnswerSums, bco, classified, kto
from allo.losses.needs import feedback_loss
from allo.losses.pair_losses import PairSums
from allo.losses.pair_losses import bco as bco_of_pairs
from allo.losses.token_losses import dpo_of_logratios
from allo.training.chosen_losses import chosen_feedback_loss


def answers(logratios: list[float], good: list[bool]) -> AnswerSums:
    ones = torch.ones(len(good))
    return AnswerSums(
        torch.tensor(good),
        -ones,
        ones.long(),
        torch.tensor(logratios, dtype=torch.float64, requires_grad=True),
    )


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_kto_is_its_papers_formula() -> None:
    found = kto(
        answers([0.4, -1.0], [True, False]), beta=0.5, kl=0.2, desirable_weight=1.5, undesirable_weight=0.7
    )
    good = 1.5 * (1 - sigmoid(0.5 * (0.4 - 0.2)))
    bad = 0.7 * (1 - sigmoid(0.5 * (0.2 - -1.0)))
    assert found.tolist() == pytest.approx([good, bad], rel=1e-12)


def test_bco_of_a_pair_is_that_of_its_two_sides() -> None:
    chosen, rejected = torch.tensor([0.4, 2.0]), torch.tensor([-1.0, 3.0])
    ones = torch.ones(2)
    pairs = PairSums(-ones, -ones, ones.long(), ones.long(), chosen, rejected)
    single = bco(answers([0.4, 2.0, -1.0, 3.0], [True, True, False, False]), beta=0.3, delta=0.25)
    torch.testing.assert_close(sum(single.float().chunk(2)), bco_of_pairs(pairs, beta=0.3, delta=0.25))


def test_without_a_shift_its_gradient_at_the_start_is_dpos() -> None:
    chosen, rejected = (torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    dpo_of_logratios(chosen, rejected, beta=0.3).sum().backward()
    sides = answers([0.0] * 6, [True] * 3 + [False] * 3)
    classified(sides, beta=0.3).sum().backward()
    assert sides.logratios.grad is not None and chosen.grad is not None and rejected.grad is not None
    torch.testing.assert_close(sides.logratios.grad, torch.cat([chosen.grad, rejected.grad]))


@feedback_loss(needs_kl=True)
def hinge(answers: AnswerSums, *, beta: float, kl: float, margin: float = 1.0) -> Tensor:
    signs = answers.good.float() * 2 - 1
    return (margin - beta * signs * (answers.logratios - kl)).relu()


def unread(answers: AnswerSums, *, beta: float) -> Tensor:
    return -beta * answers.logps


def test_an_own_function_is_a_loss_and_its_settings_are_checked() -> None:
    assert chosen_feedback_loss(hinge, {"margin": 2.0}, keep=0.5) is hinge
    for loss, settings, keep, message in (
        ("dpo", {}, 1.0, r"^loss: 'dpo' is not one of kto, bco\."),
        (
            "kto",
            {"kl": 1.0},
            1.0,
            r"^loss_settings\.kl: kto takes no such setting; its settings are desirable_weight",
        ),
        (
            "bco",
            {"desirable_weight": 2.0},
            1.0,
            r"^loss_settings\.desirable_weight: bco takes no such setting",
        ),
        ("kto", {"desirable_weight": True}, 1.0, r"must be a number; found true"),
        (unread, {}, 0.5, r"^keep: .*unread reads no log-ratio"),
        (lambda answers, *, beta: 0.0, {}, 1.0, r"must return one loss per completion"),
    ):
        with pytest.raises(UserError, match=message):
            chosen_feedback_loss(loss, settings, keep=keep)
