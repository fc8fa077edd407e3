"""A recipe's text: YAML with 1.2's numbers, and `--set key=value` on top of it."""

import re
from typing import Any

import yaml

from allo.errors import UserError


class Loader(yaml.SafeLoader):
    """YAML 1.2 floats: PyYAML's own rule reads `5e-6` as a string."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def set_value(fields: dict[str, Any], override: str) -> None:
    """Put an override, `dotted.key=value` with a value in YAML, into a recipe's fields.

    Raises `UserError` where it has another form, or its key leads through something that is no block.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: expected key=value, such as improve.density=0.2")
    *parents, last = key.split(".")
    target = fields
    for parent in parents:
        child = target.get(parent)
        if child is None:
            child = target[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {override}: {parent} is not a block of keys")
        target = child
    try:
        target[last] = yaml.load(value, Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not YAML: {error}") from error
