"""The answer that a text announces: lines, blocks, marks around it, and later remarks."""

import pytest

from allo.tasks.answers import verify_choice, verify_final_answer

Cases = list[tuple[str, str, bool]]
"""`(what follows "The answer is", the right answer, whether it is right)`."""

BLOCKS: dict[str, Cases] = {
    "next lines, code and bullets": [
        ("5", "5", True), ("\n```\n5\n```", "5", True), ("\n```python\n5\n```", "5", True), ("```5```", "5", True),
        ("\n```\n5\n6\n```", "5", False), ("\n- 5", "5", True), ("\n* 5", "5", True), ("\n• 5", "5", True),
        ("\n- 5\n- 6", "5", False), ("\n-5", "-5", True), ("\n-5", "5", False), (": -5", "-5", True),
        ("\n1. 5\n2. 6", "1", False),
    ],
    "blocks of mathematics and tags": [
        ("$$5$$", "5", True), ("\n$$\n5\n$$", "5", True), ("\n\\[\n5\n\\]", "5", True),
        ("\n\\[ x = 5 \\]", "5", True), ("\n\\begin{align*}\nx &= 2+3 \\\\ &= 5\n\\end{align*}", "5", True),
        ("\n\\begin{equation}\n5\n\\end{equation}", "5", True), ("\n~~~\n5\n~~~", "5", True),
        ("\n~~~\n5\n6\n~~~", "5", False),
        ("\n$$\\begin{aligned} x &= 2+3 \\\\ &= 5 \\end{aligned}$$", "5", True),
        ("\n$$x = 5$$\nas wanted", "5", True), ("\n\n\\boxed{5}", "5", True), ("as follows:\n5", "5", True),
        ("\n<answer>\n5\n</answer>", "5", True), ("<answer>6</answer>", "5", False), ("<b>5</b>", "5", True),
        ("**5** apples", "5", True), ("$5$ dollars", "5 dollars", True), ("$5$ cm", "5 cm", True),
        ("$5$ cm", "5 m", False), ("$5 and $6", "5", False),
    ],
    "a list of one item": [
        ("\n1. 5", "5", True), ("\n1) Paris", "Paris", True), ("1) Paris", "Paris", True),
        ("\n(1) Paris", "Paris", True), ("\n\n1. **Paris**", "Paris", True), ("\n1. x = 5", "5", True),
        ("\n1. $5$", "5", True), ("\n1. 5 apples.", "5", True), ("\n1. 5", "1", False), ("\n1. 5\nDone.", "5", True),
        ("\n1. Because it holds.", "1", True), ("\n1. The capital is Paris", "1", True), ("\n1.", "1", True),
        ("\n1", "1", True), ("\n1.5", "1.5", True), ("1. 5 is wrong", "1", True), ("\n5. Note this.", "5", True),
        ("\n1. 5\n2. 6", "5, 6", True), ("\n2. 5", "2", True),
    ],
    "marks behind the answer": [
        ("5 ✅", "5", True), ("5 ✓", "5", True), ("**5** \u2714\ufe0f", "5", True), ("5 ❌", "5", False),
        ("5 \U0001f44d", "5", True), ("5!", "5", True), ("5<|im_end|>", "5", True), ("5</s>", "5", True),
        ("5<|END_RESPONSE|>", "5", True), ("5.<|eom_id|>", "5", True), ("6<|END_RESPONSE|>", "5", False),
    ],
    "full stops of its own": [
        ("C. S. Lewis", "C. S. Lewis", True), ("C. S. Lewis. He wrote.", "C. S. Lewis", True),
        ("C. S. Forester", "C. S. Lewis", False), ("U.S. Open", "U.S. Open", True), ("C", "C. S. Lewis", False),
        ("C. S. Lewisham", "C. S. Lewis", False),
    ],
}  # fmt: skip

WHOLE: dict[str, Cases] = {
    "remarks after the answer": [
        ("The answer is 42. Let me check, so the answer is correct.", "42", True),
        ("The answer is 42. So the answer is clear.", "42", True),
        ("The answer is 42. The answer is right!", "42", True),
        ("The answer is 42. Hence, the answer is verified.", "42", True),
        ("The answer is 42. You may think the answer is wrong, but it holds.", "42", True),
        ("The answer is 42. Wait, the answer is wrong.", "42", False),
        ("The answer is 42, so the answer is right.", "42", True),
        ("The answer is 42 because the answer is right.", "42", True),
        ("The answer is 42. I am sure that the answer is accurate.", "42", True),
        ("The answer is 42? No, 43.", "42", False), ("The answer is 42... wait, no, it is 43.", "42", False),
        ("The answer is 42. No other number will do.", "42", True),
        ("The answer is 42, because it is 6*7.", "42", True), ("The answer is 42, which is even.", "42", True),
        ("The answer is 42. No, the answer is incorrect.", "42", False),
        ("The answer is 42. So the answer is correct because 6*7=42.", "42", True),
        ("The answer is 42. The answer is obvious. The answer is 43.", "42", False),
        ("The answer is 42. The answer is obvious. The answer is 43.", "43", True),
        ("The answer is correct.", "42", False), ("The answer is correct.", "correct", True),
        ("The answer is 42. The answer is right-angled.", "42", False),
        ("The answer is 42.\n\nThe answer is 43", "42", False), ("The answer is clear: 42", "42", False),
        ("The answer is 42. The answer is", "42", False),
    ],
    "thoughts": [
        ("<think>The answer is 5.</think>", "5", False), ("<think>x</think>The answer is 5.", "5", True),
        ("maybe 9</think>\nThe answer is 5.", "5", True), ("The answer is 9.</think>\nThe answer is 5.", "9", False),
        ("<think>Maybe the answer is 5? Let me", "5", False), ("[THINK]the answer is 5[/THINK]It is 6.", "5", False),
    ],
}  # fmt: skip


@pytest.mark.parametrize("cases", BLOCKS.values(), ids=BLOCKS)
def test_an_answer_is_read_from_the_block_that_it_stands_in(cases: Cases) -> None:
    def is_correct(said: str, answer: str) -> bool:
        space = "" if said[0] in ":：\n" else " "
        return verify_final_answer(f"Let us see. The answer is{space}{said}", answer).correct

    assert [case for case in cases if is_correct(*case[:2]) != case[2]] == []


@pytest.mark.parametrize("cases", WHOLE.values(), ids=WHOLE)
def test_the_last_answer_outside_thoughts_counts_and_a_remark_is_none(
    cases: Cases,
) -> None:
    assert [case for case in cases if verify_final_answer(*case[:2]).correct != case[2]] == []


def test_a_remark_that_is_an_option_is_an_answer() -> None:
    text = "The answer is left. No: then the answer is right."
    assert verify_choice(text, "right", ["left", "right"]).correct
    assert verify_choice(text, "left", ["left", "up"]).correct


NUMBERS, TOWNS = ["10", "12", "14", "16"], ["Paris", "Rome", "Oslo", "Bonn"]


@pytest.mark.parametrize(
    ("said", "choices", "right"),
    [
        *((said, NUMBERS, None) for said in ("B. 14", "B) 14", "**B**. 14", "option B. 14", "\\boxed{B}. 14", "b. 14")),
        *((said, NUMBERS, "12") for said in ("B. 12", "B.", "B. 14 is too large.", "B. There are 14 of them.")),
        ("B. Oslo", TOWNS, None), ("A. Rome.", TOWNS, None), ("B. Rome", TOWNS, "Rome"),
        ("B. Oslo is colder.", TOWNS, "Rome"), ("A. Paris. It is not Oslo.", TOWNS, "Paris"),
        ("\n1. Rome", TOWNS, None), ("\n1) Rome", TOWNS, None), ("\n2) Rome", TOWNS, "Rome"),
    ],
)  # fmt: skip
def test_a_letter_beside_another_options_text_names_neither(
    said: str, choices: list[str], right: str | None
) -> None:
    for choice in choices:
        assert verify_choice(f"The answer is: {said}", choice, choices).correct == (choice == right)
