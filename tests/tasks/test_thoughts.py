"""Thoughts: completions without them, and thoughts that never end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allo.tasks.answers import verify_choice, verify_final_answer
from allo.tasks.answers.thoughts import DEFAULT, Marker, declared_markers, opens_thought, without_thoughts


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("The answer is 5.", "The answer is 5."),
        ("<think>9?</think>5", "5"),
        ("<THINK>9?</Think>5", "5"),
        ("<thinking>9?</thinking>5", "5"),
        ("<thought>9?</thought>5", "5"),
        ("<reasoning>9?</reasoning><answer>5</answer>", "<answer>5</answer>"),
        ("[THINK]9?[/THINK]5", "5"),
        ("<|thinking|>9?<|/thinking|>5", "5"),
        ("<|START_THINKING|>9?<|END_THINKING|>5", "5"),
        ("<|channel>thought\n9?<channel|>5", "5"),
        ("9?</think>5", "5"),
        ("9?\n[/THINK]5", "5"),
        ("<think>9?</think>5<think>8?</think>6", "56"),
        ("<think>9?<think>8?</think>7?</think>5", "5"),
        ("<think>9?<thinking>8?</think>5", "5"),
        ("<think>\n<think>9?</think>5", "5"),
        ("<think>9?</reasoning>8?</think>5", "5"),
        ("<think></think>5", "5"),
        ("The `<think>` tag opens a thought. 5", "The `<think>` tag opens a thought. 5"),
        ("5 < 6 and [think] again", "5 < 6 and [think] again"),
        ("<|channel|>analysis<|message|>9?<|end|><|start|>assistant<|channel|>final<|message|>5<|return|>", "5"),
        ("9?<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>5", "5"),
        ("<|channel|>commentary<|message|>9?<|end|><|start|>assistant<|channel|>final<|message|>5", "5"),
        ("analysisWe think of 9.assistantfinal5", "5"),
        ("<think>9?", None),
        ("<think>9?</think>5<think>or", None),
        ("<think>9?<think>8?</think>5", None),
        ("[THINK]9?", None),
        ("<|channel|>analysis<|message|>9?", None),
        ("<|channel|>analysis<|message|>9?<|end|><|start|>assistant", None),
        ("analysisWe think of 9.", None),
    ],
)  # fmt: skip
def test_thoughts_are_taken_out_and_an_unfinished_one_leaves_no_answer(text: str, left: str | None) -> None:
    if "[think]" in text:  # Mistral's marker in another case is one, too
        assert without_thoughts(text) is None
    else:
        assert without_thoughts(text) == left


def test_a_text_that_begins_in_the_prompts_thought_needs_its_end() -> None:
    assert opens_thought("<|im_start|>assistant\n<think>\n")
    assert not opens_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert without_thoughts("The answer is 9, or", begins_inside=True) is None
    assert without_thoughts("9?</think>5", begins_inside=True) == "5"
    assert without_thoughts("<think>9?</think>5", begins_inside=True) == "5"


@given(
    st.lists(st.sampled_from([*(m.opens for m in DEFAULT[:4]), *(m.closes for m in DEFAULT[:4]), "a", " "]))
)
def test_what_is_left_holds_no_thought(pieces: list[str]) -> None:
    left = without_thoughts("".join(pieces))
    assert left is None or set(left) <= {"a", " "}


def test_a_template_declares_its_markers() -> None:
    fields = {
        "thinking": {"open": "<plan>", "close_pattern": r"<\/plan>\s*"},
        "reasoning_content": {"open_pattern": r"(?=[\s\S]*?</q>)", "close": "</q>"},
        "content": {"open": "<say>", "close": "</say>"},
    }
    found = declared_markers({"response_template": {"fields": fields}})
    assert found == (*DEFAULT, Marker("<plan>", "</plan>"))
    assert without_thoughts("<plan>9?</plan>5", found) == "5"
    assert declared_markers({}) == declared_markers({"response_template": "x"}) == DEFAULT


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("<think>The answer is 9.</think>\nThe answer is 12.", True),
        ("<think>The answer is 12.</think>\nThe answer is 9.", False),
        ("<think>The answer is 12.</think>\nIt is so.", False),
        ("<think>The answer is 12? Let me", False),
        ("The answer is 9.</think>The answer is 12.", True),
        ("The answer is 12.</think>So it is.", False),
        ("The answer is 12. <think>Or was it", False),
    ],
)
def test_an_answer_stands_outside_thoughts(text: str, correct: bool) -> None:
    assert verify_final_answer(text, "12").correct == correct
    assert verify_choice(text, "12", ["9", "12"]).correct == correct
