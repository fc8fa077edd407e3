"""Text on a terminal: that of servers, files and models is shown, and its control codes are not obeyed."""

import ast
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from allo import cli
from allo.console import bar, line, printable, say, tell
from allo.errors import UserError
from allo.report import tables
from allo.winrate import figures as winrate_show

SOURCE = Path(__file__).resolve().parent.parent / "src" / "allo"

# Text of others, and what is left of it.
HOSTILE = {
    "colour": ("\x1b[31mred\x1b[0m", "red"),
    "clear": ("a\x1b[2J\x1b[Hb", "ab"),
    "title": ("\x1b]0;owned\x07x", "x"),
    "title, other end": ("\x1b]2;owned\x1b\\x", "x"),
    "link": ("\x1b]8;;http://evil.example/\x1b\\click\x1b]8;;\x1b\\", "click"),
    "clipboard": ("\x1b]52;c;cm0gLXJm\x07x", "x"),
    "device string": ("\x1bPq#0;2\x1b\\x", "x"),
    "8-bit colour": ("\x9b31mred\x9b0m", "red"),
    "8-bit title": ("\x9d0;owned\x9cx", "x"),
    "reset": ("a\x1bcb", "ab"),
    "character set": ("a\x1b(0b", "ab"),
    "query": ("\x1b[6n\x1b[cx", "x"),
    "unfinished": ("x\x1b[31", "x31"),
    "unfinished title": ("\x1b]0;never ends", "0;never ends"),
    "lone escapes": ("\x1b\x1b\x1b", ""),
    "nested": ("\x1b\x1b[0m[31mx", "[31mx"),
    "bell and backspace": ("pass\x08\x08\x08\x08\x07word", "password"),
    "overwritten": ("bad\rgood", "bad good"),
    "windows line": ("one\r\ntwo", "one\ntwo"),
    "form feed": ("a\x0bb\x0cc\x85d", "abcd"),
    "nul": ("a\x00b\x7fc", "abc"),
    "override": ("safe\u202egnp.exe\u202c", "safegnp.exe"),
    "isolates": ("\u2066a\u2067b\u2068c\u2069", "abc"),
    "embeddings": ("\u202aa\u202bb\u202dc", "abc"),
    "marks": ("a\u200eb\u200fc\u061cd", "abcd"),
    "zero width": ("a\u200bb\ufeffc\u2060d", "abcd"),
    "separators": ("a\u2028b\u2029c", "abc"),
    "tags": ("a\U000e0041\U000e007fb", "ab"),
    "fillers": ("a\u3164b\u115fc\u00add", "abcd"),
    "half a pair": ("a\ud83db", "ab"),
}
FINE = [
    "plain",
    "two\nlines\twith tabs",
    "é ü ß 漢字 हिन्दी",
    "עברית العربية",
    "👩\u200d🔬",
    "می\u200cخواهم",
    "[bold]x[/bold] :warning:",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_text_loses_what_a_terminal_obeys_or_hides(name: str) -> None:
    text, left = HOSTILE[name]
    assert printable(text) == left
    assert printable(printable(text)) == left


@pytest.mark.parametrize("text", FINE)
def test_text_of_any_language_stays(text: str) -> None:
    assert printable(text) == text


def test_a_long_hostile_text_takes_no_time() -> None:
    for unit in ("\x1b]", "\x9d", "\x1b[", "\x1b", "\x9b1;", "\x1b]8;;"):
        assert "\x1b" not in printable(unit * 200_000) and "\x9d" not in printable(unit * 200_000)


@pytest.mark.parametrize("name", HOSTILE)
def test_every_way_to_the_screen_is_clean(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, left = HOSTILE[name]
    say(text)
    tell(text)
    shown = capsys.readouterr()
    assert (shown.err, shown.out) == (f"{left}\n", f"{left}\n")

    def refuse() -> None:
        raise UserError(f"file.jsonl:3: {text}\nsecond line")

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == f"allo: file.jsonl:3: {left}\nsecond line\n"


def test_a_bars_note_is_clean() -> None:
    with bar(HOSTILE["title"][0], total=1) as advance:
        advance(1, HOSTILE["link"][0])
        assert line(80) == "x, batch 1/1, click, less than 1 s left"


def record(name: str) -> dict[str, Any]:
    summary = {"num_prompts": 0, "win_rate": None, "length_controlled": None}
    counts = {"prompts": 1, "without_counterpart": 0, "identical": 0, "replies": 0}
    counts |= {"prompt_tokens": 0, "completion_tokens": 0}
    side = {"name": name}
    unread = {"unread": {name: 1}}
    return {"set": name, "model": side, "baseline": side, "judge": {"model": name}} | {
        "summary": summary,
        "counts": counts | unread,
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_tables_and_reports_are_clean(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = HOSTILE[name]
    winrate_show.show([record(text)])
    shown = capsys.readouterr().out
    assert printable(shown) == shown
    written = tables.escaped(f"a{text}b")
    assert printable(written) == written


PRINTING = ("print", "typer.echo", "click.echo", "sys.stdout.write", "sys.stderr.write")


def test_a_terminal_gets_our_own_colours_and_none_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("allo.console.console", Console(file=screen, force_terminal=True, highlight=False))
    say("".join(text for text, _ in HOSTILE.values()))
    assert "\x1b" not in screen.getvalue()


def test_nothing_is_printed_past_the_console() -> None:
    """Tables are printed by the console of rich, their cells made by `cell`; other text is `printable`."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and path.name != "console.py":
                called = ast.unparse(node.func)
                if called in PRINTING and "printable(" not in ast.unparse(node):
                    found.append(f"{path.name}:{node.lineno}: {called}")
                if called in ("table.add_row", "shown.add_row") and "cell" not in ast.unparse(node):
                    found.append(f"{path.name}:{node.lineno}: {called}")
    assert found == []
