"""Write the tables of docs/diagnosis.md: the sentences of `allo.report.diagnosis`, and the bounds with their reasons.

python scripts/render_diagnoses.py            # write the tables
python scripts/render_diagnoses.py --check    # exit with 1 if the page is out of date
"""

import ast
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from allo.report import evidence, faults
from allo.report.diagnosis import DIAGNOSES, Diagnosis
from generated import write_or_check

PAGE = Path(__file__).resolve().parents[1] / "docs" / "diagnosis.md"


def sentences() -> str:
    """Return a table with a row per diagnosis."""
    rows = [
        f"| {each.name} | {' or '.join(each.stages)} | {_plain(each.happened)} {each.meaning} | {_keys(each)} |"
        for each in DIAGNOSES
    ]
    return "\n".join(["| found | in | it says | and advises |", "| :-- | :-- | :-- | :-- |", *rows, ""])


def _plain(template: str) -> str:
    return re.sub(r"\{(\w+)\}", r"*\1*", template)


def _keys(diagnosis: Diagnosis) -> str:
    """Return the advice; a key of several stages is shown without its stage."""
    said = []
    for change in diagnosis.changes:
        verb, key, *rest = change.replace(
            "{stage}.", "" if len(diagnosis.stages) > 1 else f"{diagnosis.stages[0]}."
        ).split()
        said.append(_plain(" ".join([verb, f"`{key}`", *rest])))
    return ", ".join(said)


def bounds() -> str:
    """Return a table of the named bounds with their reasons, read from the source."""
    rows = [
        f"| `{name}` | {value} | {reason} |"
        for module in (evidence, faults)
        for name, value, reason in _bounds(module.__file__)
    ]
    return "\n".join(["| bound | value | unit and reason |", "| :-- | --: | :-- |", *rows, ""])


def _bounds(path: str | None) -> Iterator[tuple[str, str, str]]:
    """Yield (name, value, docstring) of a module's numbers."""
    assert path is not None
    body = ast.parse(Path(path).read_text(encoding="utf-8")).body
    for one, after in pairwise(body):
        if (
            isinstance(one, ast.Assign)
            and isinstance(one.value, ast.Constant)
            and isinstance(after, ast.Expr)
        ):
            yield (
                ast.unparse(one.targets[0]),
                ast.unparse(one.value),
                " ".join(ast.literal_eval(after.value).split()),
            )


def page(text: str) -> str:
    """Return the page with its tables written anew between their marks."""
    for name, table in {"sentences": sentences(), "bounds": bounds()}.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, found = mark.subn(lambda match, table=table: f"{match[1]}\n{table}\n{match[2]}", text)
        assert found == 1, f"{PAGE.name} has no place for {name}"
    return text


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(PAGE.read_text(encoding="utf-8")), script="render_diagnoses.py"))
