"""The stages in order. What is done is skipped, what was cut short goes on, what changed is done anew."""

import contextlib
import fcntl
import importlib
import importlib.metadata
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allo.artifacts import FileHashes, RunFolder, read_json, remove, sha256_json, write_atomic, write_json
from allo.console import say
from allo.errors import UserError
from allo.recipe import Recipe, save_recipe

SCHEMA = 1
PACKAGES = ("allo-align", "torch", "transformers", "accelerate", "datasets", "safetensors", "numpy")


@dataclass(frozen=True)
class Stage:
    """One verb. `reads` and `writes` are names in the run folder; `keys` the recipe blocks it depends on."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    keys: tuple[str, ...]

    def run(self, recipe: Recipe, run: RunFolder) -> dict[str, Any]:
        counts: dict[str, Any] = importlib.import_module(f"allo.stages.{self.name}").run(recipe, run)
        return counts


MODEL = ("model", "trust_remote_code", "pad_token", "dtype", "device", "max_length", "seed")
PROMPTS = ("data_folder", "chat", "seed")
STAGES = (
    Stage("sft", (), ("00-sft",), (*MODEL, *PROMPTS, "sft")),
    Stage("sample", ("00-sft",), ("01-completions.jsonl",), (*MODEL, *PROMPTS, "data", "sample")),
    Stage("judge", ("01-completions.jsonl",), ("02-verdicts.jsonl",), (*PROMPTS, "data", "judge")),
    Stage(
        "pair",
        ("02-verdicts.jsonl",),
        ("03-pairs.jsonl", "03-wrong.jsonl"),
        (*PROMPTS, "data", "pair"),
    ),
    Stage(
        "locate",
        ("00-sft", "03-pairs.jsonl"),
        ("04-importance.safetensors", "04-warmup"),
        (*MODEL, "locate", "score.scorer", "forget.density", "improve.density"),
    ),
    Stage(
        "score", ("00-sft", "03-wrong.jsonl", "04-warmup"), ("05-token-scores.parquet",), (*MODEL, "score")
    ),
    Stage(
        "forget",
        ("00-sft", "03-wrong.jsonl", "04-importance.safetensors", "05-token-scores.parquet"),
        ("06-forget",),
        (*MODEL, "forget"),
    ),
    Stage(
        "improve",
        ("00-sft", "03-pairs.jsonl", "04-importance.safetensors", "06-forget"),
        ("07-improve",),
        (*MODEL, "improve"),
    ),
    Stage(
        "evaluate",
        ("00-sft", "06-forget", "07-improve"),
        ("08-eval.json",),
        (*MODEL, *PROMPTS, "judge", "sample.stop", "evaluate"),
    ),
    Stage("report", ("08-eval.json",), ("report.html", "report.md"), ("name", "report")),
)
NAMES = tuple(stage.name for stage in STAGES)


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages that a recipe needs, in order; ready pairs need no samples and no verdicts."""
    left_out = {
        "sample": recipe.data.pairs is not None,
        "judge": recipe.data.pairs is not None,
        "locate": recipe.locate is None,
        "score": recipe.forget is None,
        "forget": recipe.forget is None,
        "improve": recipe.improve is None,
    }
    return [stage for stage in STAGES if not left_out.get(stage.name)]


def run_all(recipe: Recipe, *, until: str | None = None, force: str | None = None) -> RunFolder:
    """Run every stage that is not done, up to `until`; `force` does one anew (those after it follow)."""
    stages = stages_of(recipe)
    last = len(stages) if until is None else 1 + _position(stages, until)
    if force is not None:
        _position(stages, force)
    with _opened(recipe) as run:
        for stage in stages[:last]:
            _run_stage(stage, recipe, run, force=stage.name == force)
    return run


def run_one(recipe: Recipe, name: str, *, force: bool = False) -> RunFolder:
    """Run one stage; the stages before it must be done.

    Raises `UserError` naming the stage to run first.
    """
    stages = stages_of(recipe)
    position = _position(stages, name)
    with _opened(recipe) as run:
        for stage in stages[:position]:
            missing = [file for file in stage.writes if not (run.path / file).exists()]
            if missing:
                raise UserError(
                    f"{run.path / missing[0]}: not there yet. Run `allo {stage.name}` on this recipe first, "
                    "or `allo run` for all."
                )
        _run_stage(stages[position], recipe, run, force=force)
    return run


def _position(stages: list[Stage], name: str) -> int:
    names = [stage.name for stage in stages]
    if name not in NAMES:
        raise UserError(f"{name}: no such stage; the stages are {', '.join(NAMES)}.")
    if name not in names:
        raise UserError(f"{name}: this recipe leaves the stage out; it has {', '.join(names)}.")
    return names.index(name)


@contextlib.contextmanager
def _opened(recipe: Recipe) -> Iterator[RunFolder]:
    """The run's folder, made where it is missing, held by this process alone."""
    run = RunFolder(recipe.run_folder)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        lock = (run.path / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"{run.path}: cannot write the run folder ({error.strerror}). Choose another with --set out=DIR."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{run.path}: another allo process works in this run folder. Wait for it."
            ) from error
        _check_same_run(recipe, run)
        write_atomic(run.path / "recipe.yaml", save_recipe(recipe))
        yield run


def _check_same_run(recipe: Recipe, run: RunFolder) -> None:
    """A folder belongs to one recipe: another name, model or origin of data is another run."""
    manifest = _manifest(recipe, run)
    ours = _identity(recipe)
    if manifest["identity"] != ours:
        differing = next(key for key in ours if manifest["identity"].get(key) != ours[key])
        raise UserError(
            f"{run.path}: the folder holds a run of another recipe ({differing} was "
            f"{manifest['identity'].get(differing)!r}, now {ours[differing]!r}). Give this recipe another "
            "`name` or `out`, or remove the folder."
        )


def _identity(recipe: Recipe) -> dict[str, str]:
    data = recipe.data
    origin = next(value for value in (data.task, data.file, data.hub, data.pairs) if value is not None)
    model, data_origin = (
        str(path.resolve()) if (path := Path(value).expanduser()).exists() else str(value)
        for value in (recipe.model, origin)
    )
    return {"name": recipe.name, "model": model, "data": data_origin}


def _manifest(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    if run.manifest.exists():
        manifest: dict[str, Any] = read_json(run.manifest)
        return manifest
    version = importlib.metadata.version("allo-align")
    return {
        "schema": SCHEMA,
        "name": recipe.name,
        "allo": version,
        "identity": _identity(recipe),
        "stages": {},
    }


def _run_stage(stage: Stage, recipe: Recipe, run: RunFolder, *, force: bool) -> None:
    hashes = FileHashes(run.path / ".hashes.json")
    manifest = _manifest(recipe, run)
    config = {key: _value(recipe, key) for key in stage.keys}
    inputs = _hash_inputs(stage, config, run, hashes)
    stage_hash = sha256_json({"stage": stage.name, "config": config, "inputs": inputs})
    if not force and _is_done(stage, manifest, stage_hash, run, hashes):
        say(f"{stage.name:<9} done already, skipped")
        return
    begun = run.path / f".{stage.name}.begun"
    if force or not begun.exists() or begun.read_text() != stage_hash:
        _discard(stage, manifest, run)
        write_atomic(begun, stage_hash)
    say(f"{stage.name:<9} ...")
    _reset_peak_memory()
    start = time.monotonic()
    counts = stage.run(recipe, run)
    entry = {
        "hash": stage_hash,
        "config": config,
        "inputs": inputs,
        "outputs": {name: hashes.of(run.path / name) for name in stage.writes if (run.path / name).exists()},
        **_provenance(recipe),
        "seconds": round(time.monotonic() - start, 3),
        "peak_memory_bytes": _peak_memory(),
        "counts": counts,
    }
    write_json(run.manifest, manifest | {"stages": manifest["stages"] | {stage.name: entry}})
    begun.unlink()
    shown = ", ".join(f"{key} {value}" for key, value in counts.items())
    say(f"{stage.name:<9} {entry['seconds']:.1f} s  {shown}")


def _value(recipe: Recipe, key: str) -> Any:
    """The recipe's value at a dotted key, as JSON; None where a block on the way is null."""
    value = json.loads(recipe.model_dump_json())
    for part in key.split("."):
        value = None if value is None else value[part]
    return value


def _hash_inputs(stage: Stage, config: dict[str, Any], run: RunFolder, hashes: FileHashes) -> dict[str, str]:
    """Hashes of what a stage reads: files of the run, and local files that its configuration names."""
    inputs = {name: hashes.of(run.path / name) for name in stage.reads if (run.path / name).exists()}
    named = list(_named_files(config, config.get("data_folder")))
    if stage.name == "sft":
        named.append(Path(config["model"]).expanduser())
    return inputs | {str(path): hashes.of(path) for path in named if path.exists()}


def _named_files(value: Any, rows: str | None) -> Iterator[Path]:
    """Files of prompts and pairs anywhere in a configuration, a task's own file below the folder `rows`."""
    if isinstance(value, list):
        for item in value:
            yield from _named_files(item, rows)
    if isinstance(value, dict):
        yield from (Path(value[key]) for key in ("file", "pairs") if value.get(key))
        if rows and value.get("task"):
            yield from (Path(rows) / value["task"]).glob(f"{value['split']}.jsonl*")
        for item in value.values():
            yield from _named_files(item, rows)


def _is_done(
    stage: Stage, manifest: dict[str, Any], stage_hash: str, run: RunFolder, hashes: FileHashes
) -> bool:
    entry = manifest["stages"].get(stage.name)
    return (
        entry is not None
        and entry["hash"] == stage_hash
        and all(
            (run.path / name).exists() and hashes.of(run.path / name) == digest
            for name, digest in entry["outputs"].items()
        )
    )


def _discard(stage: Stage, manifest: dict[str, Any], run: RunFolder) -> None:
    """Remove what another configuration of the stage left behind, the record of it first."""
    if stage.name in manifest["stages"]:
        stages = {name: entry for name, entry in manifest["stages"].items() if name != stage.name}
        manifest["stages"] = stages
        write_json(run.manifest, manifest)
    for name in stage.writes:
        for path in [run.path / name, *run.path.glob(f"{name}*.part")]:
            remove(path)


def _provenance(recipe: Recipe) -> dict[str, Any]:
    return {
        **_commit(),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
        "device": recipe.device,
        "hardware": _hardware(),
        "seed": recipe.seed,
    }


def _commit() -> dict[str, Any]:
    """The commit of the source tree that runs, and whether it has uncommitted changes."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _hardware() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    threads = torch.get_num_threads() if torch is not None else 1
    return f"{platform.machine()} CPU, {threads} threads"


def _reset_peak_memory() -> None:
    """Let the kernel measure this stage's peak alone (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_memory() -> int:
    """Peak resident bytes since `_reset_peak_memory`; of the GPU's allocator where there is one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
