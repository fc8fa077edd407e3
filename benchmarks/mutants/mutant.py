"""A mutant: a function changed in one place. It is known in another run by the lines that differ."""

import ast
import difflib
from collections import Counter
from collections.abc import Iterable, Iterator

TEXT, NOT_DRAWN, KILLED = "message text", "not drawn", "killed"
Mutant = dict[str, str]


def described(name: str, own: str, changed: str) -> Mutant:
    """Return a mutant from a function's source and its changed source, not run yet."""
    lines = list(difflib.unified_diff(own.splitlines(), changed.splitlines(), n=0, lineterm=""))[2:]
    function = name.rpartition(".")[2].partition("__mutmut_")[0]
    return {
        "name": name,
        "function": function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", "."),
        "was": "\n".join(line[1:].strip() for line in lines if line[0] == "-"),
        "became": "\n".join(line[1:].strip() for line in lines if line[0] == "+"),
        "status": TEXT if without_messages(own) == without_messages(changed) else NOT_DRAWN,
    }


def without_messages(source: str) -> str:
    """Return a function's syntax tree with every string that has a space in it left blank."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            node.value = ""
    return ast.dump(tree)


def identity(mutant: Mutant) -> tuple[str, str, str]:
    return mutant["function"], mutant["was"], mutant["became"]


def keyed(mutants: Iterable[Mutant]) -> Iterator[tuple[tuple[str, str, str, int], Mutant]]:
    """Yield each mutant under a key of its own: two changes of equal lines count up."""
    seen: Counter[tuple[str, str, str]] = Counter()
    for mutant in mutants:
        key = identity(mutant)
        seen[key] += 1
        yield (*key, seen[key]), mutant
