"""Options in final answers: named by text, letter or number, distinguished by case and symbol, denied or doubted."""

import pytest

from allo.tasks.answers import verify_choice

Cases = list[tuple[str, str, bool]]
"""`(what follows "The answer is", the right option, whether it is right)`."""

OPTIONS: list[tuple[list[str], Cases]] = [
    (
        ["10", "12", "14", "16"],
        [
            ("probably (B)", "12", True), ("most likely B", "12", True), ("perhaps B.", "12", True),
            ("I think it is B", "12", True), ("clearly B, since 12 is even", "12", True),
            ("definitely not B", "12", False), ("probably not B", "12", False), ("unlikely B", "12", False),
            ("not B", "12", False), ("not (B)", "12", False), ("not B but C", "14", True),
            ("not B but C", "12", False), ("not B, but C", "14", True), ("(B), not (A)", "12", True),
            ("B, not A", "12", True), ("B instead of A", "12", True), ("instead of A, B", "12", True),
            ("B and not A", "12", True), ("(B) as opposed to (A)", "12", True), ("B (not A)", "12", True),
            ("(A) rather than (B)", "12", False), ("I don't think it's B", "12", False),
            ("B isn't right", "12", False), ("(B) isn't right", "12", False), ("(B) is wrong", "12", False),
            ("(B) is not correct", "12", False), ("B is incorrect", "12", False), ("B ❌", "12", False),
            ("neither A nor B", "10", False), ("neither A nor C but B", "12", True), ("either A or B", "10", False),
            ("A or B", "10", False), ("(A) or (B)", "10", False), ("A, or B", "10", False), ("B, C", "12", False),
            ("both A and B", "10", False), ("B or not B", "12", False), ("B, 14", "12", False),
            ("B, 14", "14", False), ("B - 14", "12", False), ("B: 12", "12", True), ("B) 12", "12", True),
            ("[B]", "12", True), ("【B】", "12", True), ("（Ｂ）", "12", True), ("Ⓑ", "12", True), ("B。", "12", True),
            ("B、12", "12", True), ("Option B", "12", True), ("option (B), 12", "12", True),
            ("the letter B", "12", True), ("choice B: 12", "12", True), ("B ✓", "12", True),
            ("B \u2714\ufe0f", "12", True), ("B \U0001f44d", "12", True), ("**B** ✅", "12", True),
            ("✅ B", "12", True), ("B!", "12", True), ("B?", "12", True), ("`B`", "12", True),
            ("\\boxed{B}", "12", True), ("\\boxed{\\text{(B)}}", "12", True), ("<answer>B</answer>", "12", True),
            ("\n- B", "12", True), ("\n- (B) 12", "12", True), ("\n```\nB\n```", "12", True),
            ("\n- A\n- B", "10", False), ("\n\n(B) 12", "12", True), (":\n**B**", "12", True), ("12.0", "12", True),
            ("12.00", "12", True), ("1.2e1", "12", True), ("twelve", "12", True), ("a dozen", "12", True),
            ("12.5", "12", False), ("-12", "12", False), ("120", "12", False), ("١٢", "12", True),
            ("१२", "12", True), ("１２", "12", True), ("12-14", "12", False), ("12 or 14", "12", False),
            ("12x", "12", False), ("B. Because it is even.", "12", True), ("B, which is not A", "12", True),
            ("B, although A is close", "12", True), ("(B) over (A)", "12", True), ("none of these", "12", False),
            ("unknown", "12", False), ("all of them", "12", False),
        ],
    ),
    (
        ["12", "12%"],
        [
            ("12%", "12", False), ("12 %", "12%", True),
        ],
    ),
    (
        ["J. K. Rowling", "Agatha Christie", "Mark Twain", "C. S. Lewis"],
        [
            ("C.", "Mark Twain", True), ("(C) Mark Twain", "Mark Twain", True),
            ("D. C. S. Lewis", "C. S. Lewis", True), ("C. S. Lewis", "Mark Twain", False),
            ("C. S. Lewis. He wrote it.", "C. S. Lewis", True), ("author C. S. Lewis.", "C. S. Lewis", True),
            ("C. S. Lewis or Mark Twain", "C. S. Lewis", False),
            ("J. K. Rowling, the author", "J. K. Rowling", True), ("C.S. Lewis", "C. S. Lewis", True),
            ("C.S. Lewis", "Mark Twain", False), ("not C. S. Lewis", "C. S. Lewis", False),
        ],
    ),
    (
        ["mold", "yeast", "virus", "E. coli", "amoeba"],
        [
            ("D. E. coli", "E. coli", True), ("E. amoeba", "amoeba", True), ("E", "amoeba", True),
            ("E.", "amoeba", True), ("the E. coli bacterium", "E. coli", True),
        ],
    ),
    (
        ["George Washington", "Abraham Lincoln"],
        [
            ("A. Lincoln", "George Washington", False), ("A. Lincoln", "Abraham Lincoln", True),
        ],
    ),
    (
        ["George Washington", "A. Lincoln"],
        [
            ("A. George Washington", "George Washington", True), ("A", "George Washington", True),
        ],
    ),
    (
        ["TT", "Tt", "tt"],
        [
            ("Tt", "tt", False), ("TT", "TT", True), ("tt", "tt", True), ("the genotype Tt, of course", "Tt", True),
            ("the genotype Tt, of course", "tt", False), ("(B) Tt", "Tt", True), ("tT", "Tt", False),
            ("C", "tt", True),
        ],
    ),
    (
        ["5 mW", "5 MW"],
        [
            ("5 mW", "5 mW", True), ("5 MW", "5 mW", False), ("about 5 MW", "5 MW", True),
            ("5 milliwatts", "5 mW", True), ("5 megawatts", "5 mW", False), ("5 mw", "5 mW", False),
            ("5", "5 mW", False),
        ],
    ),
    (
        ["C", "C++", "C#", "Java"],
        [
            ("C#", "C#", True), ("C++", "C++", True), ("the C++ language", "C++", True),
            ("the C++ language", "C", False), ("C", "C", True), ("the language C", "C", True),
            ("C++ and C#", "C#", False), ("(C) C#", "C#", True), ("Java, not C++", "Java", True),
        ],
    ),
    (
        ["5", "-5", "5%", "$5", "1/5"],
        [
            ("5%", "5%", True), ("5 percent", "5%", True), ("5", "5", True), ("-5", "-5", True), ("-5", "5", False),
            ("minus 5", "-5", True), ("$5", "$5", True), ("5 dollars", "$5", True), ("5 dollars", "5", False),
            ("0.2", "1/5", True), ("1/5", "5", False), ("5 %", "5", False), ("five", "5", True),
            ("\\$5", "$5", True), ("−5", "5", False), ("5,", "5", True), ("exactly $5, no more", "$5", True),
            ("-5 degrees", "5", False),
        ],
    ),
    (
        ["\U0001f34e", "\U0001f34c"],
        [
            ("\U0001f34c", "\U0001f34c", True), ("\U0001f34e", "\U0001f34c", False),
            ("\U0001f34e\U0001f34c", "\U0001f34e", False), ("\U0001f34e or \U0001f34c", "\U0001f34e", False),
            ("the apple \U0001f34e!", "\U0001f34e", True),
        ],
    ),
    (
        ["\U0001f34e", "\U0001f34f"],
        [
            ("\U0001f34e", "\U0001f34f", False),
        ],
    ),
    (
        ["✅", "❌"],
        [
            ("✅", "✅", True), ("❌", "❌", True), ("the ✅ mark", "✅", True),
        ],
    ),
    (
        ["\U0001f468", "\U0001f468\u200d\U0001f469\u200d\U0001f467"],
        [
            ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468", False),
            ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\u200d\U0001f469\u200d\U0001f467", True),
        ],
    ),
    (
        ["café", "tea"],
        [
            ("cafe\u0301.", "café", True), ("cafe", "café", False),
        ],
    ),
    (
        ["cafe\u0301", "tea"],
        [
            ("café", "cafe\u0301", True),
        ],
    ),
    (
        ["resume", "résumé"],
        [
            ("résumé", "resume", False),
        ],
    ),
    (
        ["only I", "only II", "I and II", "neither I nor II"],
        [
            ("that only II holds", "only II", True), ("I and II hold", "I and II", True),
            ("only I, not II", "only I", True), ("neither I nor II", "I and II", False),
            ("not neither I nor II", "neither I nor II", False),
        ],
    ),
    (
        ["I", "II", "III", "IV"],
        [
            ("II", "II", True), ("2", "II", True), ("IV", "III", False), ("Roman numeral III", "III", True),
            ("II or III", "II", False), ("B", "II", True), ("III", "II", False),
        ],
    ),
    (
        ["True", "False"],
        [
            ("False, because it is not true", "False", True), ("not False", "False", False), ("True", "True", True),
            ("not true", "True", False),
        ],
    ),
    (
        ["A+", "A", "A-", "B+"],
        [
            ("A+", "A+", True), ("A-", "A-", True), ("an A-, sadly", "A-", True), ("an A-, sadly", "A", False),
            ("A", "A", True), ("A+", "A", False),
        ],
    ),
    (
        ["vitamin A", "vitamin B"],
        [
            ("vitamin A", "vitamin A", True), ("the vitamin", "vitamin A", False),
            ("vitamin B, as said", "vitamin B", True),
        ],
    ),
    (
        ["5 m", "7 m"],
        [
            ("5 m/s", "5 m", False), ("5 meters", "5 m", True),
        ],
    ),
    (
        ["5 m", "5 km"],
        [
            ("5 km", "5 m", False),
        ],
    ),
    (
        ["H2O", "CO2", "Co"],
        [
            ("H2O", "H2O", True),
        ],
    ),
    (
        ["CO", "Co"],
        [
            ("CO", "Co", False), ("Co", "CO", False),
        ],
    ),
    (
        ["Na+", "Na"],
        [
            ("the Na+ ion", "Na+", True), ("the Na+ ion", "Na", False), ("Na", "Na", True),
        ],
    ),
    (
        ["<", ">", "="],
        [
            (">", ">", True), ("<", ">", False),
        ],
    ),
    (
        ["NaCl", "KCl"],
        [
            ("NaCl", "NaCl", True), ("nacl", "NaCl", True),
        ],
    ),
    (
        ["x^2", "x^3"],
        [
            ("x^2", "x^3", False),
        ],
    ),
    (
        ["x²", "x³"],
        [
            ("x²", "x²", True), ("x³", "x²", False),
        ],
    ),
    (
        ["pH", "Ph"],
        [
            ("pH", "Ph", False),
        ],
    ),
    (
        ["1", "2"],
        [
            ("the second one", "1", False),
        ],
    ),
    (
        ["Yes", "No"],
        [
            ("No, it is not.", "No", True), ("No — it doesn't.", "No", True), ("NO", "No", True), ("no", "Yes", False),
            ("Yes, it's not impossible.", "Yes", True), ("yes or no", "Yes", False), ("not yes", "Yes", False),
        ],
    ),
    (
        ["x > 3", "x > 5"],  # what is said is none of the options
        [
            ("x>3", "x > 3", True), ("so x > 3", "x > 3", True), ("x < 3", "x > 3", False), ("x = 3", "x > 3", False),
            ("x >= 3", "x > 3", False), ("x ≥ 3", "x > 3", False),
        ],
    ),
    (
        ["p + q", "q"],
        [
            ("p - q", "p + q", False), ("p * q", "p + q", False), ("p/q", "p + q", False), ("q + p", "q", False),
            ("~q", "q", False), ("-q", "q", False), ("q^2", "q", False), ("1/q", "q", False), ("$q$", "q", True),
            ("\\sqrt{q}", "q", False), ("|q|", "q", False), ("q.", "q", True), ("(q)", "q", True),
        ],
    ),
    (
        ["[1, 2)", "[3, 4)"],
        [
            ("[1,2)", "[1, 2)", True), ("(1, 2]", "[1, 2)", False), ("(1, 2)", "[1, 2)", False),
        ],
    ),
    (
        ["5 MW", "6 MW"],
        [
            ("5 mW", "5 MW", False), ("5 MW", "5 MW", True), ("5 megawatts", "5 MW", True),
        ],
    ),
    (
        ["H2O", "CO₂"],
        [
            ("H₂O", "H2O", True), ("CO2", "CO₂", True),
        ],
    ),
    (
        ["an apple", "an orange", "a plum"],
        [
            *((f"{denial} an apple.", "an apple", False) for denial in (
                "anything but", "everything but", "other than", "far from", "hardly", "without", "the opposite of",
            )),
            ("no apple.", "an apple", False), ("an apple? No, an orange.", "an apple", False),
            ("an apple is ruled out.", "an apple", False), ("without a doubt an apple.", "an apple", True),
            ("A, maybe B.", "an apple", False), ("A, possibly B.", "an apple", False), ("B? No, C.", "an orange", False),
            ("A... wait, no, it is C.", "an apple", False),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("choices", "cases"), OPTIONS)
def test_an_answer_names_one_option_or_is_wrong(choices: list[str], cases: Cases) -> None:
    def is_correct(said: str, answer: str) -> bool:
        space = "" if said[0] in ":\n" else " "
        return verify_choice(f"Let us see. The answer is{space}{said}", answer, choices).correct

    assert [case for case in cases if is_correct(*case[:2]) != case[2]] == []
