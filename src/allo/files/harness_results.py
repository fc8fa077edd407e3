"""The block `harness` of an evaluation's file: what a harness measured, by model, beside what the run measured."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import FileHashes, RunFolder, read_json, remove, write_json
from allo.files.manifest import read_manifest, write_manifest

SCHEMA = 1
BLOCK = "harness"
# Two results that differ in one of these stand beside each other; else the later one takes the other's place.
SAME = (
    *("harness", "task", "version", "harness_version", "num_fewshot", "limit"),
    *("num_problems", "num_all", "dtype", "chat_template", "generation"),
)
_DIGITS = 8  # of a fingerprint, to tell models of one name apart
Entry = dict[str, Any]


def read_block(path: Path) -> dict[str, Entry]:
    """By a model's name its `fingerprint`, `label` and `results`; empty where the file or its block is not there."""
    return dict(_content(path).get(BLOCK, {}))


def add(
    path: Path, name: str, *, label: str, fingerprint: str, result: Mapping[str, Any], replaces: bool
) -> str:
    """Add one result of a model to the file, and return the name that it stands under; everything else stays.

    Of what stands there under the model's name, but of other weights: with `replaces`, for a run's models in its own
    file, it goes, and that is said; else it is another model of that name, and the new one's name has a part of its
    fingerprint.
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
    """The block without models whose weights are others now: by name in `fingerprints`. Says what it drops."""
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
    """What a stage wrote to `path` is added to in the block, in a held folder; a stage that was done stays done."""
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
    """Remove the file but for the block, which outlives the evaluation that it stood beside."""
    try:
        block = read_block(path)
    except UserError:  # an evaluation that cannot be read is of no use to anyone
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
