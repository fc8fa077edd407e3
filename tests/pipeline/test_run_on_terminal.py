"""A whole run on a terminal of 80 columns and in a pipe: tidy lines of our own, and nothing of the libraries."""

import io
import re
from contextlib import redirect_stderr, redirect_stdout

import pytest
from rich.console import Console

from allo import console
from allo.pipeline import run_all
from allo.recipe import load_recipe
from start_rows import rows, write
from tiny_run import steps, write_recipe

WIDTH = 80
RAW = ("{'", "it/s", "s/it", "Loading weights", "Warning", "warn(", "|#", "0%|")


class Screen(io.StringIO):
    """A terminal in memory."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return standard error on a terminal and in a pipe; standard output stays empty."""
    folder = tmp_path_factory.mktemp("shown")
    write(folder / "pairs.jsonl", [*rows("pairs", 20), rows("pairs", 1)[0] | {"chosen": "long " * 200}])
    training = dict.fromkeys(("locate", "forget", "improve"), steps(4))
    write_recipe(folder, data={"pairs": "pairs.jsonl"}, score={"scorer": "edit"}, **training)
    found, out = {}, io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TERM", "xterm")
        for place, file in (("terminal", Screen()), ("pipe", io.StringIO())):
            with redirect_stderr(file), redirect_stdout(out):
                shown = Console(stderr=True, highlight=False, emoji=False, width=WIDTH)
                patch.setattr(console, "console", shown)
                run_all(load_recipe("recipe.yaml", [f"out={place}"]), until="improve")
            found[place] = file.getvalue()
    assert out.getvalue() == ""
    return found


def pieces(text: str) -> list[str]:
    """Return the texts between two movements of the cursor, without colours."""
    return re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))


@pytest.mark.parametrize("place", ["terminal", "pipe"])
def test_nothing_raw_is_shown_and_no_line_is_wider_than_the_screen(said: dict[str, str], place: str) -> None:
    assert not [raw for raw in RAW if raw in said[place]], said[place]
    begins = (
        "pair ",
        "locate ",
        "forget ",
        "improve ",
        "evaluate ",
        "score ",
        "report ",
        " ",
        "sft ",
        "\u2501",
    )
    ours = [one for one in pieces(said[place]) if one.startswith(begins)]
    assert len(ours) > 20 and all(len(one) <= WIDTH for one in ours)


def test_each_stage_ends_with_what_it_did_in_words_and_units(said: dict[str, str]) -> None:
    for text in said.values():
        ended = [one for one in pieces(text) if "done in " in one]
        assert [one.split()[0] for one in ended] == ["sft", "pair", "locate", "score", "forget", "improve"]
        flat = " ".join(text.split())
        assert re.search(
            r"improve done in [\w ]+: \d+ rows, 1 dropped, \d steps, [\d,]+ weights trained", flat
        )
        assert "locate done in" in flat and "training state 5.06 MB" in flat
        assert "1 row is dropped (1 do not fit into max_length 128)" in flat


def test_a_terminal_shows_the_line_of_progress_and_one_line_a_logged_step(said: dict[str, str]) -> None:
    text = pieces(said["terminal"])
    steps = [one for one in text if re.match(r"improve   step \d/\d", one)]
    assert steps and all(re.search(r"loss [\d.]+ +margin .* accuracy +\d+%", one) for one in steps)
    # Which moments are drawn depends on the machine's speed.
    assert any(re.search(r"stage \d of 6, (sft|pair|locate|score|forget|improve)\b", one) for one in text)


def test_a_pipe_gets_the_begin_and_the_end_of_each_stage(said: dict[str, str]) -> None:
    assert "\r" not in said["pipe"] and "\x1b" not in said["pipe"]
    lines = said["pipe"].splitlines()
    assert "improve   stage 6 of 6 ..." in lines
    assert len([one for one in lines if one.endswith("...")]) == 6
    assert not [one for one in lines if "step 1" in one]
