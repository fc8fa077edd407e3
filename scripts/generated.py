"""Pages that scripts write, and the check that they are up to date."""

import sys
from pathlib import Path


def write_or_check(page: Path, text: str, *, script: str, arguments: list[str] | None = None) -> int:
    """Write the page; with `--check` only compare it. Return the exit code: 1 if it is out of date."""
    if "--check" not in (sys.argv[1:] if arguments is None else arguments):
        page.write_text(text, encoding="utf-8")
        return 0
    if page.is_file() and page.read_text(encoding="utf-8") == text:
        return 0
    print(f"{page.name} is out of date: run python scripts/{script}", file=sys.stderr)
    return 1
