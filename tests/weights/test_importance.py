"""Criteria of importance: closed forms, fp32 throughout, order where order is the point."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from allo.weights import importance
from allo.weights.selection import stable_hash

CRITERIA = [
    importance.delta,
    importance.bottom,
    importance.gradient,
    importance.taylor,
    importance.magnitude,
]
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scores_are_non_negative_fp32_of_the_tensors_shape(
    criterion: importance.Criterion, dtype: torch.dtype
) -> None:
    theta, statistic = torch.randn(2, 3, 5, dtype=dtype), torch.randn(2, 3, 5, dtype=dtype)
    kept = theta.clone(), statistic.clone()
    scores = criterion(theta, statistic)
    assert scores.dtype == torch.float32 and scores.shape == theta.shape
    assert bool((scores >= 0).all()) and bool(scores.isfinite().all())
    assert torch.equal(theta, kept[0]) and torch.equal(statistic, kept[1]), "inputs must not change"


def test_values_are_the_formulas() -> None:
    theta, other = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.5, 2.0, -0.25])
    assert importance.delta(theta, other).tolist() == [0.5, 4.0, 0.75]
    assert importance.gradient(theta, other).tolist() == [1.5, 2.0, 0.25]
    assert importance.taylor(theta, other).tolist() == [1.5, 4.0, 0.125]
    assert importance.magnitude(theta, other).tolist() == [1.0, 2.0, 0.5]
    assert importance.fisher(theta, other.square()).tolist() == [2.25, 4.0, 0.0625]


def test_the_difference_of_bf16_weights_is_taken_in_fp32() -> None:
    """256 - 0.0078125 rounds to 256 in bf16."""
    theta = torch.tensor([256.0], dtype=torch.bfloat16)
    tuned = torch.tensor([0.0078125], dtype=torch.bfloat16)
    assert importance.delta(theta, tuned).item() == 255.9921875


@given(st.lists(finite, min_size=2, max_size=40))
def test_bottom_is_strictly_decreasing_in_delta(changes: list[float]) -> None:
    tuned = torch.tensor(changes)
    delta = importance.delta(torch.zeros_like(tuned), tuned)
    bottom = importance.bottom(torch.zeros_like(tuned), tuned)
    assert bool((bottom >= 0).all()) and bool(bottom.isfinite().all())
    assert torch.equal(delta[:, None] < delta[None, :], bottom[:, None] > bottom[None, :])


def test_bottom_tells_neighbouring_floats_apart_and_keeps_nan() -> None:
    one_ulp = torch.tensor([1.0, 1.0 + 2**-23, 0.0, math.ldexp(1, -149), math.inf, math.nan])
    scores = importance.bottom(torch.zeros(6), one_ulp)
    assert scores[0] > scores[1] and scores[2] > scores[3] and scores[4] == 0
    assert not scores[5] >= 0, "NaN must not pass for a score"


def test_last_is_the_place_of_a_tensors_layer() -> None:
    places = {
        "model.embed_tokens.weight": 0,
        "model.layers.0.mlp.up_proj.weight": 1,
        "model.layers.11.mlp.experts.3.down_proj.weight": 12,
        "transformer.h.7.attn.c_attn.weight": 8,
        "model.norm.weight": 0,
        "lm_head.weight": 0,
    }
    assert {name: importance.layer_of(name) for name in places} == places
    assert importance.last(torch.zeros(2, 2), torch.full((2, 2), 12)).tolist() == [[12.0, 12.0]] * 2


def uniform(name: str, num: int, seed: int) -> Tensor:
    return importance.random(torch.zeros(num), stable_hash(name, torch.arange(num), seed=seed))


def test_random_is_uniform_seeded_and_independent_of_the_tie_hash() -> None:
    num = 100_000
    scores = uniform("w", num, 1)
    assert bool((scores >= 0).all()) and bool((scores < 1).all())
    assert abs(scores.mean().item() - 0.5) < 5 / math.sqrt(12 * num)
    assert torch.equal(scores, uniform("w", num, 1))
    for other in (uniform("w", num, 2), uniform("v", num, 1), uniform("w", num, 0)):
        assert abs(torch.corrcoef(torch.stack([scores, other]))[0, 1].item()) < 5 / math.sqrt(num)
