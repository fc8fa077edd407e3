"""Messages on a recipe's errors in the terms of its file: line, key, value found, values allowed."""

import difflib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from allo.recipe.own_code import FORM, PATTERN


def explain(
    recipe: type[BaseModel], path: Path, root: yaml.Node | None, problem: Any, *, given: Collection[str] = ()
) -> str:
    """Return one line on a pydantic problem in the YAML `root` of `path`: the place, the fault and a remedy.

    Keys in `given` came by `--set`, and are placed there.
    """
    # pydantic ends the location of a bad mapping key with "[key]".
    location = [part for part in problem["loc"] if isinstance(part, str | int) and part != "[key]"]
    key = ".".join(str(part) for part in location) or "recipe"
    line = _line(root, location)
    where = f"{path}:{line}" if line else str(path)
    if by_set := [each for each in given if f"{key}.".startswith(f"{each}.")]:
        where = "--set" if by_set == [key] else f"--set {by_set[0]}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        allowed = _allowed(recipe, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed here: {', '.join(allowed)}"
        return f"{where}: {key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: {key}: required key is missing"
    if problem["type"] == "secret":
        return f"{where}: {key}.{message}"
    if problem["type"] == "string_pattern_mismatch" and problem["ctx"]["pattern"] == PATTERN:
        message = FORM
    found, advice = problem["input"], ""
    if problem["type"] == "string_type" and isinstance(found, bool | int | float | None):
        advice = "; put it in quotes where the word itself is meant"
    return f"{where}: {key}: {message}; found {json.dumps(found, default=str)[:200]}{advice}"


def _line(root: yaml.Node | None, location: list[str | int]) -> int | None:
    """Return the 1-based line of a key in the file, or None if it is not there."""
    node, line = root, None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            entry = next(((k, v) for k, v in node.value if k.value == part), None)
            if entry is None:
                return line
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _allowed(block: type[BaseModel], location: list[str | int]) -> list[str]:
    """Return the keys of the block at `location` below `block`."""
    for part in location:
        if not isinstance(part, str) or part not in block.model_fields:
            continue
        block = next(iter(_blocks(block.model_fields[part].annotation)), block)
    return list(block.model_fields)


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for part in get_args(annotation) for block in _blocks(part)]
