"""The verdict of a judge's reply: on the last line, outside thoughts and quotations."""

import pytest

from allo.winrate.wording import NO_TEXT, NO_VERDICT, TWO_VERDICTS, UNFINISHED_THOUGHT, read_verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("<think>The second? Verdict: 2\n</think>\nVerdict: 1", "first"),
        ("<think>\nVerdict: 2\n</think>\nVerdict: 1", "first"),
        ("Verdict: 2\n</think>\nBoth fine.\nVerdict: 1", "first"),
        ("[THINK]\nVerdict: 1\n[/THINK]\nVerdict: tie", "tie"),
        (
            "<|channel|>analysis<|message|>Verdict: 1<|end|><|start|>assistant<|channel|>final<|message|>Verdict: 2<|return|>",
            "second",
        ),
        ("The format is\n> Verdict: 2\nand mine is\nVerdict: 1", "first"),
        ("Reasons.\n```\nVerdict: 1\n```", "first"),
        ("Both fine.\nVerdict: 1", "first"),
        ("verdict: 2", "second"),
        ("Reasons.\n\n**Verdict: tie**\n", "tie"),
        ("Reasons.\n**Verdict:** 2.", "second"),
        ("`Verdict: 1`  \n```", "first"),
        ("# VERDICT: TIE", "tie"),
        ("Verdict: 1\nSo the first it is.\nVerdict: 1", "first"),
    ],
)
def test_a_verdict_stands_after_thoughts_and_outside_quotations(reply: str, verdict: str) -> None:
    assert read_verdict(reply) == (verdict, "")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("<think>So it is\nVerdict: 1", UNFINISHED_THOUGHT),
        ("<thinking>One of them.</thinking><thinking>\nVerdict: 1", UNFINISHED_THOUGHT),
        ("<|channel|>analysis<|message|>So\nVerdict: 1", UNFINISHED_THOUGHT),
        ("<think>All is said.\nVerdict: 1\n</think>", NO_TEXT),
        ("> Verdict: 1", NO_VERDICT),
        ("Reasons.\n  > **Verdict: 1**", NO_VERDICT),
        ("Verdict: t\u0131e", NO_VERDICT),
        ("Verdict: T\u0130E", NO_VERDICT),
        ("verd\u0131ct: 1", NO_VERDICT),
        ("", NO_TEXT),
        (" \n", NO_TEXT),
        ("1", NO_VERDICT),
        ("The first answer is better.", NO_VERDICT),
        ("Verdict: 1 or 2", NO_VERDICT),
        ("Verdict: 12", NO_VERDICT),
        ("Verdict: 3", NO_VERDICT),
        ("Verdict: the first", NO_VERDICT),
        ("My verdict: 1", NO_VERDICT),
        ("Verdict: 1/2", NO_VERDICT),
        ("Verdict: \u00b2", NO_VERDICT),
        ('"Verdict: 1"', NO_VERDICT),
        ("Verdict: 1\n\nBecause it is shorter.", NO_VERDICT),
        ("Verdict: 1\nNo, wait, there is more to say", NO_VERDICT),
        ("Verdict: 1\nOn second thoughts:\nVerdict: 2", TWO_VERDICTS),
        ("Verdict: 1\nVerdict: 2\nVerdict: tie", TWO_VERDICTS),
    ],
)
def test_a_verdict_that_is_not_sure_is_unread(reply: str, reason: str) -> None:
    assert read_verdict(reply) == (None, reason)
