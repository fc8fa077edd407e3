"""The chance that a good observation stands above a bad one, with an interval over prompts."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allo.stats.metrics import auc

ROWS = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=12)


@settings(deadline=None, max_examples=40)
@given(rows=ROWS)
def test_it_is_the_share_of_all_pairs_in_which_the_good_one_is_above(rows: list[tuple[int, bool]]) -> None:
    scores, good = [float(score) for score, _ in rows], [label for _, label in rows]
    found = auc(scores, good, [[place] for place in range(len(rows))], seed=0)
    above = [score for score, label in zip(scores, good, strict=True) if label]
    below = [score for score, label in zip(scores, good, strict=True) if not label]
    if not above or not below:
        assert found is None
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in above for b in below]
    assert found is not None
    assert found.value == pytest.approx(sum(pairs) / len(pairs))
    assert found.low <= found.high


def test_completions_of_one_prompt_are_one_observation() -> None:
    """Ten copies of a prompt's completions say no more than one: the interval stays as wide."""
    draw = random.Random(0)
    scores = [draw.gauss(0.5 * (place % 2), 1.0) for place in range(40)]
    good = [place % 2 == 1 for place in range(40)]
    alone = auc(scores, good, [[2 * n, 2 * n + 1] for n in range(20)], seed=0)
    copied = auc(
        scores * 10,
        good * 10,
        [[p + 40 * c for p in (2 * n, 2 * n + 1) for c in range(10)] for n in range(20)],
        seed=0,
    )
    apart = auc(scores * 10, good * 10, [[place] for place in range(400)], seed=0)
    assert alone is not None and copied is not None and apart is not None
    assert (copied.value, copied.low, copied.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert apart.high - apart.low < 0.5 * (alone.high - alone.low)
