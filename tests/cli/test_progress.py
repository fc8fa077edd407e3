"""The line of progress and what is printed beside it: from a given clock, at any width, on a terminal and off it."""

import io
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from allo import console
from allo.console import Among, Run, Work, bar, hushed, line, note, say, showing, span, track
from allo.pipeline.estimate import Estimate
from allo.pipeline.outcome import in_words
from allo.training.run import show_step

Clock = Callable[[float], None]
OUR_WIDTHS = (40, 60, 80, 120)


class Screen(io.StringIO):
    """A terminal in memory."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sets the clock by which paces are measured."""
    now = [0.0]
    monkeypatch.setattr(console, "clock", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    shown = Screen()
    monkeypatch.setattr(
        console, "console", Console(file=shown, force_terminal=True, width=80, highlight=False)
    )
    return shown


def test_a_line_has_the_stage_the_step_and_both_estimates(at: Clock) -> None:
    with showing(Run(9)) as run, bar("", total=89, unit="step") as steps:
        run.begin(5, "improve", lambda taken, left: None if left is None else left + 660)
        assert line(80) == "stage 5 of 9, improve, step 0/89"  # nothing is measured yet
        at(24.0)
        steps(12)
        assert line(80) == "stage 5 of 9, improve, step 12/89, 3 min left, 14 min left in all"
        at(24.0 + 94.0)  # between two steps the time counts down
        assert line(80) == "stage 5 of 9, improve, step 12/89, 60 s left, 12 min left in all"
        at(9999.0)
        assert "less than 1 s left" in line(80)


def test_a_pace_is_that_of_this_process_alone(at: Clock) -> None:
    with bar("sample", total=100, done=90) as batches:
        at(10.0)
        assert line(80) == "sample, batch 90/100"
        batches(5)
        assert line(80) == "sample, batch 95/100, 10 s left"


@pytest.mark.parametrize("width", OUR_WIDTHS)
def test_a_line_fits_and_keeps_what_matters_most(at: Clock, width: int) -> None:
    with (
        showing(Among("trial 3 of 12, dpo", Work("", "trial", 12))),
        showing(Run(10)) as run,
        bar("start, a set with a long name, sampled", total=89, unit="step") as steps,
    ):
        run.begin(7, "round-1/improve", lambda *_: 7200.0)
        at(24.0)
        steps(12, "loss 0.6931")
        shown = line(width)
        assert len(shown) <= width and "round-1/improve" in shown and "step 12/89" in shown
        assert ("stage 7 of 10" in shown) == (width >= 80)


def test_which_of_several_runs_it_is_is_shown_with_the_time_of_all(at: Clock) -> None:
    trials = Work("", "trial", 4)
    at(60.0)
    trials(1)
    with showing(Among("trial 2 of 4, dpo", trials)), showing(Run(3)) as run:
        run.begin(2, "improve", lambda *_: 5.0)
        at(62.0)
        assert line(80) == "trial 2 of 4, dpo, stage 2 of 3, improve, 2 s so far, 3 min left in all"
    assert line(80) == ""


def test_an_estimate_is_by_the_record_the_tokens_and_the_pace_and_never_made_up() -> None:
    stages = ["sft", "pair", "locate", "forget", "improve", "evaluate"]
    tokens = {"locate": 100, "forget": 200, "improve": 300, "evaluate": 50}
    known = Estimate(stages, tokens=tokens, quick={"sft", "pair"}, samples=False)
    assert known.rest("sft")(1.0, None) is None, "no pace is measured"
    assert known.rest("locate")(4.0, None) is None
    assert known.rest("locate")(4.0, 6.0) == 6.0 + 10 * (200 + 300 + 50) / 100
    known.measured["locate"] = 20.0
    assert known.rest("forget")(10.0, None) == 30.0 + 60.0 + 10.0
    without = Estimate(stages, tokens={**tokens, "forget": 0}, quick={"pair"})
    assert without.rest("locate")(4.0, 6.0) is None, "sampling has a pace of its own, and forget no tokens"
    sampled = Estimate(["score", "evaluate"], {"sample": 8.0}, tokens={"sample": 4, "evaluate": 2})
    assert sampled.rest("evaluate")(1.0, None) == 3.0, "a stage that was done before has a pace, too"
    before = Estimate(stages, dict.fromkeys(stages, 7.0))
    assert before.rest("locate")(2.0, None) == 5.0 + 3 * 7
    assert before.rest("evaluate")(9.0, None) == 0.0
    assert before.rest("locate", spent=3.0)(2.0, None) == 2.0 + 3 * 7


def test_a_stage_of_a_round_goes_by_the_tokens_of_its_kind() -> None:
    stages = [f"round-{number}/{name}" for number in (1, 2) for name in ("begin", "improve")]
    known = Estimate(stages, tokens={"improve": 10}, quick={"begin"})
    assert known.rest("round-1/improve")(2.0, 8.0) == 8.0 + 10.0


def test_off_a_terminal_a_line_comes_now_and_then_and_nothing_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "MINUTE", 0.05)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any file for a terminal
    with showing(Run(9)) as run:
        run.begin(5, "locate", lambda *_: None)
        for _ in track(range(3), "", total=3, unit="step"):
            time.sleep(0.1)
    time.sleep(0.1)
    said = capsys.readouterr().err
    assert "\r" not in said and "\x1b" not in said
    assert said.count("\n") in range(2, 8)
    assert all(one.startswith("locate    stage 5 of 9, step ") for one in said.splitlines())


def test_quick_work_says_nothing_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", "sample", total=3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_quiet_leaves_what_was_not_progress(monkeypatch: pytest.MonkeyPatch, screen: Screen) -> None:
    monkeypatch.setattr(console._State, "no_progress", True)
    with showing(Run(2)), bar("", total=3, unit="step") as steps:
        note("improve", "stage 2 of 2 ...")
        show_step(steps, 1, {"loss": 0.5})
        say("2 rows are dropped")
    assert screen.getvalue() == "2 rows are dropped\n"


def test_a_hushed_run_keeps_its_line_of_progress(screen: Screen) -> None:
    with showing(Run(2)) as run, hushed(but_progress=True):
        run.begin(1, "improve", lambda *_: None)
        say("hidden")
        note("improve", "hidden")
    assert "hidden" not in screen.getvalue() and "stage 1 of 2, improve" in screen.getvalue()


@pytest.mark.parametrize("width", OUR_WIDTHS)
def test_what_is_printed_on_a_terminal_is_wrapped_between_words(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    shown = Screen()
    monkeypatch.setattr(console, "console", Console(file=shown, force_terminal=True, width=width))
    long = "/a/path/that/is/longer/than/any/terminal/is/wide/and/that/is/copied/as/a/whole/from/the/screen/to/another/x"
    say("  " + "word " * 30 + f"{long} {long}")
    note("improve", "done in 3 s: " + "twenty weights trained, " * 9)
    lines = shown.getvalue().splitlines()
    assert all(len(one) <= width for one in lines if long not in one)
    assert long in {one.strip() for one in lines}
    own = [one for one in lines if not one.startswith("  ") or one.startswith(" " * 10)]
    assert own[0].startswith("improve   done") and all(one.startswith(" " * 10) for one in own[1:])


@pytest.mark.parametrize("width", OUR_WIDTHS)
def test_a_logged_step_takes_one_line(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    shown = Screen()
    monkeypatch.setattr(console, "console", Console(file=shown, force_terminal=True, width=width))
    steps = Work("", "step", 12345)
    logs = {"loss": 0.69314718, "rewards/margins": -0.00123456, "rewards/accuracies": 0.8125}
    show_step(steps, 7, logs | {"learning_rate": 1.23456e-06, "grad_norm": 1.0, "kl": float("nan")})
    assert shown.getvalue().count("\n") == 1 and len(shown.getvalue().rstrip("\n")) <= width
    assert shown.getvalue().startswith("train     step     7/12345")
    assert width < 60 or "loss 0.6931" in shown.getvalue()
    assert steps.note == "loss 0.6931"


def test_a_logged_step_is_no_line_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("", total=9, unit="step") as steps:
        show_step(steps, 7, {"loss": 0.5})
        assert line(80).endswith("loss 0.5")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"rows": 1200, "dropped": 14, "steps": 1}, "1,200 rows, 14 dropped, 1 step"),
        ({"rows": 3, "dropped": 0}, "3 rows"),
        (
            {"density": 0.2000003, "trained_weights": 125645},
            "20% of all weights, 125,645 weights trained",
        ),
        ({"training_state_bytes": 12564488, "delta_bytes": 512}, "training state 12.6 MB, delta 512 bytes"),
        ({"mean_reward": 0.12345, "no_answer": 0}, "mean reward 0.123"),
        ({"own_count": 2, "own_bytes": 2048, "tool": "vllm"}, "2 own count, 2.05 kB own bytes, vllm tool"),
        ({}, ""),
    ],
)
def test_counts_are_said_in_words_with_units(counts: dict[str, float], words: str) -> None:
    assert in_words(counts) == words


def test_times_are_in_words() -> None:
    said = [span(seconds) for seconds in (0.4, 1, 89, 90, 3600, 5400, 9000, 86400 * 1.5, 86400 * 2)]
    assert said == [
        "less than 1 s",
        "1 s",
        "89 s",
        "2 min",
        "60 min",
        "1 h 30 min",
        "2 h 30 min",
        "1 day 12 h",
        "2 days",
    ]
