"""All outcomes of `make families` for people: a table of families by checks, and a line for each that fails."""

from pathlib import Path
from typing import Any

from allo.files.artifacts import write_atomic

SIGNS = {"ok": "+", "refused": "refused", "wrong": "WRONG", "crash": "CRASH", "unreached": "."}


def write_tables(found: list[dict[str, Any]], path: Path) -> None:
    """Write a Markdown table to `path`, with what each failing check said below it."""
    names = max((list(each["checks"]) for each in found), key=len)
    lines = ["| family | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for each in found:
        kinds = [each["checks"].get(name, {"kind": "unreached"})["kind"] for name in names]
        cells = [SIGNS[kind] for kind in kinds]
        lines.append(f"| {each['family']} | " + " | ".join(cells) + " |")
    lines += ["", *failures(found), ""]
    write_atomic(path, "\n".join(lines))


def failures(found: list[dict[str, Any]]) -> list[str]:
    """Return a line for each family and check that does not hold."""
    return [
        f"- {each['family']} x {name}: {check['kind']}: {check['what']}"
        + (f" [{check['place']}]" if check["place"] else "")
        for each in found
        for name, check in each["checks"].items()
        if check["kind"] not in ("ok", "unreached")
    ]
