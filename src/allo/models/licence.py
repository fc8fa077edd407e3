"""The licence that a base model states."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache

from allo.errors import UserError
from allo.files.json_text import parse_json
from allo.models.load import HUB_ID, README

UNKNOWN = "unknown"
_MOST = 1 << 20  # characters of a README's front matter, or of a config


def licence_of(ref: str) -> str:
    """Return the licence in the README or the config of a folder, or of a hub id's files in the cache.

    Nothing is downloaded. Without a statement it is "unknown".
    """
    for fields in _fields(ref):
        for key in ("license_name", "license"):
            found = fields.get(key)
            if isinstance(found, str) and found.strip():
                return " ".join(found.split())[:200]
    return UNKNOWN


def _fields(ref: str) -> Iterator[Mapping[str, Any]]:
    if (readme := _file(ref, README)) is not None:
        yield _front_matter(readme)
    if (config := _file(ref, "config.json")) is not None:
        with contextlib.suppress(UserError):
            found = parse_json(config.encode(), place="config.json")
            yield found if isinstance(found, dict) else {}


def _file(ref: str, name: str) -> str | None:
    """Return the beginning of a base's file; None if it has none here."""
    path: Path | None = Path(ref).expanduser() / name
    if path is not None and not path.parent.is_dir():
        cached = try_to_load_from_cache(ref, name) if HUB_ID.fullmatch(ref) else None
        path = Path(cached) if isinstance(cached, str) else None
    if path is None or not path.is_file():
        return None
    with contextlib.suppress(OSError), path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.read(_MOST)
    return None


def _front_matter(readme: str) -> Mapping[str, Any]:
    """Return a model card's metadata: the YAML between its first two lines of `---`."""
    lines = readme.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (rest := [line.strip() for line in lines[1:]]):
        return {}
    with contextlib.suppress(yaml.YAMLError, RecursionError, ValueError):
        found = yaml.safe_load("\n".join(lines[1 : 1 + rest.index("---")]))
        return found if isinstance(found, dict) else {}
    return {}
