"""The rules for judging a final answer, each with right and wrong completions."""

from collections.abc import Callable

import pytest

from allo.tasks.answers import Verified, verify_choice, verify_final_answer

ITEMS = ["bathroom", "bottle", "water bottle", "Mt. Fuji", "ice melts because of heat"]
TRUTH = ["yes", "no"]

Cases = list[tuple[str, str]]
"""`(what follows "The answer is", the right answer)`."""

CHOICE: dict[str, tuple[list[str], Cases, Cases]] = {
    "text": (
        ITEMS,
        [
            ("bottle.", "bottle"),
            ("a water bottle.", "water bottle"),
            ("most likely the bottle.", "bottle"),
            ("Mt. Fuji. It is high.", "Mt. Fuji"),
            ("the Mt. Fuji, of course.", "Mt. Fuji"),
            ("\\boxed{\\text{bottle}}.", "bottle"),
        ],
        [
            ("bottle.", "water bottle"),
            ("water bottle.", "bottle"),
            ("throttle.", "bottle"),
            ("bottle or bathroom.", "bottle"),
            ("not the bottle.", "bottle"),
            ("something else.", "bottle"),
            ("none of these, though the bottle comes close.", "bottle"),
        ],
    ),
    "letter": (
        ITEMS,
        [
            ("B.", "bottle"),
            ("(b)", "bottle"),
            ("**B**.", "bottle"),
            ("option B.", "bottle"),
            ("Choice (B).", "bottle"),
            ("$\\text{B}$.", "bottle"),
            ("\\boxed{\\text{(B)}}", "bottle"),
            ("\n(B)", "bottle"),
        ],
        [("(A).", "bottle"), ("(Z).", "bottle"), ("(A) or (B).", "bottle"), ("(A) and (B).", "bathroom")],
    ),
    "letter and text": (
        ITEMS,
        [
            ("(B) bottle, as said.", "bottle"),
            ("B. bottle.", "bottle"),
            ("B: bottle", "bottle"),
            ("the bottle (B).", "bottle"),
            ("(D) Mt. Fuji.", "Mt. Fuji"),
        ],
        [("(A) bottle.", "bottle"), ("(A) bottle.", "bathroom"), ("bottle (A).", "bottle")],
    ),
    "capitals": (
        ITEMS,
        [("BOTTLE.", "bottle"), ("Water Bottle", "water bottle"), ("mt. fuji", "Mt. Fuji")],
        [("BATHROOM.", "bottle")],
    ),
    "a reason after the option": (
        ITEMS,
        [
            ("B because it is round.", "bottle"),
            ("(B) because it is no bathroom.", "bottle"),
            ("the bottle, because it is not a bathroom.", "bottle"),
            ("ice melts because of the heat.", "ice melts because of heat"),
        ],
        [
            ("the bathroom because there is a bottle.", "bottle"),
            ("not the bottle because of the bathroom.", "bottle"),
            ("bottle or bathroom because both hold water.", "bottle"),
        ],
    ),
    "yes and no": (
        TRUTH,
        [
            ("Yes.", "yes"),
            ("NO", "no"),
            ("yes, because there is no other.", "yes"),
            ("yes - there is no doubt.", "yes"),
            ("yes because no king was there.", "yes"),
            ("no, he could not.", "no"),
            ("No; not even then.", "no"),
            ("no, not yes.", "no"),
            ("(A) yes.", "yes"),
            ("B.", "no"),
            ("\\boxed{yes}", "yes"),
        ],
        [
            ("no.", "yes"),
            ("yes and no.", "yes"),
            ("yes or no.", "no"),
            ("yes/no.", "yes"),
            ("yes-no.", "yes"),
            ("not yes.", "yes"),
            ("not yes.", "no"),
            ("unknown.", "no"),
            ("not known.", "no"),
        ],
    ),
}

FREE_FORM: dict[str, tuple[Cases, Cases]] = {
    "fractions": (
        [
            ("3/4.", "0.75"),
            ("\\frac34.", "3/4"),
            ("$\\frac{3}{4}$.", "0.75"),
            ("6/8", "\\tfrac{3}{4}"),
            ("1 1/2", "1.5"),
            ("$-1\\frac12$", "-1.5"),
            ("\\frac{-1}{2}", "-\\dfrac{1}{2}"),
            ("75%", "3/4"),
        ],
        [("3/4.", "4/3"), ("1/3", "0.333"), ("5/0", "5"), ("\\frac{3}{4}", "-\\frac{3}{4}")],
    ),
    "LaTeX": (
        [
            ("$2\\sqrt{3}$.", "\\sqrt{12}"),
            ("$x^2+2x+1$", "(x+1)^2"),
            ("$\\left(\\frac12,1\\right)$", "(0.5,1)"),
            ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
            ("\\text{Evelyn}.", "Evelyn"),
            ("$\\textbf{(E)}$", "\\text{E}"),
            ("$\\boxed{18}$ eggs. Or 5.", "18"),
            ("2x+3", "y=2x+3"),
            ("$x = 5$", "5"),
            ("0.56", "0.56 = 56\\%"),
            ("11,111,100", "11,\\! 111,\\! 100"),
            ("6, 8 and 10", "6, 8\\text{, and }10"),
        ],
        [
            ("$2\\sqrt{3}$.", "\\sqrt{6}"),
            ("$(1,2)$", "(2,1)"),
            ("$(3,5)$", "(3,5]"),
            ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"),
            ("3.14", "\\pi"),
            ("5x", "5"),
            ("5 \\text{ or } 6", "5"),
            ("10,10", "10"),
        ],
    ),
    "units": (
        [
            ("18 eggs.", "18"),
            ("$18.", "18 dollars"),
            ("1.5 hours", "1.5"),
            ("90 degrees", "90^\\circ"),
            ("$90^{\\circ}$", "90"),
            ("440 square cm", "440\\text{ cm}^2"),
            ("34 sq. units.", "34 square units"),
            ("18 percent", "18\\%"),
            ("5 million", "5000000"),
            ("3:15 PM.", "3:15 P.M."),
            ("9 am", "9\\text{ a.m.}"),
        ],
        [
            ("5 hours", "5 minutes"),
            ("440 cm", "440\\text{ cm}^2"),
            ("90 cm", "90^\\circ"),
            ("$5", "5%"),
            ("271 cents", "2.71"),
            ("18 eggs and 2 hens", "18"),
            ("3:15", "3:15 P.M."),
            ("4:15 PM", "3:15 P.M."),
        ],
    ),
    "thousands": (
        [("1,200.", "1200"), ("1{,}200", "1200"), ("5,\\!000", "5000"), ("12_000", "12000"), ("$1,200.50", "1200.5")],
        [("1,20", "120"), ("1.200", "1200"), ("1,200", "12000")],
    ),
    "negative numbers": (
        [("-7.", "-7"), ("−7", "-7"), ("-$7", "$-7"), ("minus 7", "-7"), ("negative 7.", "-7"), ("(-7)", "-7")],
        [("-7", "7"), ("7", "-7"), ("negative 7", "7"), ("it is negative 7", "7"), ("10 minus 3", "10")],
    ),
    "trailing full stops": (
        [("7.", "7"), ("7..", "7"), ("7 .", "7"), ("$7.$", "7"), ("3.50.", "3.5"), ("yes.", "Yes"), ("7", "7.")],
        [("3.5.", "3.55"), ("3. 5", "3.5"), (".", "5")],
    ),
}  # fmt: skip

WHOLE: tuple[Cases, Cases] = (
    [
        ("The answer is 5. Wait. The answer is 6.", "6"),
        ("The answer is 5.\nThe answer is\n6", "6"),
        ("THE ANSWER IS: 6!", "6"),
        ("The final answer is: $\\boxed{6}$. I hope it is correct.", "6"),
        ("So the correct answer is 6.", "6"),
    ],
    [
        ("The answer is 5. Wait. The answer is 6.", "5"),
        ("The answer is 6. The answer is", "6"),
        ("It is 6.", "6"),
        ("6", "6"),
        ("The answer isn't 6.", "6"),
        ("There is no answer: 6.", "6"),
        ("", "6"),
    ],
)
"""Several announcements, or none: whole completions."""


def _taken(cases: Cases, judge: Callable[[str, str], Verified]) -> Cases:
    return [(said, answer) for said, answer in cases if judge(said, answer).correct]


@pytest.mark.invariant("Every rule of a final answer has cases that it takes and that it refuses.")
@pytest.mark.parametrize("rule", CHOICE)
def test_options(rule: str) -> None:
    choices, right, wrong = CHOICE[rule]

    def judge(said: str, answer: str) -> Verified:
        return verify_choice(f"Let us see. The answer is {said}", answer, choices)

    assert (_taken(right, judge), _taken(wrong, judge)) == (right, [])


@pytest.mark.invariant("Every rule of a final answer has cases that it takes and that it refuses.")
@pytest.mark.parametrize("rule", FREE_FORM)
def test_free_form(rule: str) -> None:
    right, wrong = FREE_FORM[rule]

    def judge(said: str, answer: str) -> Verified:
        return verify_final_answer(f"Let us see. The answer is {said}", answer)

    assert (_taken(right, judge), _taken(wrong, judge)) == (right, [])


def test_announcements() -> None:
    right, wrong = WHOLE
    for judge in (verify_final_answer, lambda text, answer: verify_choice(text, answer, ["5", "6"])):
        assert (_taken(right, judge), _taken(wrong, judge)) == (right, [])
