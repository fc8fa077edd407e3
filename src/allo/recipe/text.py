"""Recipes as YAML 1.2 text, and single keys on the command line."""

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from allo.errors import UserError

LARGEST = 1 << 20
"""Most characters of a recipe; the longest in use have some thousands."""
DEEPEST = 100
"""Most blocks inside each other."""
MOST_VALUES = 100_000
"""Most keys and values, counting each repetition by an alias: a few lines of aliases can stand for billions."""
MOST_DIGITS = 400
"""Most digits of one number; the largest double has 309."""
_TAG = "tag:yaml.org,2002:"
_TAGS = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}
# PyYAML follows YAML 1.1, which reads `5e-6` as a string, `1:30` as 90, `010` as 8 and `2024-01-01` as a date. These
# rules read the first as a number and the others as strings, which the recipe then refuses by their key.
_RULES = {
    "bool": (r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)", "-+0123456789"),
    "float": (
        r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF|nan|NaN|NAN))",
        "-+0123456789.",
    ),
    "merge": ("<<", "<"),
    "null": (r"~|null|Null|NULL|", "~nN"),
}


class _Loader(yaml.SafeLoader):
    """A loader of only text, numbers, true, false, null, lists and blocks, with limited depth."""

    yaml_implicit_resolvers = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"blocks or lists more than {DEEPEST} inside each other",
                problem_mark=self.peek_event().start_mark,
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes whatever any YAML reader would not take for text."""


for _name, (_pattern, _first) in _RULES.items():
    _rule = re.compile(f"^(?:{_pattern})$")
    _Loader.add_implicit_resolver(_TAG + _name, _rule, [*_first, ""] if _name == "null" else list(_first))
    _Dumper.add_implicit_resolver(_TAG + _name, _rule, [*_first, ""] if _name == "null" else list(_first))


def parse(text: str, *, where: Callable[[int], str], within: str = "") -> tuple[Any, yaml.Node | None]:
    """Return the plain values of a YAML text, and its nodes, which know their lines.

    Args:
        where: turns a line, from 1, into the beginning of an error.
        within: the key under which the values will be set.

    Raises:
        UserError: the text is not YAML, too large or deep, has aliases of too many values, a repeated or non-text key, a
            tag, or a number that is too long or not finite.
    """
    if len(text) > LARGEST:
        raise UserError(f"{where(1)}: {len(text):,} characters, and a recipe has at most {LARGEST:,}.")
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is not None:
                _Check(loader, where).look_at(root, [within] if within else [])
            return (None if root is None else loader.construct_document(root)), root
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        quotes = "; put a text that begins with * in quotes" if "alias" in said else ""
        raise UserError(f"{where(mark.line + 1 if mark else 1)}: not YAML: {said}{quotes}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where(1)}: not YAML: {error}") from error


class _Check:
    """A check of every node as often as the text refers to it, so that aliases count with their expanded size."""

    def __init__(self, loader: _Loader, where: Callable[[int], str]) -> None:
        self._loader = loader
        self._where = where
        self._values = 0

    def look_at(self, node: yaml.Node, path: list[str]) -> None:
        self._values += 1
        if self._values > MOST_VALUES:
            self._refuse(node, [], f"its aliases stand for more than {MOST_VALUES:,} values; write them out")
        if len(path) > DEEPEST:
            self._refuse(node, [], f"more than {DEEPEST} blocks inside each other, or an alias of itself")
        if node.tag not in _TAGS:
            self._refuse(node, path, f"the tag {node.tag.replace(_TAG, '!!')} is not read; give plain values")
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for number, each in enumerate(node.value):
                self.look_at(each, [*path, str(number)])
        elif isinstance(node, yaml.ScalarNode):
            self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: list[str]) -> None:
        lines: dict[str, int] = {}
        for key, value in node.value:
            is_merge = key.tag == f"{_TAG}merge"
            if not (is_merge or key.tag == f"{_TAG}str") or not isinstance(key, yaml.ScalarNode):
                shown = f"`{key.value}`" if isinstance(key, yaml.ScalarNode) else "a list or block"
                self._refuse(key, path, f"the key {shown} is no text; keys are names, in quotes where needed")
            if not is_merge:
                self._scalar(key, path)
            line = key.start_mark.line + 1
            if key.value in lines:
                self._refuse(
                    key,
                    [*path, key.value],
                    f"the key is there twice, in line {lines[key.value]} and in line {line}; keep one of them",
                )
            lines[key.value] = line
            self.look_at(value, [*path, key.value])

    def _scalar(self, node: yaml.ScalarNode, path: list[str]) -> None:
        text, kind = str(node.value), node.tag.removeprefix(_TAG)
        if bad := next((each for each in text if each == "\0" or "\ud800" <= each <= "\udfff"), None):
            self._refuse(node, path, f"the character {bad!r} is no text; remove it")
        if kind in ("str", "map", "seq"):
            return
        plain = self._loader.resolve(yaml.ScalarNode, text, (True, False)).removeprefix(_TAG)
        if kind != plain and (kind, plain) != ("float", "int"):
            self._refuse(node, path, f"{text[:40]!r} is no value of the tag !!{kind}; remove the tag")
        if kind in ("int", "float") and len(text) > MOST_DIGITS:
            self._refuse(node, path, f"a number of {len(text)} digits, and at most {MOST_DIGITS} are read")
        if kind == "float" and not math.isfinite(self._loader.construct_yaml_float(node)):
            self._refuse(node, path, f"{text[:40]} is not finite; give a number")

    def _refuse(self, node: yaml.Node, path: list[str], why: str) -> NoReturn:
        key = f"{'.'.join(path)}: " if path else ""
        raise UserError(f"{self._where(node.start_mark.line + 1)}: {key}{why}.")


def dump(fields: Any) -> str:
    """Return plain values as YAML that `parse` reads back equal."""
    return yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def override(fields: dict[str, Any], text: str) -> str:
    """Apply `text`, a dotted.key=value with the value in YAML; return the key. Raises `UserError` for any other form."""
    key, value = assignment(text)
    try:
        place(fields, key, value)
    except UserError as error:
        raise UserError(f"--set {text}: {error}") from error
    return key


def assignment(text: str) -> tuple[str, Any]:
    """Return the key and the value of a dotted.key=value. Raises `UserError` for any other form."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text}: expected key=value, such as improve.density=0.2")
    return key, parse(value, where=lambda _: f"--set {text[:200]}", within=key)[0]


def place(fields: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key, adding missing blocks. Raises `UserError` if a parent is not a block."""
    *parents, last = key.split(".")
    target = fields
    for parent in parents:
        child = target.get(parent)
        if child is None:
            child = target[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"{parent} is not a block of keys")
        target = child
    target[last] = value


def with_values(text: str, values: Mapping[str, Any], *, reasons: Mapping[str, Sequence[str]] = {}) -> str:
    """Return a recipe's text with other values at dotted keys; its comments stay.

    A top-level key is written again if a value in its block changes; a new one is added at the end. `reasons` are
    comments above a top-level key.
    """
    fields, root = parse(text, where=lambda line: f"line {line}")
    for key, value in values.items():
        place(fields, key, value)
    lines = text.splitlines()
    starts = {key.value: key.start_mark.line for key, _ in root.value} if root is not None else {}
    ends = dict(zip(starts, [*list(starts.values())[1:], len(lines)], strict=True))
    changed = {key.split(".")[0] for key in values}
    for name in reversed(starts):
        block = lines[starts[name] : ends[name]]
        while block and (not block[-1].strip() or block[-1].startswith("#")):
            block.pop()  # the comments of the next key
        written = _block(name, fields[name]) if name in changed else block
        lines[starts[name] : starts[name] + len(block)] = [*_comments(reasons.get(name, ())), *written]
    for name in [name for name in fields if name not in starts]:
        lines += [*_comments(reasons.get(name, ())), *_block(name, fields[name])]
    return "\n".join(lines) + "\n"


def _comments(sentences: Sequence[str]) -> list[str]:
    return [f"# {line}" for sentence in sentences for line in textwrap.wrap(sentence, 110)]


def _block(name: str, value: Any) -> list[str]:
    """Return the lines of a top-level key, short blocks in one line."""
    style = None if isinstance(value, dict) else False
    text = yaml.dump(
        {name: value},
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=style,
        width=110,
    )
    return str(text).splitlines()


def read_text(path: Path) -> str:
    """Return the text of a recipe's file, cut where it is longer than any that `parse` takes."""
    try:
        with path.open("rb") as file:
            return file.read(4 * LARGEST + 1).decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the recipe ({error.strerror}). Give the path of a YAML file."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 text ({error.reason}). Give the path of a YAML file.") from error
