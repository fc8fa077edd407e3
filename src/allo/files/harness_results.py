"""The `harness` block of an evaluation file: a harness's results by model, beside the run's own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import FileHashes, RunFolder, read_json, remove, write_json
from allo.files.evaluation import SCHEMA
from allo.files.manifest import read_manifest, write_manifest

BLOCK = "harness"
# Results that differ in one of these are kept side by side; otherwise the later one replaces the earlier.
SAME = (
    *("harness", "task", "version", "harness_version", "num_fewshot", "limit"),
    *("num_problems", "num_all", "dtype", "chat_template", "generation"),
)
_DIGITS = 8  # of a fingerprint, to distinguish models with the same name
Entry = dict[str, Any]


def read_block(path: Path) -> dict[str, Entry]:
    """Return each model's `fingerprint`, `label` and `results` by name; empty without a file or block."""
    return dict(_content(path).get(BLOCK, {}))


def add(
    path: Path, name: str, *, label: str, fingerprint: str, result: Mapping[str, Any], replaces: bool
) -> str:
    """Add one result of a model to the file, and return its entry's name; everything else stays.

    If an entry of this name has a different fingerprint, `replaces=True` drops it and says so. Otherwise the new
    entry's name gets a fingerprint suffix.
    """
    content = _content(path)
    block = dict(content.get(BLOCK, {}))
    if replaces:
        block = kept(block, {name: fingerprint})
    elif block.get(name, {"fingerprint": fingerprint})["fingerprint"] != fingerprint:
        name, label = (f"{text} ({fingerprint[:_DIGITS]})" for text in (name, label))
    results = block.get(name, {}).get("results", [])
    others = [known for known in results if any(known.get(key) != result.get(key) for key in SAME)]
    block[name] = {"label": label, "fingerprint": fingerprint, "results": [*others, dict(result)]}
    write_json(path, content | {BLOCK: block})
    return name


def kept(block: Mapping[str, Entry], fingerprints: Mapping[str, str]) -> dict[str, Entry]:
    """Return the block without models whose fingerprint differs from the one in `fingerprints`; report what is
    dropped."""
    found = {}
    for name, entry in block.items():
        if fingerprints.get(name, entry["fingerprint"]) == entry["fingerprint"]:
            found[name] = entry
            continue
        tasks = ", ".join(dict.fromkeys(str(result["task"]) for result in entry["results"]))
        say(
            f"harness: {name} has other weights now, so its results on {tasks} are dropped; measure them again"
        )
    return found


@contextmanager
def amended(run: RunFolder, path: Path) -> Iterator[None]:
    """Keep a stage finished although the `with` body changes its output `path`; the run's folder must be held."""
    hashes = FileHashes(run.path / ".hashes.json")
    name = str(path.relative_to(run.path))
    before = hashes.of(path) if path.exists() else None
    yield
    manifest = read_manifest(run) or {"stages": {}}
    writers = [entry for entry in manifest["stages"].values() if entry["outputs"].get(name) == before]
    if before is not None and writers:
        for entry in writers:
            entry["outputs"][name] = hashes.of(path)
        write_manifest(run, manifest)


def leave_block(path: Path) -> None:
    """Remove everything from the file except the block, which outlives its evaluation."""
    try:
        block = read_block(path)
    except UserError:  # an unreadable evaluation has nothing to keep
        block = {}
    if block:
        write_json(path, {"schema": SCHEMA, BLOCK: block})
    else:
        remove(path)


def _content(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"schema": SCHEMA}
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: no evaluation of this version of allo (its `schema` is not {SCHEMA}), so nothing is added to "
            "it. Give another file."
        )
    return content
