"""Pairs and wrong completions, made from judged samples."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allo.errors import UserError
from allo.files.records import Pair, Prompt, Verdict, Wrong
from allo.tasks.pairing import (
    distinct,
    make_pairs,
    pair_of,
    rejected_completions,
    why_no_pair,
    without_pair,
    wrong_completions,
)

PROMPTS = [Prompt(id=f"p{number}", prompt=f"Question {number}", solution="S.") for number in range(4)]


def verdict(prompt_id: str, index: int, text: str, *, correct: bool, finished: bool = True) -> Verdict:
    return Verdict(
        prompt_id=prompt_id,
        index=index,
        text=text,
        finished=finished,
        correct=correct,
        reward=float(correct),
        extracted=text,
        verifier="final_answer",
    )


@st.composite
def samples(draw: st.DrawFn) -> list[Verdict]:
    """Draw up to 8 samples a prompt; the text says whether it is right, and samples repeat."""
    found = []
    for prompt in PROMPTS:
        for index in range(draw(st.integers(0, 8))):
            correct = draw(st.booleans())
            text = f"{'right' if correct else 'wrong'} {draw(st.integers(0, 3))}{draw(st.sampled_from(['', ' ']))}"
            found.append(verdict(prompt.id, index, text, correct=correct, finished=draw(st.booleans())))
    return found


@given(verdicts=samples())
def test_distinct_keeps_the_first_of_every_text(verdicts: list[Verdict]) -> None:
    kept = distinct(verdicts)
    assert {(v.prompt_id, v.text.strip()) for v in kept} == {(v.prompt_id, v.text.strip()) for v in verdicts}
    assert len({(v.prompt_id, v.text.strip()) for v in kept}) == len(kept)
    for one in kept:
        assert one.index == min(
            v.index for v in verdicts if (v.prompt_id, v.text.strip()) == (one.prompt_id, one.text.strip())
        )


@given(verdicts=samples(), limit=st.integers(1, 20), seed=st.integers(0, 3))
def test_pairs_are_distinct_and_as_many_as_there_can_be(
    verdicts: list[Verdict], limit: int, seed: int
) -> None:
    kept = distinct(verdicts)
    right = Counter(v.prompt_id for v in kept if v.correct and v.finished)
    wrong = Counter(v.prompt_id for v in kept if not v.correct)
    expected = {p.id: min(limit, right[p.id] * wrong[p.id]) for p in PROMPTS if right[p.id] * wrong[p.id]}
    if not expected:
        with pytest.raises(UserError):
            make_pairs(PROMPTS, verdicts, max_pairs_per_prompt=limit, seed=seed)
        return
    pairs = make_pairs(PROMPTS, verdicts, max_pairs_per_prompt=limit, seed=seed)
    assert Counter(pair.prompt_id for pair in pairs) == expected
    assert len({(pair.prompt_id, pair.chosen, pair.rejected) for pair in pairs}) == len(pairs)
    assert all(pair.chosen.startswith("right") and pair.rejected.startswith("wrong") for pair in pairs)
    assert all(pair.chosen_finished for pair in pairs)


@given(verdicts=samples(), shuffle=st.randoms(use_true_random=False))
def test_a_prompts_pairs_do_not_depend_on_the_others(verdicts: list[Verdict], shuffle: object) -> None:
    verdicts = [
        *verdicts,
        verdict("p0", 90, "right x", correct=True),
        verdict("p0", 91, "wrong x", correct=False),
    ]
    pairs = make_pairs(PROMPTS, verdicts, max_pairs_per_prompt=2, seed=0)
    reverse = make_pairs(PROMPTS[::-1], verdicts[::-1], max_pairs_per_prompt=2, seed=0)
    assert [p for p in reverse if p.prompt_id == "p0"] == [p for p in pairs if p.prompt_id == "p0"]
    assert sorted(map(repr, pairs)) == sorted(map(repr, reverse))
    alone = make_pairs(
        PROMPTS[:1], [v for v in verdicts if v.prompt_id == "p0"], max_pairs_per_prompt=2, seed=0
    )
    assert alone == [p for p in pairs if p.prompt_id == "p0"]


def test_the_seed_chooses_and_every_combination_is_equally_likely() -> None:
    verdicts = [verdict("p0", n, f"{n}", correct=n % 2 == 0) for n in range(6)]
    drawn = Counter(
        (pair.chosen, pair.rejected)
        for seed in range(900)
        for pair in make_pairs(PROMPTS[:1], verdicts, max_pairs_per_prompt=1, seed=seed)
    )
    assert len(drawn) == 9
    assert all(60 < count < 140 for count in drawn.values())  # 100 expected, 9.4 standard deviation


def test_prompts_with_the_same_samples_draw_on_their_own() -> None:
    prompts = [Prompt(id=f"p{number}", prompt="Q") for number in range(20)]
    verdicts = [verdict(prompt.id, n, f"{n}", correct=n % 2 == 0) for prompt in prompts for n in range(10)]
    pairs = make_pairs(prompts, verdicts, max_pairs_per_prompt=1, seed=0)
    assert len({(pair.chosen, pair.rejected) for pair in pairs}) > 5


@given(verdicts=samples())
def test_every_distinct_wrong_completion_is_kept_once(verdicts: list[Verdict]) -> None:
    kept = [v for v in distinct(verdicts) if not v.correct]
    if not kept:
        with pytest.raises(UserError, match="no wrong completion"):
            wrong_completions(PROMPTS, verdicts)
        return
    wrong = wrong_completions(PROMPTS, verdicts)
    assert {(w.prompt_id, w.completion, w.finished) for w in wrong} == {
        (v.prompt_id, v.text, v.finished) for v in kept
    }
    assert len({w.id for w in wrong}) == len(wrong) == len(kept)
    for one in wrong:
        assert one.right == [v.text for v in distinct(verdicts) if v.correct and v.prompt_id == one.prompt_id]
        assert one.solution == "S."


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [
        ([], r"4 prompts with 0 distinct samples.*Nothing was sampled"),
        (
            [verdict("p0", 0, "a", correct=False)],
            r"1 distinct samples, 0 right and 1 wrong\. No sample is right",
        ),
        ([verdict("p0", 0, "a", correct=True)], r"1 right and 0 wrong\. No sample is wrong"),
        (
            [verdict("p0", 0, "a", correct=True), verdict("p1", 0, "b", correct=False)],
            r"1 right and 1 wrong\. No prompt has both .* more samples a prompt",
        ),
        (
            [verdict("p0", 0, "a", correct=True, finished=False), verdict("p0", 1, "b", correct=False)],
            r"ended by itself: raise `max_new_tokens`",
        ),
    ],
)
def test_no_pair_is_an_error_that_says_why(verdicts: list[Verdict], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_pairs(PROMPTS, verdicts, max_pairs_per_prompt=5, seed=0)


def test_with_samples_of_every_kind_they_are_counted() -> None:
    found = [verdict("p0", n, f"right {n}", correct=True, finished=False) for n in range(2)]
    found += [verdict("p1", n, f"wrong {n}", correct=False) for n in range(3)]
    with pytest.raises(UserError, match=r"4 prompts with 5 distinct samples, 2 right and 3 wrong\."):
        make_pairs(PROMPTS, found, max_pairs_per_prompt=5, seed=0)
    with pytest.raises(AssertionError):
        make_pairs(PROMPTS, found, max_pairs_per_prompt=0, seed=0)


TEMPLATE = {"tools": [{"name": "add"}]}
ASKED = Prompt(id="q", prompt="2 + 2?", template=TEMPLATE, solution="It is 4.")


def whole(index: int, text: str, *, correct: bool, finished: bool) -> Verdict:
    return replace(
        verdict("q", index, text, correct=correct, finished=finished), token_ids=[index, len(text)]
    )


@pytest.mark.parametrize("finished", [True, False])
def test_a_pair_and_a_wrong_completion_have_everything_that_was_sampled(finished: bool) -> None:
    right = whole(3, "4", correct=True, finished=True)
    wrong = whole(5, "22", correct=False, finished=finished)
    pair = Pair(
        prompt_id="q",
        prompt="2 + 2?",
        template=TEMPLATE,
        chosen="4",
        rejected="22",
        chosen_finished=True,
        rejected_finished=finished,
        chosen_token_ids=[3, 1],
        rejected_token_ids=[5, 2],
    )
    assert make_pairs([ASKED], [wrong, right], max_pairs_per_prompt=9, seed=0) == [pair]
    turned = pair_of(ASKED, chosen=wrong, rejected=right)
    assert (turned.chosen_finished, turned.chosen_token_ids) == (finished, [5, 2])
    assert (turned.rejected_finished, turned.rejected_token_ids) == (True, [3, 1])
    assert wrong_completions([*PROMPTS, ASKED], [wrong, right]) == [
        Wrong(
            id="q-5",
            prompt_id="q",
            prompt="2 + 2?",
            template=TEMPLATE,
            completion="22",
            finished=finished,
            solution="It is 4.",
            right=["4"],
            token_ids=[5, 2],
        )
    ]


def test_a_rejected_completion_comes_once_with_all_that_was_preferred_to_it() -> None:
    first = Pair("q", "2 + 2?", "4", "22", template=TEMPLATE, rejected_finished=False, rejected_token_ids=[8])
    again = replace(first, chosen="four")
    others = [
        replace(first, prompt="3 + 3?", prompt_id="r", chosen="6", template=None),
        replace(first, template=None),
        replace(first, rejected="5"),
        replace(first, rejected_message={"role": "assistant", "content": "22"}),
        replace(first, prompt="3 + 1?"),
    ]
    found = rejected_completions([first, others[0], again, *others[1:]], solutions={"q": "It is 4."})
    assert found[0] == Wrong(
        id="q-rejected-0",
        prompt_id="q",
        prompt="2 + 2?",
        template=TEMPLATE,
        completion="22",
        message=None,
        finished=False,
        solution="It is 4.",
        right=["4", "four"],
        token_ids=[8],
    )
    assert [one.id for one in found] == [f"{'r' if n == 1 else 'q'}-rejected-{n}" for n in range(6)]
    assert [one.right for one in found[1:]] == [["6"], ["4"], ["4"], ["4"], ["4"]]
    assert found[1].solution == "6", "without a gold solution, the first completion preferred to it"
    assert found[4].message == {"role": "assistant", "content": "22"}
    assert rejected_completions([], solutions={}) == []


@given(verdicts=samples())
def test_prompts_without_a_pair_are_counted_by_their_reason(verdicts: list[Verdict]) -> None:
    right, wrong, ended = (
        {v.prompt_id for v in distinct(verdicts) if is_one(v)}
        for is_one in (
            lambda v: v.correct,
            lambda v: not v.correct,
            lambda v: v.correct and v.finished,
        )
    )
    all_of = {prompt.id for prompt in PROMPTS}
    expected = {
        "with wrong samples alone": len(wrong - right),
        "with right samples alone": len(right - wrong),
        "whose right samples were cut": len(right & wrong - ended),
        "with no sample that has a verdict": len(all_of - right - wrong),
    }
    pairs = make_pairs(PROMPTS, verdicts, max_pairs_per_prompt=2, seed=0) if ended & wrong else []
    said = without_pair(PROMPTS, verdicts, pairs, reason=why_no_pair)
    counts = [f"{number} {reason}, such as '" for reason, number in expected.items() if number]
    missing = len(all_of) - len(ended & wrong)
    assert said.startswith(f"{missing} of 4 prompts have no pair: " if missing else "")
    assert bool(said) == bool(missing) and all(each in said for each in counts)
    assert said.count(", such as") == len(counts)
    named = {prompt.id for prompt in PROMPTS if prompt.said in said}
    assert len(named) == len(counts) and not named & ended & wrong
