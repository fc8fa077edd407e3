"""Token weights point at the wrong tokens; edit scores mark what a correction changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allo.tokens.token_credit import (
    RLMEC_CEILING,
    edit_scores,
    from_logratios,
    random_scores,
    token_weights,
)

FP32 = {"rtol": 1e-6, "atol": 1e-7}
# Probabilities that a rewriter gives to a completion's own tokens: low marks a wrong one.
P = torch.tensor([0.0, 0.2, 0.45, 0.5, 0.9, 1.0])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("indicator", [1, 1, 1, 0, 0, 0]),
        ("soft", [1, 0.8, 0.55, 0.5, 0.1, 0]),
        ("rlmec", [0.1, 0.1, 0.05, 0, 0, 0]),
        ("as_released", [0, 0.2, 0.45, 0.5, 0.9, 1]),
    ],
)
def test_each_rule_is_its_formula(rule: str, expected: list[float]) -> None:
    weights = token_weights(P, rule=rule)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32), **FP32)
    assert weights.data_ptr() != P.data_ptr(), "scores are cached: the weights are a copy"


@pytest.mark.parametrize("rule", ["indicator", "soft", "rlmec"])
def test_a_less_aligned_token_never_weighs_less(rule: str) -> None:
    weights = token_weights(P, rule=rule)
    assert (weights.diff() <= 0).all() and weights[0] > weights[-1] == 0


def test_as_released_points_the_other_way() -> None:
    """The public script multiplies the loss by p itself, so it forgets the tokens that are right."""
    weights = token_weights(P, rule="as_released")
    assert (weights.diff() > 0).all() and weights[0] == 0


def test_the_threshold_moves_indicator_and_rlmec() -> None:
    assert token_weights(P, rule="indicator", threshold=0.3).tolist() == [1, 1, 0, 0, 0, 0]
    lifted = token_weights(P, rule="rlmec", threshold=0.95)
    torch.testing.assert_close(lifted, torch.tensor([0.1, 0.1, 0.1, 0.1, 0.05, 0.0]), **FP32)
    assert lifted.max() == torch.tensor(RLMEC_CEILING)


def test_logratios_become_probabilities_around_one_half() -> None:
    scores = from_logratios(torch.tensor([-2.0, 0.0, 2.0]), scale=2.0)
    torch.testing.assert_close(scores, torch.tensor([0.26894142, 0.5, 0.73105858]), **FP32)
    # a warm-up with twice the learning rate has twice the log-ratios and twice their root mean square
    assert torch.equal(from_logratios(torch.tensor([-4.0, 0.0, 4.0]), scale=4.0), scores)


@pytest.mark.parametrize(
    ("completion", "right", "expected"),
    [
        pytest.param([1, 2, 3], [[1, 2, 3]], [1, 1, 1], id="identical"),
        pytest.param([1, 2, 3, 4], [[1, 2, 9, 4]], [1, 1, 0, 1], id="a token changed"),
        pytest.param([1, 2, 3, 4], [[1, 4]], [1, 0, 0, 1], id="tokens dropped"),
        pytest.param([1, 2, 3, 4], [[1, 2, 8, 9, 3, 4]], [1, 1, 0, 1], id="inserted before the third"),
        pytest.param([1, 2], [[8, 1, 2]], [0, 1], id="inserted at the start"),
        pytest.param([1, 2], [[1, 2, 8]], [1, 1], id="only continued: no token of its own is wrong"),
        pytest.param([1, 2], [], [1, 1], id="no right sample"),
        pytest.param([1, 2], [[]], [0, 0], id="an empty right sample"),
        pytest.param([], [[1]], [], id="an empty completion"),
        pytest.param([1, 2, 3], [[7, 8, 9], [1, 2, 9], [1, 9, 9]], [1, 1, 0], id="the nearest counts"),
    ],
)
def test_edit_scores_mark_what_the_correction_touches(
    completion: list[int], right: list[list[int]], expected: list[float]
) -> None:
    assert edit_scores(completion, right) == expected


def test_edit_scores_do_not_ignore_frequent_tokens() -> None:
    """difflib's autojunk drops tokens that make up more than 1% of 200 or more."""
    completion = [1, 2] * 150
    assert edit_scores(completion, [[3, *completion]]) == [0.0] + [1.0] * 299


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_what_edit_scores_leave_is_a_part_of_the_right_sample(
    completion: list[int], other: list[int]
) -> None:
    scores = edit_scores(completion, [other])
    kept = [token for token, score in zip(completion, scores, strict=True) if score]
    rest = iter(other)
    assert len(scores) == len(completion) and all(token in rest for token in kept)


def test_random_scores_are_stable_and_depend_on_seed_key_and_position() -> None:
    scores = random_scores("gsm8k-3", 2000, seed=0)
    # The first 8 bytes of sha256("0:gsm8k-3:0"): the same on every machine and version.
    assert scores[0] == 0.793886245021892
    assert scores == random_scores("gsm8k-3", 2000, seed=0)
    assert random_scores("gsm8k-3", 5, seed=0) == scores[:5], "a longer completion starts the same"
    assert not set(scores) & set(random_scores("gsm8k-3", 2000, seed=1))
    assert not set(scores) & set(random_scores("gsm8k-4", 2000, seed=0))
    assert all(0 <= score < 1 for score in scores) and len(set(scores)) == 2000
    # uniform: mean 1/2 within 4 standard errors of 1 / sqrt(12 n)
    assert abs(sum(scores) / 2000 - 0.5) < 4 / (12 * 2000) ** 0.5
