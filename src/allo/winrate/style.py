"""Features for Arena-Hard's style control: an answer's length, and its amount of Markdown."""

import re
from typing import Any

_CODE = re.compile(r"```([^`]*)```")
_MARKDOWN = {
    "header_count": {f"h{level}": rf"^{'#' * level}\s" for level in range(1, 7)},
    "list_count": {"ordered": r"^\s*\d+\.\s", "unordered": r"^\s*[-*+]\s"},
    "bold_count": {"**": r"\*\*[^*\n]+\*\*", "__": r"__[^_\n]+__"},
}
"""Patterns to count by name, as in Arena-Hard's `add_markdown_info.py`."""


def style_metadata(answer: str, *, num_tokens: int) -> dict[str, Any]:
    """Return an answer's `metadata`, length first: `show_result.py` reads it by position.

    Code is not counted. As in Arena-Hard's tool, a code block's text is also removed wherever else it occurs.
    """
    prose = answer
    for code in _CODE.findall(answer):
        prose = prose.replace(code, "")
    counts = {
        kind: {name: len(re.findall(pattern, prose, re.MULTILINE)) for name, pattern in patterns.items()}
        for kind, patterns in _MARKDOWN.items()
    }
    return {"token_len": num_tokens, **counts}
