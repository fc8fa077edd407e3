"""Words and signs beside an answer: some belong to it, others change it."""

import pytest

from allo.tasks.answers import verify_final_answer

Cases = list[tuple[str, str, bool]]
"""`(what follows "The answer is", the right answer, whether it is right)`."""

BESIDE: dict[str, Cases] = {
    "signs behind or before a number": [
        (sign, "5", False) for sign in ("5+", "5 +", "5-", "--5", "+-5", "-+5", "- -5", "5/", "5^", "/5", "5#", "5@", "5%%")
    ] + [("--5", "-5", False), ("+-5", "-5", False), ("+5", "5", True), ("$-5", "-5", True), ("5!", "5", True)],
    "words that multiply, compare or cut": [
        (said, "5", False) for said in (
            "5 times larger", "five times as many", "5 times more apples", "5 times the weight", "5 over 10", "5-ish", "5ish",
            "5 or so", "5-fold", "5 fold", "5 higher", "5 smaller", "5 mod 3", "5 choose 2", "5 factorial", "5 dollars short",
            "5 squared", "5 thirds", "5 tenths", "5 hundredths", "5 tens", "5 twice", "5 out of 10", "5 of 10", "5 per 10",
            "5 degrees below zero", "5 remainder 2", "5 decimal places", "5 something",
        )
    ],
    "words before a number": [
        (said, "5", False) for said in (
            "twice 5", "double 5", "half of 5", "the square root of 5", "the sum of 5", "the opposite of 5", "root 5", "log 5",
            "sin 5", "close to 5", "rounded to 5 decimal places", "rounded to the nearest dollar, 5", "XYZ 5", "it isn't 5",
        )
    ] + [
        (said, "5", True) for said in (
            "exactly 5", "around 5", "roughly 5", "she has 5", "x equals 5", "the total is 5", "the number 5", "rounded to 5",
            "rounded up to 5", "a total of 5 apples", "5, rounded to the nearest ten",
        )
    ],
    "things that are counted": [
        (said, "5", True) for said in (
            "5 red apples", "5 slices of cake", "5 feet tall", "5 years old", "5 apples left", "5 left", "5 eggs in total",
            "5 in total", "5 each", "5 times", "5 people in the room", "five pairs",
        )
    ] + [("1 egg", "1", True), ("0.5 pizza", "0.5", True), ("5 box", "5 box", True), ("5 boxes of eggs", "5 apples", False)],
    "scales": [
        ("5k", "5000", True), ("5 k", "5000", True), ("$5K", "5000", True), ("1.5M", "1500000", True), ("5 M", "5000000", True),
        ("5B", "5000000000", True), ("5 bn", "5000000000", True), ("5 mn", "5000000", True), ("5 tn", "5000000000000", True),
        ("5M dollars", "$5,000,000", True), ("5 hundreds", "500", True), ("5k", "5", False), ("1.5M", "1.5", False),
        ("5 bn", "5", False), ("5m", "5000000", False), ("5 kB", "5000", False),
    ],
    "units that case tells apart": [
        ("5 M", "5 m", False), ("5 G", "5 g", False), ("5 S", "5 s", False), ("5 mM", "5 mm", False), ("5 KM", "5 km", True),
        ("5 Kg", "5 kg", True), ("9 PM", "9 pm", True), ("5 Apples", "5 apples", True),
    ],
    "signs and codes of currencies": [
        *((said, "5", True) for said in (
            "₪5", "5 ₺", "฿5", "₫5", "₦5", "₱5", "₿5", "R$5", "5 zł", "zł5", "5 kr", "kr 5", "SEK 5", "HK$5", "CHF 5",
        )),
        ("฿5", "5 baht", True), ("5 PLN", "5 zł", True), ("ILS 5", "₪5", True), ("5 kr", "5 kronor", True),
        ("5 BRL", "R$5", True), ("5 US dollars", "$5", True), ("₪5", "₺5", False), ("₪5", "$5", False),
        ("HK$5", "$5", False), ("5 Canadian dollars", "$5", False), ("5 Canadian dollars", "5 CAD", True),
        ("5 SEK", "5 NOK", False), ("5 US dollars", "5 CAD", False), ("try 5", "5", False),
    ],
    "degrees": [
        ("5 deg C", "5 °C", True), ("5 deg. C", "5 °C", True), ("5 degrees C", "5 degrees Celsius", True),
        ("5 deg C", "5", True), ("5 deg F", "5 °C", False),
    ],
    "asides": [
        ("5 (five)", "5", True), ("five (5)", "5", True), ("5 (six)", "5", False), ("5 (10)", "5", False),
        ("5 (or 6)", "5", False), ("5 (wrong)", "5", False), ("5 (cm)", "5 m", False), ("Paris (France)", "Paris", True),
        ("Paris (or London)", "Paris", False), ("Paris (not London)", "Paris", True), ("f (x)", "f", False),
        ("a (b+c)", "a", False), ("2 (x+1)", "2", False),
    ],
    "yes and no": [
        ("Yes, it is.", "yes", True), ("No, it isn't.", "No", True), ("no: he is not", "no", True), ("Yes, no doubt", "yes", True),
        ("No one", "no", False), ("yes or no", "yes", False), ("yes, or no", "yes", False), ("No, yes", "no", False),
        ("No, it is not.", "yes", False),
    ],
    "decimals that repeat": [
        ("0.\\overline{3}", "1/3", True), ("$0.1\\overline{6}$", "1/6", True), ("1/3", "0.\\bar{3}", True), ("0.(27)", "3/11", True),
        ("-1.\\overline{3}", "-4/3", True), ("0.\\overline{3}", "0.3", False), ("5(3)", "5", False),
    ],
    "a quotation or a table of one cell": [
        ("\n> 5", "5", True), ("\n> x = 5", "5", True), ("\n| 5 |", "5", True), ("\n> 5\n> 6", "5", False), ("> 5", "5", False),
        ("\n| 5 | 6 |", "5", False), ("\n| a |\n|---|\n| 5 |", "5", False),
    ],
}  # fmt: skip


@pytest.mark.parametrize("cases", BESIDE.values(), ids=BESIDE)
def test_only_what_belongs_to_an_answer_may_stand_beside_it(cases: Cases) -> None:
    def is_correct(said: str, answer: str) -> bool:
        space = "" if said[0] == "\n" else " "
        return verify_final_answer(f"Let us see. The answer is{space}{said}", answer).correct

    assert [case for case in cases if is_correct(*case[:2]) != case[2]] == []
