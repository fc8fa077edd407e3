"""Results of rewards: pairs by rank and margin, the better half, wins."""

from collections import Counter
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allo.errors import UserError
from allo.files.records import Pair, Prompt, Verdict
from allo.tasks.pairing import distinct, rejected_completions, without_pair
from allo.tasks.rewards import above_median, ranked_pairs, why_no_ranked_pair, wins

PROMPTS = [Prompt(id=f"p{number}", prompt=f"Question {number}") for number in range(3)]
REWARDS = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0])


def verdict(prompt_id: str, index: int, text: str, reward: float, *, finished: bool = True) -> Verdict:
    return Verdict(prompt_id, index, text, finished, False, reward, None, "reward_model")


def texts(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in pairs]


@st.composite
def samples(draw: st.DrawFn) -> list[Verdict]:
    """Draw up to 7 samples a prompt, some of them repeated; equal texts have equal rewards."""
    found = []
    for prompt in PROMPTS:
        rewards = draw(st.lists(REWARDS, min_size=4, max_size=4))
        for index in range(draw(st.integers(0, 7))):
            text = draw(st.integers(0, 3))
            found.append(
                verdict(prompt.id, index, f"text {text}", rewards[text], finished=draw(st.booleans()))
            )
    return found


@pytest.mark.invariant("A pair is apart by the margin, and no sample is in two.")
@given(verdicts=samples(), limit=st.integers(1, 5), margin=st.sampled_from([0.0, 0.5, 2.0]))
def test_a_pairs_rewards_differ_by_the_margin_and_no_sample_is_in_two_pairs(
    verdicts: list[Verdict], limit: int, margin: float
) -> None:
    reward = {(one.prompt_id, one.text): one.reward for one in verdicts}
    kept = distinct(verdicts)
    can = {
        best.prompt_id
        for best in kept
        for worst in kept
        if best.prompt_id == worst.prompt_id
        and best.finished
        and best.reward > worst.reward
        and best.reward - worst.reward >= margin
    }
    if not can:
        with pytest.raises(UserError, match="no preference pair"):
            ranked_pairs(PROMPTS, verdicts, max_pairs_per_prompt=limit, margin=margin)
        return
    pairs = ranked_pairs(PROMPTS, verdicts, max_pairs_per_prompt=limit, margin=margin)
    missing = len(PROMPTS) - len(can)
    said = without_pair(PROMPTS, verdicts, pairs, reason=partial(why_no_ranked_pair, margin=margin))
    assert said.startswith(f"{missing} of 3 prompts have no pair: ") if missing else not said
    assert {pair.prompt_id for pair in pairs} == can
    assert max(Counter(pair.prompt_id for pair in pairs).values()) <= limit
    sides = [(pair.prompt_id, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    assert len(set(sides)) == len(sides)
    for pair in pairs:
        difference = reward[pair.prompt_id, pair.chosen] - reward[pair.prompt_id, pair.rejected]
        assert difference > 0 and difference >= margin and pair.chosen_finished


def test_the_best_is_paired_with_the_worst_then_the_second_best_with_the_second_worst() -> None:
    rewards = [0.1, 0.9, -1.0, 0.5, -0.3]
    verdicts = [verdict("p0", index, f"r {reward}", reward) for index, reward in enumerate(rewards)]
    found = ranked_pairs(PROMPTS, verdicts, max_pairs_per_prompt=5, margin=0.0)
    assert texts(found) == [("r 0.9", "r -1.0"), ("r 0.5", "r -0.3")]
    assert texts(ranked_pairs(PROMPTS, verdicts, max_pairs_per_prompt=1, margin=0.0)) == texts(found)[:1]
    assert texts(ranked_pairs(PROMPTS, verdicts, max_pairs_per_prompt=5, margin=1.0)) == texts(found)[:1]


def test_an_unfinished_best_is_passed_over_but_an_unfinished_worst_is_not() -> None:
    verdicts = [
        verdict("p0", 0, "cut best", 3.0, finished=False),
        verdict("p0", 1, "whole", 1.0),
        verdict("p0", 2, "cut worst", -1.0, finished=False),
    ]
    assert texts(ranked_pairs(PROMPTS, verdicts, max_pairs_per_prompt=5, margin=0.0)) == [
        ("whole", "cut worst")
    ]


def test_equal_rewards_make_no_pair_and_the_message_says_what_to_change() -> None:
    verdicts = [verdict("p0", index, f"text {index}", 0.5) for index in range(4)]
    with pytest.raises(UserError, match=r"3 prompts with 4 distinct samples.*higher temperature"):
        ranked_pairs(PROMPTS, verdicts, max_pairs_per_prompt=5, margin=0.0)
    near = [verdict("p0", 0, "a", 0.5), verdict("p0", 1, "b", 0.4)]
    with pytest.raises(UserError, match=r"differ by pair.margin 0.2.*Lower pair.margin"):
        ranked_pairs(PROMPTS, near, max_pairs_per_prompt=5, margin=0.2)


@given(rewards=st.lists(REWARDS, min_size=1, max_size=9))
def test_the_better_half_is_half_at_most_and_beats_the_rest(rewards: list[float]) -> None:
    better = above_median(rewards)
    assert sum(better) <= len(rewards) / 2
    above = [reward for reward, is_better in zip(rewards, better, strict=True) if is_better]
    rest = [reward for reward, is_better in zip(rewards, better, strict=True) if not is_better]
    assert not above or min(above) > max(rest)
    # Every sample that is left out has at least half of the samples as good or better.
    assert all(2 * sum(other >= reward for other in rewards) >= len(rewards) for reward in rest)


@given(mine=st.lists(REWARDS, min_size=1, max_size=4), theirs=st.lists(REWARDS, min_size=1, max_size=4))
def test_wins_of_both_sides_add_up_to_one_and_ties_are_halves(mine: list[float], theirs: list[float]) -> None:
    won, lost = wins(mine, theirs), wins(theirs, mine)
    assert len(won) == len(mine) * len(theirs)
    assert sum(won) + sum(lost) == len(won)
    assert sum(wins(mine, mine)) == len(mine) ** 2 / 2
    assert set(wins([max(theirs) + 1], theirs)) == {1.0}


def test_a_rejected_completion_has_the_gold_solution_or_else_the_best_preferred_one() -> None:
    pairs = [
        Pair("p0", "Question 0", chosen="best", rejected="bad"),
        Pair("p0", "Question 0", chosen="good", rejected="bad"),
        Pair("p1", "Question 1", chosen="fine", rejected="bad", rejected_finished=False),
    ]
    wrong = rejected_completions(pairs, solutions={"p1": "gold"})
    assert [(one.prompt_id, one.solution, one.right) for one in wrong] == [
        ("p0", "best", ["best", "good"]),
        ("p1", "gold", ["fine"]),
    ]
    assert [one.finished for one in wrong] == [True, False]
    assert len({one.id for one in wrong}) == len(wrong)


@pytest.mark.parametrize(
    ("samples", "reason", "advice"),
    [
        ([], "with no sample that has a verdict", "look at 02-verdicts.jsonl"),
        (
            [("a", 0.5, True), ("a ", 0.5, True)],
            "whose samples are all the same text",
            "raise sample.num_generations",
        ),
        (
            [("a", 0.5, True), ("b", 0.5, True)],
            "whose samples have the same reward",
            "raise sample.num_generations",
        ),
        (
            [("a", 0.5, True), ("b", 0.4, True)],
            "whose rewards differ by less than pair.margin",
            "lower it from 0.2",
        ),
        (
            [("a", 0.5, False), ("b", 0.1, True)],
            "whose better samples were cut",
            "raise sample.max_new_tokens",
        ),
    ],
)
def test_a_prompt_without_a_ranked_pair_is_named_with_the_reason(
    samples: list[tuple[str, float, bool]], reason: str, advice: str
) -> None:
    long = Prompt(id="data-7", prompt=[{"role": "user", "content": "Name three\nthings " + "x" * 80}])
    paired = [verdict("p0", 0, "good", 1.0), verdict("p0", 1, "bad", 0.0)]
    own = [
        verdict("data-7", n, text, reward, finished=ended) for n, (text, reward, ended) in enumerate(samples)
    ]
    prompts, verdicts = [PROMPTS[0], long], [*paired, *own]
    pairs = ranked_pairs(prompts, verdicts, max_pairs_per_prompt=1, margin=0.2)
    said = without_pair(prompts, verdicts, pairs, reason=partial(why_no_ranked_pair, margin=0.2))
    place = f"'data-7' (Name three things {'x' * 39}...)"
    assert said.startswith(f"1 of 2 prompts have no pair: 1 {reason}, such as {place}: {advice}")
