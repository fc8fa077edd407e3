"""The working run shown in docs/runs.md: the console prints the same lines for the same figures."""

import io
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from rich.console import Console

from allo import console
from allo.console import Run, bar, note, say, say_progress, showing
from allo.models.rows import Counts
from allo.pipeline.outcome import result_in_words
from allo.training.run import show_step

PAGE = Path(__file__).resolve().parents[2] / "docs" / "runs.md"
SHOWN = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
STEPS = (
    {"loss": 0.6512, "rewards/margins": 0.08772, "rewards/accuracies": 0.9375, "learning_rate": 4.1e-6},
    {"loss": 0.643, "rewards/margins": 0.1048, "rewards/accuracies": 0.9062, "learning_rate": 4.0e-6},
)
COUNTS = {"rows": 2848, "dropped": 12, "steps": 89, "trained_weights": 13451366, "density": 0.1}
COUNTS |= {"training_state_bytes": 242124588, "changed_weights": 13450912, "delta_bytes": 67256830}


class Screen(io.StringIO):
    """A file in memory that may be a terminal."""

    def __init__(self, *, on_terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: on_terminal


@pytest.mark.parametrize("on_terminal", [True, False])
def test_the_page_shows_what_is_printed(monkeypatch: pytest.MonkeyPatch, on_terminal: bool) -> None:
    now, screen = [0.0], Screen(on_terminal=on_terminal)
    monkeypatch.setattr(console, "clock", lambda: now[0])
    monkeypatch.setattr(console, "_displayed", nullcontext)  # drawn below, once
    own = Console(file=screen, width=80, force_interactive=on_terminal, highlight=False, color_system=None)
    monkeypatch.setattr(console, "console", own)
    with showing(Run(9)) as run, bar("", total=89, unit="step") as steps:
        run.begin(5, "improve", lambda taken, left: None if left is None else left + 660)
        if on_terminal:
            say(f"locate: {Counts(long=12).words(1200)}")
        else:
            note("improve", "stage 5 of 9 ...")
        now[0] = 24.0
        steps(12)
        for number, logs in enumerate(STEPS, start=11):
            show_step(steps, number, logs)
        if on_terminal:
            own.print(console._drawn())
        else:
            say_progress()
            note("improve", f"done in 3 min{result_in_words(COUNTS, ['07-improve'])}")
    printed = [line.rstrip() for line in screen.getvalue().splitlines()]
    page = SHOWN[0 if on_terminal else 1].splitlines()
    assert printed == [line.rstrip() for line in page]
    assert max(map(len, printed)) <= 80
