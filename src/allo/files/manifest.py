"""A run's `manifest.json`: the inputs and outputs of each stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from allo.files.artifacts import RunFolder, read_json, write_json
from allo.files.json_forms import checked, sealed, unsealed


@dataclass(frozen=True)
class _Entry:
    """The keys of a stage's record that other stages read."""

    hash: str
    outputs: dict[str, str]
    seconds: float
    counts: dict[str, Any]


@dataclass(frozen=True)
class _Form:
    identity: dict[str, str]
    stages: dict[str, _Entry]


def read_manifest(run: RunFolder, *, advice: str = "Start its run again.") -> dict[str, Any] | None:
    """Return the manifest's content, or None without one. Raises `UserError` if it is damaged."""
    if not run.manifest.exists():
        return None
    place = str(run.manifest)
    content = checked(read_json(run.manifest, advice=advice), dict[str, Any], place=place, advice=advice)
    content = unsealed(content, place=place, advice=advice)
    checked(content, _Form, place=place, advice=advice)
    return content


def write_manifest(run: RunFolder, content: Mapping[str, Any]) -> None:
    write_json(run.manifest, sealed(content))


def stages_done(run: RunFolder) -> dict[str, Any]:
    """Return each finished stage's record by name."""
    return dict((read_manifest(run) or {"stages": {}})["stages"])
