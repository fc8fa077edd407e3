"""Texts that nobody would write: a verifier never raises, and its time does not grow quadratically with a text."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allo.tasks.answers import verify_choice, verify_final_answer
from allo.tasks.answers.thoughts import without_thoughts
from allo.winrate.wording import read_verdict

PIECES = [
    *("The answer is ", "not ", "(A)", "B.", " or ", "5", "1,200", "twenty-", "one ", "half ", "- ", "\n", "```", "No. "),
    *("$", "\\boxed{", "}", "{", "^", "=", " cm", "/", "%", "\\text{", "٥", "５", "½", "²", "🍎", "\u0301", "ı", "İ", "ß"),
    *("\ud800", "\0", "C. S. Lewis", "isn't ", " because ", " rather than ", "**", "\\[", "$$", "<think>", "</think>"),
    *("<answer>", "e5", "x 10^", "°", "€", "Rs. ", "'", '"', "<|channel|>final<|message|>", ".", ",", "!", "No", "IV"),
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=20).map("".join) | st.text()
# Words, so that nothing goes to computer algebra, whose time is bounded by its own limit.
LONG = [
    *(".", " ", "{", "\\boxed{", "9", "1,", "*", "$", "$$ \n", "\n- 5", "\n```\n", "<answer>", "\\begin{align}", "not a "),
    *("x because ", "probably ", "five ", "twenty-", "A, ", "✅ ", "五", "٥", "🍎", "\u200d", "'", "e\u0301", "⁵", ": ", "="),
    *("the answer is ", "the answer is correct. ", "<think>x", "</think>", "<think>x</reasoning>", "<|channel|>final "),
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, choices=st.lists(TEXTS, max_size=4))
def test_no_text_makes_a_verifier_raise(text: str, choices: list[str]) -> None:
    said = f"The answer is {text}"
    for answer in ("five words of prose", *choices[:1]):
        verify_choice(said, answer, choices)
    verify_final_answer(said, "five words of prose")
    without_thoughts(text)
    read_verdict(text)


@pytest.mark.parametrize("piece", LONG)
def test_a_long_text_is_judged_in_a_moment(piece: str) -> None:
    text = f"The answer is {piece * (100_000 // len(piece))} x"
    began = time.process_time()
    assert not verify_final_answer(text, "some other words").correct
    assert not verify_choice(text, "some other words", ["C. S. Lewis", "some other words"]).correct
    assert time.process_time() - began < 2
