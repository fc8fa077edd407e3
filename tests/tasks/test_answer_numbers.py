"""Numbers in final answers: notations, words, scripts, and texts that are not numbers."""

import pytest

from allo.tasks.answers import verify_final_answer

Cases = list[tuple[str, str, bool]]
"""`(what follows "The answer is", the right answer, whether it is right)`."""

NUMBERS: dict[str, Cases] = {
    "powers of ten": [
        ("1.2 x 10^5", "120000", True), ("1.2e5", "120000", True), ("1.2E+5", "120000", True),
        ("1.2×10⁵", "120000", True), ("1.2*10^5", "120000", True), ("1.2 · 10^5", "120000", True),
        ("1.2 x 10^{5}", "120000", True), ("1.2 x 10^-3", "0.0012", True), ("1.2×10⁻³", "0.0012", True),
        ("1.2 x 10^5", "12000", False), ("1.2e5", "1.2", False), ("1.2 x 10", "1.2", False),
        ("1.2 x 10^5 m", "120000", True), ("10^5", "100000", True), ("10⁵", "100000", True),
        ("120000", "1.2 x 10^5", True), ("120000", "$1.2 \\times 10^5$", True), ("3e", "3", False),
    ],
    "separators": [
        ("1,00,000", "100000", True), ("12,34,567", "1234567", True), ("1 000 000", "1000000", True),
        ("1\u202f000\u202f000", "1000000", True), ("1'000'000", "1000000", True), ("1’000", "1000", True),
        ("1,00,00", "10000", False), ("1 00", "100", False), ("1.234,56", "1234.56", True),
        ("1.234.567", "1234567", True), ("3,50 €", "3.5", True), ("3,5 kg", "3.5 kg", True), ("3,5", "3.5", False),
        ("3,5", "35", False), ("€3,50", "3.50", True), ("1.200", "1200", False), ("5 lakh", "500000", True),
        ("2 crore", "20000000", True),
    ],
    "number words": [
        ("five", "5", True), ("Five", "5", True), ("twenty-one", "21", True), ("twenty one", "21", True),
        ("one hundred and five", "105", True), ("two thousand three hundred", "2300", True),
        ("five million", "5000000", True), ("twelve hundred", "1200", True), ("a dozen", "12", True),
        ("two dozen eggs", "24", True), ("half a dozen", "6", True), ("one half", "0.5", True),
        ("two-thirds", "2/3", True), ("five and a half", "5.5", True), ("minus five", "-5", True),
        ("five dollars", "$5", True), ("five dollars", "5 euros", False), ("five", "6", False),
        ("five or six", "5", False), ("five and six", "11", False), ("the second one", "1", False),
        ("one", "1", True), ("one of them", "1", False), ("no one", "1", False), ("someone", "1", False),
        ("fivefold", "5", False), ("five-year-old", "5", False), ("not five", "5", False), ("5", "five", True),
        ("five apples.", "5", True), ("five apples", "5 oranges", False), ("fifteen", "5", False),
        ("fifty", "15", False), ("five six", "11", False), ("twenty-one", "Twenty One", True),
        ("a hundred", "100", True), ("zero", "0", True), ("ten", "10", True), ("six", "6", True),
    ],
    "digits of other scripts": [
        ("１２", "12", True), ("١٢", "12", True), ("१२", "12", True), ("１２", "13", False), ("١٢٫٥", "12.5", True),
        ("٥٪", "5%", True), ("１，２００", "1200", True), ("（５）", "5", True), ("：5", "5", True),
        ("\U0001d7d3", "5", True), ("五", "5", False), ("5。", "5", True), ("-٥", "-5", True), ("−5", "5", False),
    ],
    "equations, and what only looks like one": [
        ("x = 5", "5", True), ("2+3 = 5", "5", True), ("2+3 = 1+4 = 5", "5", True), ("5 because 2+3 = 5", "5", True),
        ("x = 1 or x = 2", "2", False), ("x = 1 and x = 2", "2", False), ("x = 1, y = 2", "2", False),
        ("5 if x = 3", "3", False), ("5 when x = 3", "3", False), ("5 for x = 3", "3", False), ("x >= 3", "3", False),
        ("x <= 3", "3", False), ("x != 3", "3", False), ("5 because 3 = 3", "3", False), ("x == 3", "3", True),
    ],
    "signs of typography": [
        ("–5", "-5", True), ("–5", "5", False), ("1⁄2", "0.5", True), ("1010_{2}", "1010_2", True),
        ("1010₂", "1010_2", True), ("1010_{3}", "1010_2", False), ("(-∞, 3]", "(-\\infty,3]", True),
        ("√2", "\\sqrt{2}", True), ("√3", "\\sqrt{2}", False), ("1, 2, and 3", "1,2,3", True), ("1 and 2", "1,2", True),
        ("1 and 3", "1,2", False), ("1 and 2", "1", False),
    ],
    "roman numerals and composed letters": [
        ("II", "2", False), ("IV", "4", False), ("V", "5", False), ("café", "cafe\u0301", True),
    ],
    "fractions, hedges and denials": [
        ("$1,200", "1200", True), ("1/2", "0.5", True), ("$\\frac{1}{2}$", "50%", True), ("probably 5", "5", True),
        ("probably Paris", "Paris", True), ("not Paris", "Paris", False), ("Paris, not London", "Paris", True),
        ("Paris or London", "Paris", False), ("-5", "5", False), ("5/2", "2.5", True), ("2 1/2", "2.5", True),
        ("2½", "2.5", True), ("½", "0.5", True),
    ],
}  # fmt: skip


@pytest.mark.parametrize("cases", NUMBERS.values(), ids=NUMBERS)
def test_a_number_is_read_in_any_notation_and_no_other_matches(cases: Cases) -> None:
    def is_correct(said: str, answer: str) -> bool:
        space = "" if said[0] in ":：\n" else " "
        return verify_final_answer(f"Let us see. The answer is{space}{said}", answer).correct

    assert [case for case in cases if is_correct(*case[:2]) != case[2]] == []
