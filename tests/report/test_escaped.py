"""Text in Markdown that a person also reads as it is: only what Markdown would read otherwise has a backslash."""

import random

import pytest
from markdown_it import MarkdownIt

from allo.report.tables import escaped

GITHUB = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PLAIN = (
    "raise improve.training.learning_rate (now 2e-05)",
    "p < .01, a > b, R&D, 3 * 4, ~5 minutes, C:\\runs\\mine",
    "[0.1, 0.2] of forget.training.max_steps",
    "mine_2 · smollm2-135m (1)",
)
HOSTILE = (
    *("*a* **b**", "_a_ __b__ snake_case _end", "a*b*c", "~a~ ~~b~~", "`code` ``x``", "[a](b) [c][d] ![e](f)", "[x]: y"),
    *("<b>bold</b> <!-- c --> <?p?> </i> <a@b.de> <http://x.de>", "&amp; &#42; &lt", "a | b || c", "\\* \\_ \\| \\\\ \\`"),
    *("# title", "> quoted", "- item", "+ item", "* item", "1. item", "2) item", "---", "===", "```", "    code"),
    *("a_*b*_", "*_", "**", "_", "word_", "_word", "é_a_", "·_a_", "1._x_", "a\\\n# b"),
)  # fmt: skip


def read(markdown: str) -> tuple[str, set[str]]:
    """Return the text that a reader of rendered Markdown sees, and the kinds of markup in it."""
    text, kinds = "", set()
    for token in GITHUB.parse(markdown):
        for inner in token.children or ():
            kinds.add(inner.type)
            text += inner.content
        kinds.add(token.type)
    return text, kinds - {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}


@pytest.mark.parametrize("text", PLAIN)
def test_text_that_markdown_shows_as_it_is_stays_so(text: str) -> None:
    assert escaped(text) == text


@pytest.mark.parametrize("text", [*PLAIN, *HOSTILE])
def test_rendered_text_is_the_given_one_without_markup(text: str) -> None:
    assert read(escaped(text)) == (" ".join(text.split()), set())


def test_any_mixture_of_signs_is_shown_as_it_is() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        text = "".join(draw.choices("ab1 _*~`|\\<>&;[]()!#-+=.:/é·", k=draw.randint(1, 9)))
        text = " ".join(text.split()) or "a"
        assert read(escaped(text)) == (text, set()), text


@pytest.mark.parametrize("text", [*PLAIN, *HOSTILE])
def test_a_cell_of_a_table_shows_the_given_text(text: str) -> None:
    cells, _ = read(f"| a |\n| :-- |\n| {escaped(text)} |\n")
    assert cells == "a" + " ".join(text.split())
