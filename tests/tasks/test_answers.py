"""Final answers: reading them from a text, and comparing them."""

import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allo.errors import UserError
from allo.tasks.answers import same_answer, verify_choice, verify_final_answer
from allo.tasks.answers.final_answer import extract_final_answer


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("So she has 18. The answer is 18.", "18"),
        ("The answer is 18", "18"),
        ("THE ANSWER IS 18.", "18"),
        ("the answer is: 18", "18"),
        ("The answer is 3.50.", "3.50"),
        ("The answer is 3.50", "3.50"),
        ("The answer is 1,200.50.", "1,200.50"),
        ("The answer is $18.", "$18"),
        ("The answer is $18$.", "18"),
        ("The answer is $1.5$. Good.", "1.5"),
        ("The answer is \\$18.", "\\$18"),
        ("The answer is 18 dollars.", "18 dollars"),
        ("The answer is 1.5 hours. She is late.", "1.5 hours"),
        ("The answer is -5.", "-5"),
        ("The answer is 5%.", "5%"),
        ("The answer is **12**.", "12"),
        ("The answer is \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("The answer is $\\boxed{5}$. Done.", "5"),
        ("The answer is \\(7\\).", "7"),
        ("The answer is \\[7\\]", "7"),
        ("The answer is 5\nThat is all. 6", "5"),
        ("The answer is\n5\n6", "5"),
        ("The answer is 5. Wait. The answer is 6.", "6"),
        ('The answer is "yes".', "yes"),
        ("The answer is Dr. Smith. He came.", "Dr. Smith"),
        ("The answer is 4! Great.", "4"),
        ("There is no answer, only 18.", None),
        ("The answer is", None),
        ("The answer is .", None),
        ("The answer isn't 5", None),
        ("The answer is 5. The answer is", None),
        ("", None),
    ],
)
def test_the_final_answer_is_what_follows_the_last_announcement(text: str, found: str | None) -> None:
    assert extract_final_answer(text) == found


SAME = [
    ("1,200", "1200"),
    ("1200.0", "1200"),
    ("$1200", "1200"),
    ("$1,200.00", "1200"),
    ("1{,}200", "1200"),
    ("12_000", "12000"),
    ("3.50", "3.5"),
    (".5", "0.5"),
    ("1/2", "0.5"),
    ("\\frac{1}{2}", "0.5"),
    ("\\dfrac12", "1/2"),
    ("-\\frac{1}{2}", "-0.5"),
    ("1 1/2", "1.5"),
    ("-5", "-5.0"),
    ("−5", "-5"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("5%", "5"),
    ("5%", "0.05"),
    ("50 percent", "0.5"),
    ("5\\%", "5%"),
    ("18 dollars", "18"),
    ("$18", "18 dollars"),
    ("18 dollars a day", "18 dollars"),
    ("she makes $18 a day", "18"),
    ("1.5 hours", "1.5"),
    ("1 hour", "1 hours"),
    ("5 cm", "5cm"),
    ("12\\text{ students}", "12 students"),
    ("5 million", "5000000"),
    ("9 * 2 = 18", "18"),
    ("x = 5", "5"),
    ("2\\sqrt{3}", "\\sqrt{12}"),
    ("(1,2)", "(1, 2)"),
    ("p+q-r", "q + p - r"),
    ("\\frac{\\pi}{4}", "\\pi/4"),
    ("\\text{Monday}", "monday"),
    ("\\text{(B)}", "B"),
    ("Yes", "yes"),
    ("yes.", "Yes"),
    ("the Moon", "moon"),
    ("New  York", "new york"),
    ("3:30", "3:30"),
]

DIFFERENT = [
    ("18", "19"),
    ("5", "-5"),
    ("1.5", "15"),
    ("1,20", "120"),
    ("3.5", "3.55"),
    ("1/3", "0.33"),
    ("18 or 19", "18"),
    ("18 and 19", "18"),
    ("between 1 and 18", "18"),
    ("not 18", "18"),
    ("18, not 19", "19"),
    ("5x", "5"),
    ("5 x", "5"),
    ("5+x", "5"),
    ("2\\sqrt{3}", "2"),
    ("x+1", "x-1"),
    ("(1,2)", "(2,1)"),
    ("5 hours", "5 minutes"),
    ("$5", "5%"),
    ("5 million", "5"),
    ("500", "5%"),
    ("yes", "no"),
    ("yes or no", "yes"),
    ("eighteen eggs, 9 a box", "18"),
    ("3:30", "3:45"),
    ("9^9^9^9^9", "3"),
    ("9" * 5000, "9"),
    ("Monday", "Tuesday"),
]


@pytest.mark.parametrize(("found", "gold"), SAME)
def test_same(found: str, gold: str) -> None:
    assert same_answer(found, gold)


@pytest.mark.parametrize(("found", "gold"), DIFFERENT)
def test_different(found: str, gold: str) -> None:
    assert not same_answer(found, gold)


@given(value=st.integers(-(10**9), 10**9), decimals=st.integers(0, 3), other=st.integers(-(10**9), 10**9))
def test_notations_of_one_number_are_equal_and_other_numbers_are_not(
    value: int, decimals: int, other: int
) -> None:
    written = f"{value:,}" + ("." + "0" * decimals if decimals else "")
    text = f"It is so. The answer is {written}."
    assert verify_final_answer(text, str(value)).correct
    assert verify_final_answer(text, str(other)).correct == (value == other)


def test_only_mathematics_needs_computer_algebra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)  # makes its import fail
    assert same_answer("1/2", "0.5")
    assert not same_answer("yes", "no")
    assert not same_answer("18 dollars", "19")
    with pytest.raises(UserError, match=r"allo-align\[math\]"):
        same_answer("\\sqrt{12}", "2\\sqrt{3}")


def test_mathematics_is_compared_outside_the_main_thread() -> None:
    results = []
    thread = threading.Thread(
        target=lambda: results.extend(
            [same_answer("\\sqrt{12}", "2\\sqrt{3}"), same_answer("\\sqrt{12}", "3\\sqrt{2}")]
        )
    )
    thread.start()
    thread.join()
    assert results == [True, False]


def test_a_text_without_a_final_answer_is_wrong() -> None:
    judgement = verify_final_answer("It is 18.", "18")
    assert (judgement.correct, judgement.extracted, judgement.verifier) == (False, None, "final_answer")


OPTIONS = ["bathroom", "bottle", "water bottle", "dentist's office", "washington d.c", "The drug store."]


@pytest.mark.parametrize(
    ("said", "answer", "correct"),
    [
        ("bottle.", "bottle", True),
        ("Bottle", "bottle", True),
        ("a bottle.", "bottle", True),
        ("the bottle, of course.", "bottle", True),
        ("'bottle'.", "bottle", True),
        ("**bottle**.", "bottle", True),
        ("bottle. I thought of the bathroom too.", "bottle", True),
        ("water bottle.", "water bottle", True),
        ("water bottle.", "bottle", False),
        ("bottle.", "water bottle", False),
        ("dentists office.", "dentist's office", True),
        ("Dentist’s office.", "dentist's office", True),
        ("washington d.c.", "washington d.c", True),
        ("Washington D.C. It lies there.", "washington d.c", True),
        ("drug store.", "The drug store.", True),
        ("(B).", "bottle", True),
        ("(b).", "bottle", True),
        ("B.", "bottle", True),
        ("B", "bottle", True),
        ("B)", "bottle", True),
        ("(B) bottle.", "bottle", True),
        ("B. bottle.", "bottle", True),
        ("B: bottle.", "bottle", True),
        ("(B) because of the shape.", "bottle", True),
        ("(A).", "bottle", False),
        ("(A) bottle.", "bottle", False),
        ("(A) bottle.", "bathroom", False),
        ("(Z).", "bottle", False),
        ("A bottle.", "bottle", True),
        ("bottle or bathroom.", "bottle", False),
        ("bottle and water bottle.", "bottle", False),
        ("bathroom, bottle, water bottle.", "bathroom", False),
        ("not bottle.", "bottle", False),
        ("throttle.", "bottle", False),
        ("", "bottle", False),
    ],
)
def test_a_choice_is_one_option_by_text_or_letter(said: str, answer: str, correct: bool) -> None:
    judgement = verify_choice(f"Let us see. The answer is {said}", answer, OPTIONS)
    assert judgement.correct == correct
    assert judgement.verifier == "choice"


@pytest.mark.parametrize(
    ("said", "answer", "choices", "correct"),
    [
        ("yes.", "yes", ["yes", "no"], True),
        ("Yes", "yes", ["yes", "no"], True),
        ("no.", "yes", ["yes", "no"], False),
        ("yes and no.", "yes", ["yes", "no"], False),
        # Letters that are options are options.
        ("B.", "B", ["C", "B", "A"], True),
        ("B.", "B", ["B", "A"], True),
        ("A.", "C", ["C", "B", "A"], False),
        # An option given twice is one option.
        ("Lake.", "lake", ["lake", "sea", "Lake "], True),
        # Options that differ in an article alone.
        ("B. ground.", "ground", ["the ground", "ground"], True),
        ("(A) the ground.", "ground", ["the ground", "ground"], False),
        ("1.50", "1.5", ["1.5", "15"], True),
        ("15", "15", ["1.5", "15"], True),
        ("-5", "-5", ["5", "-5"], True),
        ("-5", "5", ["5", "-5"], False),
        ("the C++.", "C++", ["C", "C++"], True),
        ("C++.", "C++", ["C", "C++"], True),
    ],
)
def test_choices_of_other_kinds(said: str, answer: str, choices: list[str], correct: bool) -> None:
    assert verify_choice(f"The answer is {said}", answer, choices).correct == correct
