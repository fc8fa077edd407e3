"""Options in final answers, named by number, and words that only look like a number."""

import pytest

from allo.tasks.answers import verify_choice

ANIMALS = ["cat", "fish", "dog"]
NUMBERS = ["10", "12", "14"]
UNSURE = ["Yes", "No", "Maybe"]
CASES: list[tuple[list[str], str, list[str], list[str]]] = [
    # (options, the right one, answers that name it, answers that do not)
    (
        ANIMALS, "fish",
        ["option 2", "Option (2)", "(2)", "2)", "2) fish", "(2) fish", "2: fish", "option two",
         "choice number 2", "the second option", "the second one", "the second option, fish", "option 2, because cats bite"],
        ["2", "2.", "#2", "number 2", "(2) cat", "option 2: cat", "second", "not option 2", "option 1 or 2", "options 2 and 3", "(1) or (2)", "2 of them", "2%",
         "2 apples", "1/2", "2-3", "option 3", "the last option", "f(B)", "P(B)"],
    ),
    (ANIMALS, "cat", ["option 1", "the first choice"], ["option 0", "(2) cat", "neither the first option nor the second"]),
    (["12", "14", "2"], "14", ["B"], ["option 2", "(2)", "2"]),
    (["12", "14", "2"], "2", ["2", "(2)"], []),
    (["12", "14", "16"], "14", ["the second option", "option 2"], ["(2)", "2"]),
    (
        NUMBERS, "12",
        ["12!", "12 (twelve)", "$12", "12 cm", "12 apples", "about 12, I think"],
        ["12%", "12 percent", "12+", "12-ish", "--12", "5 times 12", "12 times larger", "12 over 10", "12 or more",
         "at least 12", "more than 12", "12 over 14", "12, or 14", "12, at least 10"],
    ),
    (["10%", "12%"], "12%", ["12", "0.12", "12 %"], ["0.12%"]),
    (["5 m", "6 m"], "5 m", ["5 m", "5 meters", "5"], ["5 M", "5 mm", "5 m/s"]),
    (
        UNSURE, "No",
        ["No", "no", "NO.", "No, never", "No, it is not", "definitely no", "No because it is late"],
        ["No one knows", "No idea", "no such thing", "There is no way to know", "Yes", "no or maybe"],
    ),
    (["Yes", "No"], "No", ["a clear no"], ["No one knows", "no such thing", "yes, or no"]),
    (["x", "y"], "x", ["x", "(x)", "the variable (x)"], ["f(x)", "f (x)", "sin(x)", "2(x)", "f[x]", "f{x}", "x(t)", "g(x) = 2"]),
    (["I", "II", "III"], "II", ["2", "II", "two"], ["1", "2 cm"]),
]  # fmt: skip


@pytest.mark.parametrize(("choices", "answer", "right", "wrong"), CASES)
def test_a_number_names_an_option_only_if_it_is_unambiguous(
    choices: list[str], answer: str, right: list[str], wrong: list[str]
) -> None:
    def is_correct(said: str) -> bool:
        return verify_choice(f"Let us see. The answer is {said}", answer, choices).correct

    assert [said for said in (*right, *wrong) if is_correct(said)] == right
