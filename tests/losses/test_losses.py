"""The losses are their formulas, and neither padding nor accumulation changes them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from allo.losses import token_losses as losses

FP32 = {"rtol": 1e-6, "atol": 1e-7}
FP64 = {"rtol": 1e-12, "atol": 1e-12}
BETA = 0.1


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_dpo_is_log_2_when_policy_equals_reference() -> None:
    same = torch.zeros(3)
    torch.testing.assert_close(
        losses.dpo_of_logratios(same, same, beta=BETA), torch.full((3,), math.log(2)), **FP32
    )


def test_dpo_is_its_formula_and_prefers_the_chosen_completion() -> None:
    chosen, rejected = doubles(2.0, -1.0), doubles(-1.0, 2.0)
    expected = torch.tensor([-math.log(sigmoid(0.1 * 3)), -math.log(sigmoid(0.1 * -3))], dtype=torch.float64)
    result = losses.dpo_of_logratios(chosen, rejected, beta=0.1)
    torch.testing.assert_close(result.detach(), expected, **FP64)
    # d/d margin of -log sigmoid(margin) is -sigmoid(-margin): up for chosen, down for rejected
    result.sum().backward()
    slope = torch.tensor([0.1 * sigmoid(-0.3), 0.1 * sigmoid(0.3)], dtype=torch.float64)
    torch.testing.assert_close(chosen.grad, -slope, **FP64)
    torch.testing.assert_close(rejected.grad, slope, **FP64)


def test_label_smoothing_is_the_mean_over_both_orders_of_the_pair() -> None:
    chosen, rejected = doubles(2.0, -1.0), doubles(-1.0, 0.5)
    smooth = losses.dpo_of_logratios(chosen, rejected, beta=BETA, label_smoothing=0.2)
    right, wrong = (
        losses.dpo_of_logratios(chosen, rejected, beta=BETA),
        losses.dpo_of_logratios(rejected, chosen, beta=BETA),
    )
    torch.testing.assert_close(smooth, 0.8 * right + 0.2 * wrong, **FP64)
    # half of the labels wrong: no pair says anything, and policy = reference is the best
    blank = losses.dpo_of_logratios(doubles(0.0), doubles(0.0), beta=BETA, label_smoothing=0.5)
    assert (losses.dpo_of_logratios(chosen, rejected, beta=BETA, label_smoothing=0.5) >= blank).all()


def test_npo_is_its_formula() -> None:
    logratios = torch.tensor([[0.0, 2.0], [-3.0, 10.0]], dtype=torch.float64)
    expected = [[math.log(2), -math.log(sigmoid(-0.2))], [-math.log(sigmoid(0.3)), -math.log(sigmoid(-1.0))]]
    torch.testing.assert_close(
        losses.npo(logratios, beta=0.1), torch.tensor(expected, dtype=torch.float64), **FP64
    )


def test_npos_gradient_tends_to_half_beta_times_gradient_ascent() -> None:
    values = (-2.0, 0.0, 0.7, 3.0)
    ascent = doubles(*values)
    (-losses.nll(ascent)).sum().backward()
    errors = []
    for beta in (1e-1, 1e-2, 1e-3):
        logps = doubles(*values)
        losses.npo(logps, beta=beta).sum().backward()
        errors.append((logps.grad / (beta / 2) - ascent.grad).abs().max().item())
    assert errors[0] > 5 * errors[1] > 25 * errors[2], "the difference shrinks with beta"
    assert errors[-1] < 2e-3


def test_nll_is_minus_the_log_of_the_probability() -> None:
    probabilities = torch.tensor([0.25, 1.0])
    torch.testing.assert_close(losses.nll(probabilities.log()), torch.tensor([math.log(4), 0.0]), **FP32)


@pytest.mark.parametrize("at_zero_weight", [1e30, torch.inf, -torch.inf, torch.nan])
def test_tokens_of_zero_weight_have_exactly_zero_gradient(at_zero_weight: float) -> None:
    token_losses = torch.tensor([[1.0, at_zero_weight], [3.0, at_zero_weight]], requires_grad=True)
    weights = torch.tensor([[2.0, 0.0], [0.5, 0.0]])
    loss = losses.reduce(token_losses, weights, denominator=2)
    assert loss.item() == (2 * 1 + 0.5 * 3) / 2
    loss.backward()
    assert token_losses.grad.tolist() == [[1.0, 0.0], [0.25, 0.0]]


def test_an_infinite_logratio_of_zero_weight_leaves_no_trace_through_npo() -> None:
    logratios = torch.tensor([0.5, torch.inf, -torch.inf], requires_grad=True)
    weights = torch.tensor([1.0, 0.0, 0.0])
    losses.reduce(losses.npo(logratios, beta=BETA), weights, denominator=1).backward()
    assert logratios.grad[1:].tolist() == [0, 0]
    assert math.isclose(logratios.grad[0].item(), BETA * sigmoid(BETA * 0.5), rel_tol=FP32["rtol"])


def test_weights_may_be_a_boolean_mask() -> None:
    token_losses, mask = torch.tensor([1.0, 5.0, 7.0]), torch.tensor([True, False, True])
    assert losses.reduce(token_losses, mask, denominator=2).item() == (1 + 7) / 2


def forget_loss(logratios: Tensor, weights: Tensor, *, denominator: Tensor | float) -> Tensor:
    return losses.reduce(losses.npo(logratios, beta=BETA), weights, denominator=denominator)


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logratios = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    weights = torch.rand(4, 6, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([6, 2, 4, 1])
    return logratios, torch.where(torch.arange(6) < lengths[:, None], weights, 0.0)


def test_padding_changes_nothing() -> None:
    logratios, weights = rows()
    wide = torch.nn.functional.pad(logratios, (3, 5)), torch.nn.functional.pad(weights, (3, 5))
    denominator = (weights != 0).sum()
    expected = forget_loss(logratios, weights, denominator=denominator)
    torch.testing.assert_close(forget_loss(*wide, denominator=denominator), expected, **FP64)
    mask, wide_mask = weights != 0, wide[1] != 0
    kept = losses.keep_lowest(logratios, mask, keep=0.5)
    assert torch.equal(losses.keep_lowest(wide[0], wide_mask, keep=0.5)[:, 3:-5], kept)


def test_micro_batches_with_the_steps_denominator_add_up_to_the_batch() -> None:
    logratios, weights = rows()
    whole, parts = logratios.clone().requires_grad_(), logratios.clone().requires_grad_()
    denominator = (weights != 0).sum()
    loss = forget_loss(whole, weights, denominator=denominator)
    loss.backward()
    total = 0.0
    for part in (slice(0, 1), slice(1, 4)):  # of 6 and 7 tokens: a mean of means would differ
        micro = forget_loss(parts[part], weights[part], denominator=denominator)
        micro.backward()
        total += micro.item()
    assert math.isclose(total, loss.item(), rel_tol=FP64["rtol"])
    torch.testing.assert_close(parts.grad, whole.grad, **FP64)


@pytest.mark.parametrize("far", [1e4, -1e4])
def test_losses_and_gradients_are_finite_at_extreme_log_probs(far: float) -> None:
    logratios = torch.tensor([far, far], requires_grad=True)
    still = torch.zeros(2)
    for loss in (
        losses.npo(logratios, beta=1.0),
        losses.dpo_of_logratios(logratios, still, beta=1.0),
        losses.dpo_of_logratios(logratios, still, beta=1.0, label_smoothing=0.1),
    ):
        (grad,) = torch.autograd.grad(loss.sum(), logratios)
        assert loss.isfinite().all() and grad.isfinite().all()
    # -log sigmoid(-x) is x itself far out
    assert losses.npo(logratios, beta=1.0).tolist() == [max(far, 0.0)] * 2


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, weights = (
        torch.randn(2, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)
    )
    check = torch.autograd.gradcheck
    assert check(losses.nll, chosen)
    assert check(lambda x: losses.npo(x, beta=BETA), chosen)
    assert check(
        lambda c, r: losses.dpo_of_logratios(c, r, beta=BETA, label_smoothing=0.1), (chosen, rejected)
    )
    assert check(lambda x: losses.reduce(x, weights.detach(), denominator=3.0), chosen)


def kept(logratios: list[float], mask: list[int], *, keep: float) -> list[bool]:
    row = torch.tensor([logratios], dtype=torch.float32)
    return losses.keep_lowest(row, torch.tensor([mask]).bool(), keep=keep)[0].tolist()


def test_the_lowest_logratios_are_kept() -> None:
    assert kept([3, -1, 2, 0], [1, 1, 1, 1], keep=0.5) == [False, True, False, True]


def test_the_kept_share_is_of_the_completion_not_of_the_padded_row() -> None:
    """The released code counts prompt and padding too: 0.1 of 500 positions keeps half of 100 tokens."""
    prompt, completion, padding = 380, 100, 20
    mask = torch.zeros(1, prompt + completion + padding, dtype=torch.bool)
    mask[:, prompt : prompt + completion] = True
    logratios = torch.where(mask, torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)), 0.0)
    for keep, expected in ((0.1, 10), (0.2, 20), (0.5, 50)):
        assert losses.keep_lowest(logratios, mask, keep=keep).sum() == expected


def test_at_least_one_token_is_kept_where_the_released_code_raises() -> None:
    assert kept([3, -1, 2], [1, 1, 1], keep=1e-6) == [False, True, False]
    assert kept([9, 5], [0, 1], keep=0.1) == [False, True]


def test_a_share_that_is_a_whole_number_of_tokens_is_not_rounded_up() -> None:
    assert 0.55 * 100 > 55, "in floating point"
    assert sum(kept(list(range(100)), [1] * 100, keep=0.55)) == 55
    assert sum(kept(list(range(100)), [1] * 100, keep=0.551)) == 56


def test_a_row_without_completion_keeps_nothing() -> None:
    assert kept([1, -1], [0, 0], keep=0.5) == [False, False]


@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
def test_all_tokens_tie_and_are_kept_while_policy_equals_reference(keep: float) -> None:
    assert kept([0, 0, 0, 0, 0], [0, 1, 1, 1, 0], keep=keep) == [False, True, True, True, False]


def test_the_filter_carries_no_gradient() -> None:
    logratios = torch.randn(2, 4, requires_grad=True)
    mask = losses.keep_lowest(logratios, torch.ones(2, 4, dtype=torch.bool), keep=0.5)
    assert mask.dtype == torch.bool and not mask.requires_grad
    (logratios * mask).sum().backward()
    assert torch.equal(logratios.grad, mask.float())


@settings(deadline=None, max_examples=60)
@given(
    row=st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=12),
    keep=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
)
def test_the_filter_is_a_sort_of_the_completion(row: list[tuple[int, bool]], keep: float) -> None:
    completion = sorted(value for value, inside in row if inside)
    number = max(1, -(-round(keep * 10) * len(completion) // 10))
    expected = [inside and value <= completion[number - 1] for value, inside in row]
    values, mask = zip(*row, strict=True)
    assert kept(list(values), list(mask), keep=keep) == expected
