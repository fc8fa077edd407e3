"""What Arena-Hard's style control knows of an answer: its length, and how much of it is Markdown."""

import re
from typing import Any

_CODE = re.compile(r"```([^`]*)```")
_MARKDOWN = {
    "header_count": {f"h{level}": rf"^{'#' * level}\s" for level in range(1, 7)},
    "list_count": {"ordered": r"^\s*\d+\.\s", "unordered": r"^\s*[-*+]\s"},
    "bold_count": {"**": r"\*\*[^*\n]+\*\*", "__": r"__[^_\n]+__"},
}
"""What is counted under which name, as by their `add_markdown_info.py`."""


def style_metadata(answer: str, *, num_tokens: int) -> dict[str, Any]:
    """The `metadata` of an answer, in the order in which `show_result.py` takes it: by place, the length first.

    Code does not count. As there, a code block's text is struck out wherever else it stands, too.
    """
    prose = answer
    for code in _CODE.findall(answer):
        prose = prose.replace(code, "")
    counts = {
        kind: {name: len(re.findall(pattern, prose, re.MULTILINE)) for name, pattern in patterns.items()}
        for kind, patterns in _MARKDOWN.items()
    }
    return {"token_len": num_tokens, **counts}
