"""Right answers of users' rows: read if their form is clear, refused if no sample could equal them."""

import json
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.files.records import Prompt
from allo.files.rows import Reading
from allo.stages.check import check
from allo.tasks.gold import check_gold
from allo.tasks.prompts import PromptSource, prompts_and_reading
from tiny_run import tiny

MELT = ["ice", "sand"]


def read(folder: Path, *rows: dict[str, Any]) -> tuple[list[Prompt], Reading]:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Q{n}?", **row}) + "\n" for n, row in enumerate(rows)))
    prompts, reading = prompts_and_reading(PromptSource(file=path))
    check_gold(prompts)
    return prompts, reading


@pytest.mark.parametrize(
    ("answer", "choices", "gold"),
    [
        *((letter, MELT, "ice") for letter in ("A", "a", "(A)", "A.", "A)", "[A]", "(a).", "Option A", "choice (A)")),
        ("B", MELT, "sand"),
        ("E", ["p q", "r s", "t u", "v w", "x y"], "x y"),
        *((text, MELT, "sand") for text in ("B. sand", "(B) sand", "B) Sand", "B: sand.")),
        # The options' own labels say which is which.
        ("A", ["B. sand", "A. ice"], "A. ice"),
        ("b", ["(a) ice", "(b) sand"], "(b) sand"),
        # An option's text is one, whatever it looks like.
        ("A", ["A", "B"], "A"),
        ("b", ["A", "B"], "B"),
        ("1", ["1", "2"], "1"),
        ("2", ["3", "2"], "2"),
        ("ice", MELT, "ice"),
        ("Ice.", MELT, "ice"),
        ("A cat", ["A cat", "a dog"], "A cat"),
    ],
)  # fmt: skip
def test_an_answer_that_names_one_option_is_read_as_that_option(
    tmp_path: Path, answer: str, choices: list[str], gold: str
) -> None:
    (prompt,), reading = read(tmp_path, {"answer": answer, "choices": choices})
    assert prompt.answer == gold
    assert sum(reading.mapped.values()) == (answer != gold)


@pytest.mark.parametrize(
    ("answers", "choices", "golds"),
    [
        ([0, 1], MELT, ["ice", "sand"]),
        ([1, 2], MELT, ["ice", "sand"]),
        (["0", "1"], MELT, ["ice", "sand"]),
        (["2", "1"], MELT, ["sand", "ice"]),
        ([1, "0"], MELT, ["sand", "ice"]),
    ],
)
def test_the_source_shows_whether_indices_count_from_0_or_1(
    tmp_path: Path, answers: list[Any], choices: list[str], golds: list[str]
) -> None:
    prompts, reading = read(tmp_path, *({"answer": answer, "choices": choices} for answer in answers))
    assert [prompt.answer for prompt in prompts] == golds
    assert list(reading.mapped.values()) == [len(answers)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"answer": 1, "choices": MELT}], "index into `choices`, and no row shows whether"),
        ([{"answer": "1", "choices": ["a b", "c d", "e f"]}], "index into `choices`, and no row shows"),
        (
            [{"answer": 0, "choices": MELT}, {"answer": 2, "choices": MELT}],
            "counts from 1, and in .*:1 from 0",
        ),
        ([{"answer": 2, "choices": ["2", "4", "8"]}], "may be an index or one of the `choices`"),
        ([{"answer": 5, "choices": MELT}], "`answer` 5: .*valid string"),
        ([{"answer": -1, "choices": MELT}], "`answer` -1: .*valid string"),
        ([{"answer": 2.5}], "`answer` 2.5: .*valid string"),
        ([{"answer": True, "choices": ["yes", "no"]}], "`answer` True: .*valid"),
        ([{"answer": ["ice"], "choices": MELT}], "`answer` .*valid"),
        ([{"answer": "A", "choices": ["x", "y"]}], "none of the `choices`, which are letters themselves"),
        ([{"answer": "C", "choices": MELT}], "'C' is none of its `choices`"),
        ([{"answer": "A. sand", "choices": MELT}], "'A. sand' is none of its `choices`"),
        ([{"answer": "3", "choices": MELT}], "'3' is none of its `choices`"),
        ([{"answer": "water", "choices": MELT}], "'water' is none of its `choices`"),
        ([{"answer": "", "choices": MELT}], "'' is none of its `choices`"),
        ([{"answer": "ice", "choices": []}], "'ice' is none of its `choices`"),
        ([{"answer": "A", "choices": ["A. ice", "A. sand"]}], "'A' is none of its `choices`"),
        ([{"answer": ""}], "no answer that can be read"),
        ([{"answer": "   "}], "no answer that can be read"),
        ([{"answer": "It is 4, so the answer is 5."}], "not taken by its own verifier"),
        ([{"answer": "2+2 #### "}], "nothing follows `####`"),
        ([{"answer": "Two and two.\n4"}], "not taken by its own verifier"),
        ([{"answer": "Add them. Then 4"}], "not taken by its own verifier"),
        ([{"answer": "Answer: 4"}], "not taken by its own verifier"),
        ([{"answer": "**Final answer:** 4"}], "not taken by its own verifier"),
        ([{"answer": "A: 4"}], "not taken by its own verifier"),
        ([{"answer": "Solution: 4"}], "not taken by its own verifier"),
        ([{"answer": "4\n5"}], "not taken by its own verifier"),
        ([{"answer": "4 (four)"}], "not taken by its own verifier"),
        ([{"answer": "4; because 2+2=4"}], "not taken by its own verifier"),
        ([{"answer": "probably 4"}], "not taken by its own verifier"),
        ([{"answer": "4, not 5"}], "not taken by its own verifier"),
        ([{"answer": "A", "options": MELT}], "`options` beside `answer`; rename it to `choices`"),
        (
            [{"answer": "A", "Answer_Choices": MELT}],
            "`Answer_Choices` beside `answer`; rename it to `choices`",
        ),
    ],
)
def test_an_answer_that_no_sample_can_equal_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(UserError, match=rf"mine(\.jsonl:|-)\d.*{message}"):
        read(tmp_path, *rows)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("2+2=<<2+2=4>>4\n#### 4", "4"),
        ("He has 1,000.\n#### 1,000", "1,000"),
        ("#### 7", "7"),
        ("One.\n#### 3\n#### 4 apples", "4 apples"),
        ("4", "4"),
        ("5 box", "5 box"),
        ("a=9", "a=9"),
        ("\\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_the_answer_of_a_worked_solution_follows_the_marks(tmp_path: Path, answer: str, gold: str) -> None:
    (prompt,), reading = read(tmp_path, {"answer": answer})
    assert prompt.answer == gold
    assert sum(reading.mapped.values()) == (answer != gold)


def test_equal_choices_are_reported(tmp_path: Path) -> None:
    (prompt,), reading = read(tmp_path, {"answer": "ice", "choices": ["ice", "sand", "sand "]})
    assert prompt.answer == "ice"
    assert reading.sentences == ["1 row: two of the `choices` are the same"]


@pytest.mark.parametrize("answer", ["C. S. Lewis", "J. R. R. Tolkien", "U.S. Army", "the U.S. Open"])
def test_initials_make_no_worked_solution(tmp_path: Path, answer: str) -> None:
    (prompt,), _ = read(tmp_path, {"answer": answer})
    assert prompt.answer == answer


def test_choices_that_differ_by_case_are_not_the_same(tmp_path: Path) -> None:
    _, reading = read(tmp_path, {"answer": "Rr", "choices": ["RR", "Rr", "rr"]})
    assert not reading.sentences


def test_all_refused_answers_are_counted() -> None:
    prompts = [Prompt(f"p{n}", "Q?", "water", choices=MELT) for n in range(9)]
    with pytest.raises(UserError, match=r"^prompt 'p0': .* 8 more: 'p1', 'p2', 'p3', 'p4', 'p5', \.\.\.\.$"):
        check_gold(prompts)


def test_a_verifier_that_does_not_read_the_choices_judges_without_them() -> None:
    prompt = Prompt("p", "Q?", "four", choices=["4", "5"])
    check_gold([prompt], verifier="final_answer")
    with pytest.raises(UserError, match="none of its `choices`"):
        check_gold([prompt], verifier="choice")


@pytest.mark.parametrize("key", ["data", "evaluate.sets.test"])
def test_gold_is_refused_before_the_first_stage_of_a_run(tmp_path: Path, key: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Q?", "answer": "water", "choices": ["ice", "sand"]}\n')
    with pytest.raises(UserError, match="prompt 'rows-1': `answer` 'water' is none of its `choices`"):
        check(tiny(tmp_path, f"{key}={{file: {path}}}"))


def test_a_run_reports_answers_that_were_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    row = '{"prompt": "Q?", "answer": "A", "choices": ["ice", "sand"], "meta": 1, "source\\u001b[31m": 2}\n'
    path.write_text(row + row)
    check(tiny(tmp_path, f"evaluate.sets.test={{file: {path}}}"))
    said = capsys.readouterr().err
    assert "evaluate.sets.test: 2 rows: `answer` is a letter, read as the option's text" in said
    assert "evaluate.sets.test: 1 row: the same as an earlier one, and kept" in said
    assert "evaluate.sets.test: ignored columns: `meta`, `'source\\x1b[31m'`" in said


def test_a_number_is_the_answer_that_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": "Q", "answer": answer}) + "\n" for answer in (4, -3, "4")))
    prompts, reading = prompts_and_reading(PromptSource(file=path))
    assert [prompt.answer for prompt in prompts] == ["4", "-3", "4"]
    assert "1 row: an earlier row asks the same and has another `answer`" in reading.sentences
    assert reading.duplicates == 2
