"""Write docs/invariants.md: every property that a test holds for the whole, as its `invariant` marker says it.

python scripts/render_invariants.py            # write the page
python scripts/render_invariants.py --check    # exit with 1 if the page is out of date
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from generated import write_or_check

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "invariants.md"
HEAD = """# Invariants

Each line is a property of allo and the tests that hold it, by the room of the test. The page is generated from the
`invariant` markers of the tests: `python scripts/render_invariants.py`.
"""


def marked(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (property, test) for every `invariant` marker of a test file."""
    place = path.relative_to(ROOT).as_posix()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                yield from ((text, f"{place}::{node.name}") for text in _texts(decorator))
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            yield from ((text, place) for call in ast.walk(node.value) for text in _texts(call))


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.invariant":
        yield ast.literal_eval(node.args[0])


def page() -> str:
    """Return the page's Markdown, rooms and files in alphabetical order."""
    rooms: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        room = path.parent.name if path.parent.name != "tests" else "the whole"
        for text, test in marked(path):
            rooms[room][text].append(f"`{test}`")
    parts = [HEAD]
    for room, found in sorted(rooms.items()):
        parts += [f"\n## {room}\n\n", *(f"- {text} {', '.join(tests)}\n" for text, tests in found.items())]
    return "".join(parts)


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(), script="render_invariants.py"))
