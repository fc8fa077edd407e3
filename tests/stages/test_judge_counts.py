"""Samples without a final answer, and samples that were cut, are counted and said after judging."""

import json
import re
from pathlib import Path

import pytest

from allo.errors import DivergedError, UserError
from allo.files.artifacts import RunFolder, write_jsonl
from allo.files.records import Completion, Verdict
from allo.files.rounds import of_round
from allo.stages.judge import SHOWN, run, without_answer
from tiny_run import tiny


def unanswered(index: int, text: str, *, finished: bool = True, prompt: str = "p0") -> Verdict:
    return Verdict(prompt, index, text, finished, False, 0.0, None, "final_answer")


def judged(
    folder: Path, samples: list[tuple[str, bool]], capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[dict[str, int], str]:
    """The stage's counts, and what it said, of one prompt's (text, finished) samples; the answer is 4."""
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"id": "p0", "prompt": "2+2?", "answer": "4"}) + "\n")
    where = RunFolder(folder)
    write_jsonl(where.completions, [Completion("p0", n, *one, 3) for n, one in enumerate(samples)])
    recipe = tiny(
        folder, f"data={{file: {rows}}}", "evaluate.sets={t: {task: planted_flaws, split: test}}", *more
    )
    counts = run(recipe, where)
    return counts, capsys.readouterr().err


def test_samples_without_an_answer_are_counted_with_an_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [("It is 4.", True)] * 5 + [("so we add", False)] * 2 + [("The answer is 4.", True)]
    counts, said = judged(tmp_path, samples, capsys, "judge.max_unanswered=1.0")
    assert counts == {"completions": 8, "correct": 1, "no_answer": 7, "unfinished": 2}
    (line,) = [line for line in said.splitlines() if line.startswith("judge:")]
    assert "7 of 8 samples have no final answer" in line and "prompt 'p0', sample 0" in line
    assert "'It is 4.'" in line and "2 of them were cut" in line
    assert "sample.max_new_tokens" in line and "judge.verifier" in line and "prompt ask for" in line


ANSWERED, BARE, CUT = ("The answer is 4.", True), ("It is 4.", True), ("so we add", False)


@pytest.mark.invariant("A run stops if more than half of its samples have no final answer that can be read.")
@pytest.mark.parametrize("bare", [BARE, CUT])
def test_a_run_of_which_most_samples_have_no_answer_stops_and_names_the_other_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bare: tuple[str, bool]
) -> None:
    with pytest.raises(UserError) as refusal:
        judged(tmp_path, [ANSWERED] * 2 + [bare] * 3, capsys)
    for word in (
        "3 of 5 samples have no final answer",
        "judge.function",
        "judge.reward_model",
        "max_unanswered",
    ):
        assert word in str(refusal.value)
    assert not RunFolder(tmp_path).verdicts.exists()


def test_a_run_of_which_half_of_the_samples_have_no_answer_goes_on_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts, said = judged(tmp_path, [ANSWERED] * 3 + [BARE] * 3, capsys)
    assert counts["no_answer"] == 3 and "3 of 6 samples have no final answer" in said


def test_a_later_round_without_answers_has_diverged(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "p0", "prompt": "2+2?", "answer": "4"}) + "\n")
    recipe = tiny(tmp_path, f"data={{file: {rows}}}", "rounds=2")
    write_jsonl(RunFolder(tmp_path).completions, [Completion("p0", 0, *BARE, 3)])
    with pytest.raises(DivergedError, match="round 2: judge: 1 of 1 samples have no final answer"):
        run(of_round(recipe, 2), RunFolder(tmp_path))


def test_nothing_is_said_if_every_sample_has_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts, said = judged(tmp_path, [("The answer is 4.", True), ("The answer is 5.", False)], capsys)
    assert counts == {"completions": 2, "correct": 1, "no_answer": 0, "unfinished": 1}
    assert "no final answer" not in said


def test_samples_that_were_all_cut_need_more_tokens_and_nothing_else() -> None:
    line = without_answer([unanswered(0, "so", finished=False)], num=3, max_new_tokens=40)
    assert "raise sample.max_new_tokens (40)" in line and "verifier" not in line
    line = without_answer([unanswered(0, "so")], num=3, max_new_tokens=40)
    assert "max_new_tokens" not in line and "verifier" in line


def test_a_sample_that_ended_by_itself_is_the_example() -> None:
    cut, ended = unanswered(0, "we add", finished=False), unanswered(1, "It is blue.")
    assert "'It is blue.'" in without_answer([cut, ended], num=2, max_new_tokens=8)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\nb\r\nc\u2028d\x85e\x0bf",
        "\x1b[2J\x1b]0;title\x07red\x9b31m",
        "right\u202eto left\u2066",
        "half \ud800",
        "[bold]markup[/bold] 'quotes' \"and\" \\",
        "word " * 5000,
        "🙂" * 300,
    ],
)
def test_an_example_is_one_short_line_without_control_characters(text: str) -> None:
    line = without_answer([unanswered(0, text)], num=1, max_new_tokens=8)
    assert len(line) < 1000 and len(line.splitlines()) == 1 and line.isprintable()
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", line)
    assert SHOWN <= 100 and ("…" in line) == (len(text) > SHOWN)


def test_a_prompts_id_from_a_file_is_escaped_too() -> None:
    line = without_answer([unanswered(0, "so", prompt="\x1b[31m" + "p" * 500)], num=1, max_new_tokens=8)
    assert line.isprintable() and len(line) < 1000
