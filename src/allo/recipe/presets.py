"""Presets: named values of keys, for recipes that leave these keys out."""

from collections.abc import Mapping
from typing import Any, Literal

PresetName = Literal["paper"]
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # The published form (arXiv 2406.12606, section 4): AdamW's warm-up of all weights, and every token of which the implicit
    # reward is negative.
    "paper": {
        "locate": {"criterion": "warmup"},
        "score": {"scorer": "implicit", "weights": "indicator", "threshold": 0.5, "marked": "all"},
    },
}


def with_preset(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's fields with those of its preset where it has none; a block that is null stays so."""
    filled, name = dict(fields), fields.get("preset")
    # A value of another kind, such as a list, is refused by its field.
    for key, block in (PRESETS.get(name, {}) if isinstance(name, str) else {}).items():
        own = fields.get(key, {})
        filled[key] = {**block, **own} if isinstance(own, Mapping) else own
    return filled
