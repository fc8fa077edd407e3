"""Recipes as YAML 1.2 text, and single keys of them on the command line."""

import re
from typing import Any

import yaml

from allo.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: PyYAML's own rule reads `5e-6` as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse(text: str) -> Any:
    """Plain values. Raises `yaml.YAMLError`."""
    return yaml.load(text, _Loader)


def override(fields: dict[str, Any], text: str) -> None:
    """Set what `text`, a dotted.key=value with the value in YAML, says. Raises `UserError` where it is not that."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text}: expected key=value, such as improve.density=0.2")
    try:
        place(fields, key, parse(value))
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: the value is not YAML: {error}") from error
    except UserError as error:
        raise UserError(f"--set {text}: {error}") from error


def place(fields: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key, in blocks made where they are missing. Raises `UserError` below a value."""
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
