"""Losses of pairs: their papers' formulas by hand, their slopes, TRL's own, and what is refused of a user's."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from allo.errors import UserError
from allo.losses.needs import LossFunction, needs_of, pair_loss
from allo.losses.pair_losses import PairLogps, PairSums, RunningMean
from allo.recipe.losses import PAIR_LOSSES
from allo.recipe.own_code import function_of
from allo.training.chosen_losses import chosen_pair_loss, pair_losses_of

LOSSES = {loss.name: function_of(loss.function, key="loss") for loss in PAIR_LOSSES.values()}
FP64 = {"rtol": 1e-12, "atol": 1e-12}
LARGE = 1e4


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def lengths(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two_pairs() -> PairSums:
    """One pair in the right order, its chosen answer the shorter one, and one in the wrong order."""
    return PairSums(
        chosen_logps=doubles(-4.0, -9.0),
        rejected_logps=doubles(-12.0, -6.0),
        chosen_lengths=lengths(2, 3),
        rejected_lengths=lengths(4, 3),
        chosen_logratios=doubles(2.0, -1.0),
        rejected_logratios=doubles(-1.0, 2.0),
    )


def nls(x: float) -> float:
    """-log sigmoid(x)."""
    return math.log1p(math.exp(-x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("loss", "settings", "expected"),
    [
        ("dpo", {"beta": 0.1}, [nls(0.3), nls(-0.3)]),
        (
            "dpo",
            {"beta": 0.1, "label_smoothing": 0.2},
            [0.8 * nls(0.3) + 0.2 * nls(-0.3), 0.8 * nls(-0.3) + 0.2 * nls(0.3)],
        ),
        ("ipo", {"beta": 0.1}, [(2 / 2 + 1 / 4 - 5) ** 2, (-1 / 3 - 2 / 3 - 5) ** 2]),
        ("ipo", {"beta": 0.1, "length_average": False}, [(3 - 5) ** 2, (-3 - 5) ** 2]),
        ("bco", {"beta": 0.1, "delta": 0.0}, [nls(0.2) + nls(0.1), nls(-0.1) + nls(-0.2)]),
        ("bco", {"beta": 0.1, "delta": 0.5}, [nls(-0.3) + nls(0.6), nls(-0.6) + nls(0.3)]),
        ("apo_zero", {"beta": 0.1}, [sigmoid(-0.2) + sigmoid(-0.1), sigmoid(0.1) + sigmoid(0.2)]),
        ("simpo", {"beta": 2.0, "gamma": 0.5}, [nls(2 * (-2 + 3) - 0.5), nls(2 * (-3 + 2) - 0.5)]),
        ("simpo", {"beta": 2.0}, [nls(2 - 1.0), nls(-2 - 1.0)]),
    ],
)
def test_each_loss_is_its_formula(loss: str, settings: dict[str, Any], expected: list[float]) -> None:
    found = LOSSES[loss](two_pairs(), **settings)
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=torch.float64), **FP64)


def slopes(loss: str, pairs: PairSums, **settings: Any) -> dict[str, list[float]]:
    """d loss / d each column of sums that the loss reads."""
    inputs = {each.name: getattr(pairs, each.name) for each in fields(pairs) if "lengths" not in each.name}
    total = LOSSES[loss](pairs, **settings).sum()
    found = torch.autograd.grad(total, list(inputs.values()), allow_unused=True)
    return {name: grad.tolist() for name, grad in zip(inputs, found, strict=True) if grad is not None}


@pytest.mark.parametrize(
    ("loss", "settings", "chosen", "rejected"),
    [
        ("ipo", {"beta": 0.1}, 2 * (1.25 - 5) / 2, -2 * (1.25 - 5) / 4),
        ("ipo", {"beta": 0.1, "length_average": False}, 2 * (3 - 5), -2 * (3 - 5)),
        ("bco", {"beta": 0.1, "delta": 0.5}, -0.1 * sigmoid(0.3), 0.1 * sigmoid(-0.6)),
        (
            "apo_zero",
            {"beta": 0.1},
            -0.1 * sigmoid(0.2) * sigmoid(-0.2),
            0.1 * sigmoid(-0.1) * sigmoid(0.1),
        ),
        ("simpo", {"beta": 2.0, "gamma": 0.5}, -sigmoid(-1.5) * 2 / 2, sigmoid(-1.5) * 2 / 4),
    ],
)
def test_each_slope_is_its_closed_form(
    loss: str, settings: dict[str, Any], chosen: float, rejected: float
) -> None:
    found = slopes(loss, two_pairs(), **settings)
    kind = "logps" if loss == "simpo" else "logratios"
    assert set(found) == {f"chosen_{kind}", f"rejected_{kind}"}, "it reads nothing else"
    assert found[f"chosen_{kind}"][0] == pytest.approx(chosen, rel=1e-12)
    assert found[f"rejected_{kind}"][0] == pytest.approx(rejected, rel=1e-12)


def test_ipo_has_its_least_at_the_target_and_no_longer_pulls_beyond() -> None:
    at_target = replace(
        two_pairs(), chosen_logratios=doubles(4.0, 9.0), rejected_logratios=doubles(-1.0, 2.0)
    )
    chosen = slopes("ipo", at_target, beta=0.1, length_average=False)["chosen_logratios"]
    assert chosen[0] == 0 and chosen[1] > 0, "5 is reached; 7 is too far, where DPO would still pull"
    assert slopes("dpo", at_target, beta=0.1)["chosen_logratios"][1] < 0


def test_bco_is_least_where_the_shift_parts_the_classes() -> None:
    """Without log-ratios the best shift is 0; rewards that all rose by as much want that much."""
    risen = replace(two_pairs(), chosen_logratios=doubles(50.0, 50.0), rejected_logratios=doubles(50.0, 50.0))
    bco = LOSSES["bco"]
    of_shifts = [bco(risen, beta=0.1, delta=delta).sum().item() for delta in (4.0, 5.0, 6.0)]
    assert of_shifts[1] < min(of_shifts[0], of_shifts[2])
    assert of_shifts[1] == pytest.approx(2 * 2 * math.log(2))


def test_simpo_is_indifferent_to_length_at_equal_means() -> None:
    pairs = replace(two_pairs(), chosen_logps=doubles(-4.0, -3.0), rejected_logps=doubles(-8.0, -3.0))
    assert LOSSES["simpo"](pairs, beta=2.0, gamma=0.0).tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences_and_finite_far_out(loss: str) -> None:
    settings = {"beta": 0.3} | ({"delta": 0.2} if loss == "bco" else {})
    names = [each.name for each in fields(PairSums)]
    columns = [getattr(two_pairs(), name) for name in names]

    def of_columns(*columns: Tensor) -> Tensor:
        return LOSSES[loss](PairSums(*columns), **settings)

    assert torch.autograd.gradcheck(of_columns, columns)
    for sign in (1, -1):
        far = [
            column if "lengths" in name else (sign * LARGE * column.detach()).requires_grad_()
            for name, column in zip(names, columns, strict=True)
        ]
        found = of_columns(*far)
        grads = torch.autograd.grad(found.sum(), [x for x in far if x.requires_grad], allow_unused=True)
        assert found.isfinite().all() and all(grad.isfinite().all() for grad in grads if grad is not None)


@pytest.mark.invariant("Every pair loss is its formula, and TRL's where TRL has it.")
@pytest.mark.filterwarnings("ignore::Warning")  # what TRL's experimental module says of itself
def test_simpo_is_trls() -> None:
    cpo = pytest.importorskip("trl.experimental.cpo", reason="TRL is the oracle; install the extra `trl`")
    pairs = two_pairs()
    settings = SimpleNamespace(
        beta=2.5,
        simpo_gamma=0.7,
        loss_type="simpo",
        alpha=0.0,
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    means = pairs.chosen_logps / pairs.chosen_lengths, pairs.rejected_logps / pairs.rejected_lengths
    expected, chosen, rejected = cpo.CPOTrainer.cpo_loss(settings, *means)
    torch.testing.assert_close(LOSSES["simpo"](pairs, beta=2.5, gamma=0.7), expected, **FP64)
    rewards = pairs.mean_rewards(beta=2.5)
    torch.testing.assert_close(torch.stack(rewards).detach(), torch.stack([chosen, rejected]), **FP64)


def test_the_running_mean_is_the_mean_of_all_that_came() -> None:
    mean = RunningMean()
    assert mean.value == 0
    for batch in ([1.0, 2.0], [6.0]):
        mean.add(sum(batch), len(batch))
    assert mean.value == 3.0


# A user's own.


def hinge(pairs: PairSums, *, beta: float, margin: float = 1.0, squared: bool = False) -> Tensor:
    found = (margin - beta * (pairs.chosen_logratios - pairs.rejected_logratios)).relu()
    return found.square() if squared else found


@pair_loss(needs_reward_mean=True)
def needy(pairs: PairSums, *, beta: float, delta: float, width: float) -> Tensor:
    return pairs.chosen_logratios * width - delta


def far(pairs: PairSums, *, beta: float, delta: float = 1.0) -> Tensor:
    """`delta` is a setting of the user's, as any other keyword."""
    return (delta - beta * (pairs.chosen_logratios - pairs.rejected_logratios)).square()


@pair_loss(needs_reference=False)
def alone(pairs: PairLogps, *, beta: float) -> Tensor:
    return -beta * pairs.chosen_logps


def unmarked(pairs: PairLogps, *, beta: float) -> Tensor:
    """An annotation says nothing: this gets a reference that it does not read."""
    return -beta * pairs.chosen_logps


def mean(pairs: PairSums, *, beta: float) -> Tensor:
    return pairs.chosen_logps.mean()


def broken(pairs: PairSums, *, beta: float) -> Tensor:
    return pairs.chosen_margin


def of_nothing() -> Tensor:
    return torch.zeros(2)


def root(pairs: PairSums, *, beta: float) -> Tensor:
    return (pairs.chosen_logratios - pairs.rejected_logratios).sqrt()


def quotient(pairs: PairSums, *, beta: float) -> Tensor:
    return pairs.chosen_logratios / pairs.rejected_logratios


def cut_off(pairs: PairSums, *, beta: float) -> Tensor:
    return (pairs.rejected_logratios - pairs.chosen_logratios).detach()


def two_alone(pairs: PairSums, *, beta: float) -> Tensor:
    """Right of two pairs, and of no other number."""
    return (pairs.rejected_logratios - pairs.chosen_logratios).sum().expand(2)


def ordered(pairs: PairSums, *, beta: float) -> Tensor:
    return pairs.chosen_logratios > pairs.rejected_logratios


def counted(pairs: PairSums, *, beta: float) -> list[float]:
    return [0.0, 0.0]


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        (hinge, {}),
        (hinge, {"margin": 2, "squared": True}),
        (needy, {"width": 0.5}),
        ("ipo", {"length_average": False}),
    ],
)
def test_a_function_is_taken_as_it_is(loss: str | LossFunction, settings: dict[str, Any]) -> None:
    assert chosen_pair_loss(loss, settings, keep=0.5) is LOSSES.get(loss, loss)


@pytest.mark.parametrize(
    ("loss", "settings", "words"),
    [
        ("kto", {}, "^loss: 'kto' is not one of dpo, ipo, bco, apo_zero, simpo"),
        (
            "ipo",
            {"alpha": 1.0},
            r"^loss_settings\.alpha: ipo takes no such setting; its settings are length_average",
        ),
        (
            "bco",
            {"delta": 1.0},
            r"^loss_settings\.delta: bco takes no such setting; it has no settings: remove",
        ),
        (
            "dpo",
            {"beta": 1.0},
            r"^loss_settings\.beta: dpo takes no such setting; its settings are label_smoothing",
        ),
        (
            "ipo",
            {"length_average": 1.0},
            r"^loss_settings\.length_average: must be true or false; found 1\.0",
        ),
        ("simpo", {"gamma": True}, r"^loss_settings\.gamma: must be a number; found true"),
        (
            "dpo",
            {"label_smoothing": 0.5},
            r"^loss_settings\.label_smoothing is 0\.5: it must be at least 0 and below",
        ),
        ("dpo", {"label_smoothing": -0.1}, r"^loss_settings\.label_smoothing is -0\.1"),
        (needy, {}, r"^loss_settings\.width: test_pair_losses\.py:needy has no default for it: set it"),
        (
            mean,
            {},
            r"^loss: test_pair_losses\.py:mean must return one loss per pair, \[B\]: of two pairs it returned a tensor of shape \[\]",
        ),
        (broken, {}, r"^loss: test_pair_losses\.py:broken fails: AttributeError: .*chosen_margin"),
        (of_nothing, {}, r"^loss: test_pair_losses\.py:of_nothing fails: TypeError"),
        (needy, {"width": 1.0, "delta": 1.0}, r"^loss_settings\.delta: .*:needy takes no such setting"),
        (
            far,
            {"delat": 1.0},
            r"^loss_settings\.delat: .*:far takes no such setting; its settings are delta\.",
        ),
        (far, {"delta": math.nan}, r"^loss_settings\.delta: must be a finite number"),
        (root, {}, r"^loss: .*:root has a gradient that is not finite"),
        (quotient, {}, r"^loss: .*:quotient gives \[nan, nan\] when policy and reference are equal"),
        (cut_off, {}, r"^loss: .*:cut_off has no gradient"),
        (two_alone, {}, r"^loss: .*:two_alone must return one loss per pair, \[B\]: of one pair"),
        (ordered, {}, r"^loss: .*:ordered must return .* shape \[2\] and torch\.bool"),
        (counted, {}, r"^loss: .*:counted must return .*: of two pairs it returned \[0\.0, 0\.0\]"),
        (3, {}, "^loss: 3 is neither a name nor a function"),
    ],
)
def test_what_a_loss_does_not_take_is_refused(
    loss: str | LossFunction, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        chosen_pair_loss(loss, settings, keep=1.0)


@pytest.mark.parametrize("loss", ["simpo", alone])
def test_what_needs_no_log_ratio_has_no_reference_and_no_filter(loss: str | LossFunction) -> None:
    assert not needs_of(chosen_pair_loss(loss, {}, keep=1.0)).reference
    with pytest.raises(UserError, match=r"^keep: \S+ has no reference.*set keep to 1\.0"):
        chosen_pair_loss(loss, {}, keep=0.5)


def test_a_filter_that_a_loss_would_ignore_is_refused() -> None:
    assert needs_of(chosen_pair_loss(unmarked, {}, keep=1.0)).reference
    with pytest.raises(UserError, match=r"^keep: .*:unmarked reads no log-ratio.*needs_reference=False"):
        chosen_pair_loss(unmarked, {}, keep=0.5)


@pytest.mark.parametrize("loss", [*sorted(set(LOSSES) - {"simpo"}), hinge, needy, far])
def test_every_other_loss_has_a_reference(loss: str | Callable[..., Tensor]) -> None:
    assert needs_of(LOSSES.get(loss, loss)).reference


def test_a_keyword_called_delta_is_the_users_own() -> None:
    assert not needs_of(far).reward_mean
    found = pair_losses_of(far, two_pairs(), beta=1.0, reward_mean=100.0, settings={"delta": 5.0})
    assert found.tolist() == [4.0, 64.0]
    assert pair_losses_of(far, two_pairs(), beta=1.0, reward_mean=100.0, settings={}).tolist() == [4.0, 16.0]
