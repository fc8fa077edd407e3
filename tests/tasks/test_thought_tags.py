"""Tags of thoughts, known by their names' stems in every common form of tag; other tags are answer text."""

import time

import pytest

from allo.tasks.answers import verify_final_answer
from allo.tasks.answers.thoughts import opens_thought, without_thoughts

NAMES = [
    *("think", "thinking", "thought", "thoughts", "reasoning", "scratchpad", "seed:think", "reflection"),
    *("analysis", "antThinking", "self-reflection", "chain_of_thought", "inner_monologue", "thought_process"),
    *("Reasoning_Steps", "brainstorming", "deliberation"),
]
FORMS = [
    ("<{}>", "</{}>"),
    ("<{} >", "</{} >"),
    ("< {}>", "</ {}>"),
    ('<{} seconds="3">', "</{}>"),
    ("<|{}|>", "<|/{}|>"),
    ("<|{}|>", "</|{}|>"),
    ("<|{}|>", "<|end_{}|>"),
    ("<|begin_of_{}|>", "<|end_of_{}|>"),
    ("<|START_{}|>", "<|END_{}|>"),
    ("<｜begin▁of▁{}｜>", "<｜end▁of▁{}｜>"),
    ("[{}]", "[/{}]"),
    ("◁{}▷", "◁/{}▷"),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0])
def test_a_thought_of_any_name_and_form_is_taken_out(form: tuple[str, str]) -> None:
    for name in NAMES:
        opens, closes = (part.format(name) for part in form)
        assert without_thoughts(f"{opens}9?{closes}5") == "5"
        assert without_thoughts(f"So. {opens}9?{closes}5") == "So. 5"
        assert without_thoughts(f"9?{closes}5") == "5"
        if "[" not in opens:  # "[Analysis]" alone is a heading
            assert without_thoughts(f"{opens}The answer is 9") is None
            assert opens_thought(f"Question\n{opens}\n")
        assert not opens_thought(f"Question\n{opens}\n\n{closes}\n")
        assert not verify_final_answer(f"{opens}The answer is 9.{closes} It is so.", "9").correct


@pytest.mark.parametrize(
    "text",
    [
        "<answer>The answer is 9.</answer>",
        "<b>The answer is 9.</b> I hope it helps.",
        "<final_answer>9</final_answer>\nThe answer is 9.",
        "<p>First, 4 + 5.</p><p>The answer is 9.",
        "<solution>The answer is 9.</solution>\nDone.",
        "<thesis>The answer is 9.</thesis>",
        "[Analysis]\n4 + 5 = 9\n[Answer]\nThe answer is 9.",
        "x < reason and y > 2, so the answer is 9.",
        "A List<Reasoning> holds it. The answer is 9.",
        "```xml\n<analysis>\n4 + 5\n```\nThe answer is 9.",
        "Write `<reflection>` first. The answer is 9.",
        "An empty <think/> says nothing. The answer is 9.",
    ],
)
def test_other_tags_code_and_mentions_are_answer_text(text: str) -> None:
    assert without_thoughts(text) == text


def test_a_thought_that_holds_a_fence_still_ends() -> None:
    assert without_thoughts("<think>\n```py\nx = 9\n</think>5") == "5"
    assert without_thoughts("<analysis>```\n9\n```</analysis>5") == "5"


@pytest.mark.parametrize(
    "piece", ["<think", "<" + "a" * 50, "<think x=", "[think]", "<think>", "```\n", "</think>"]
)
def test_hostile_texts_are_read_in_a_moment(piece: str) -> None:
    began = time.monotonic()
    without_thoughts(piece * (200_000 // len(piece)))
    assert time.monotonic() - began < 5
