"""The stages in order: finished ones are skipped, interrupted ones resume, changed ones run again."""

import contextlib
import importlib.metadata
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from allo.console import Run, note, say, showing, span
from allo.errors import UserError
from allo.files.artifacts import FileHashes, RunFolder, held, remove, sha256_json, write_atomic, write_json
from allo.files.changes import why_again
from allo.files.harness_results import leave_block
from allo.files.identity import check_same_run, identity, refuse_another
from allo.files.manifest import read_manifest, stages_done, write_manifest
from allo.files.provenance import peak_memory, provenance, reset_peak_memory
from allo.files.result_link import is_linked, remove_broken_link
from allo.files.rounds import rounds_there, trained
from allo.files.stage import Stage, in_rounds, read_mark, remove_old_marks
from allo.pipeline.estimate import CountTokens, Progress, countable, progress_of, shares_said
from allo.pipeline.outcome import result_in_words
from allo.pipeline.shared import run_shared
from allo.ranks import is_joined, joined_group, launched_ranks
from allo.recipe import Recipe, load_recipe, save_recipe
from allo.recipe.own_code import own_file
from allo.recipe.sharding import is_evaluated
from allo.tasks.sources import Sources, sources_read

SCHEMA = 1
_LEAST_SPACE = 1 << 16  # bytes that the smallest of a stage's files may need

MODEL = ("model", "trust_remote_code", "pad_token", "dtype", "device", "max_length")
PROMPTS = ("data_folder", "chat", "seed_of_data")
REPORT = Stage("report", ("08-eval.json",), ("report.html", "report.md", "model-card.md"), ("name", "report"))
_READY = ("03-pairs.jsonl", "03-feedback.jsonl")
STAGES = (
    Stage("sft", (), ("00-sft",), (*MODEL, *PROMPTS, "sft")),
    Stage("sample", ("00-sft",), ("01-completions.jsonl",), (*MODEL, *PROMPTS, "data", "sample.settings")),
    Stage("judge", ("01-completions.jsonl",), ("02-verdicts.jsonl",), (*PROMPTS, "data", "judge.settings")),
    Stage(
        "pair",
        ("02-verdicts.jsonl",),
        (*_READY, "03-wrong.jsonl", "03-held-out.jsonl"),
        (*PROMPTS, "data", "pair"),
    ),
    Stage(
        "locate",
        ("00-sft", *_READY),
        ("04-importance.safetensors", "04-warmup"),
        (*MODEL, "seed_of_data", "locate", "reads_warmup", "max_density"),
    ),
    Stage(
        "score",
        ("00-sft", "02-verdicts.jsonl", *_READY, "03-wrong.jsonl", "04-warmup"),
        ("05-token-scores.parquet", "05-contrast"),
        (*MODEL, "seed_of_data", "score"),
    ),
    Stage(
        "forget",
        ("00-sft", "03-wrong.jsonl", "04-importance.safetensors", "05-token-scores.parquet"),
        ("06-forget",),
        (*MODEL, "seed", "forget"),
    ),
    Stage(
        "improve",
        ("00-sft", "02-verdicts.jsonl", *_READY, "04-importance.safetensors", "06-forget"),
        ("07-improve",),
        (*MODEL, *PROMPTS, "data", "seed", "improve", "on_policy"),
    ),
    Stage(
        "evaluate",
        (
            "00-sft",
            *("03-pairs.jsonl", "03-held-out.jsonl", "round-1/03-pairs.jsonl"),
            *("06-forget", "07-improve"),
        ),
        ("08-eval.json",),
        (*MODEL, "seed", *PROMPTS, "sft.sources", "data", "judge.settings", "sample.stop", "evaluate"),
    ),
    REPORT,
)
NAMES = tuple(stage.name for stage in STAGES)


def stages_of(recipe: Recipe) -> list[Stage]:
    """Return the stages that a recipe needs, in order; ready rows need no samples and no verdicts."""
    left_out = {
        "sample": recipe.data.is_ready,
        "judge": recipe.data.is_ready,
        "locate": recipe.locate is None,
        "score": recipe.forget is None,
        "forget": recipe.forget is None,
        "improve": recipe.improve is None,
        "evaluate": not is_evaluated(recipe),
        "report": not is_evaluated(recipe),
    }
    kept = [stage for stage in STAGES if not left_out.get(stage.name)]
    return kept if recipe.rounds == 1 else in_rounds(kept, recipe)


def run_all(
    recipe: Recipe | str | Path,
    *,
    until: str | None = None,
    force: str | None = None,
    tokens: CountTokens | None = None,
) -> RunFolder:
    """Run every unfinished stage of a recipe, or of its file, up to `until`; `force` runs one again, and those after it.

    `tokens` counts what each stage reads and writes: later stages' time is then estimated from the pace of those before.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    stages = stages_of(recipe)
    last = len(stages) if until is None else 1 + _position(stages, until)
    if force is not None:
        _position(stages, force)
    checked = False
    with _opened(recipe) as run, showing(Run(last)) as shown:
        progress = progress_of(recipe, stages[:last], stages_done(run), shown)
        for position, stage in enumerate(stages[:last]):
            work = _work(stage, recipe, run)
            if stage.name != force and work.is_done:
                note(stage.name, "done already, skipped")
                _link_result(stage, recipe, run)
                continue
            work.say_why_again()
            if not checked and stage is not REPORT:
                sources, checked = _check(recipe), True
                counted = {} if tokens is None else tokens(recipe, sources)
                progress.estimate.tokens = countable(recipe, counted)
                if shares := shares_said(recipe, counted, [each.name for each in stages[position:last]]):
                    say(shares)
            _do(work, recipe, progress, force=stage.name == force)
    return run


def run_one(recipe: Recipe, name: str, *, force: bool = False) -> RunFolder:
    """Run one stage; the stages before it must be finished.

    Raises `UserError` naming the stage to run first.
    """
    stages = stages_of(recipe)
    position = _position(stages, name)
    with _opened(recipe) as run, showing(Run(len(stages))) as shown:
        for stage in stages[:position]:
            if not _work(stage, recipe, run).is_done:
                raise UserError(
                    f"{run.path / stage.writes[0]}: not there yet, or made from other settings. "
                    f"Run `allo {stage.name}` on this recipe first, or `allo run` for all."
                )
        work = _work(stages[position], recipe, run)
        if work.is_done and not force:
            note(name, "done already, skipped")
            return run
        if stages[position] is not REPORT:
            _check(recipe)
        _do(work, recipe, progress_of(recipe, stages, stages_done(run), shown, only=name), force=force)
    return run


def progress(recipe: Recipe) -> dict[str, bool]:
    """Return whether each stage is finished, writing nothing. Raises `UserError` for another recipe's run or a
    damaged record."""
    run = RunFolder(recipe.run_folder)
    manifest = read_manifest(run) or {"identity": identity(recipe), "stages": {}}
    refuse_another(run, manifest["identity"], identity(recipe))
    found: dict[str, bool] = {}
    for stage in stages_of(recipe):  # after an unfinished stage, all may run again
        may_be = all(found.values()) and stage.name in manifest["stages"]
        found[stage.name] = may_be and _work(stage, recipe, run, reads_only=True).is_done
    return found


def _position(stages: list[Stage], name: str) -> int:
    names = [stage.name for stage in stages]
    if name in names:
        return names.index(name)
    if name in NAMES:
        raise UserError(f"{name}: this recipe leaves the stage out; it has {', '.join(names)}.")
    raise UserError(f"{name}: no such stage; the stages are {', '.join(names)}.")


@contextlib.contextmanager
def _opened(recipe: Recipe) -> Iterator[RunFolder]:
    """Yield the run's folder, made if it is missing, and held by this process alone."""
    run = RunFolder(recipe.run_folder)
    if launched_ranks() > 1 and not is_joined():
        raise UserError(
            f"WORLD_SIZE is {launched_ranks()}: a recipe runs in one process of a script. On several, start the command: "
            "`torchrun -m allo run RECIPE`, or `allo run RECIPE --processes N`."
        )
    num = group.size if (group := joined_group()) else 1
    if recipe.shards is not None and num % recipe.shards:
        raise UserError(
            f"shards is {recipe.shards}, and there {'is one process' if num == 1 else f'are {num}'}: "
            f"start the command by `allo run RECIPE --processes {recipe.shards}`, or a multiple of it."
        )
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(run.path))
        except OSError as error:
            raise UserError(
                f"{run.path}: cannot write the run folder ({error.strerror}). Choose another with --set out=DIR."
            ) from error
        resolved, text = run.path / "recipe.yaml", save_recipe(recipe).encode()
        is_resolved = resolved.is_file() and resolved.read_bytes() == text
        check_same_run(recipe, run, is_resolved=is_resolved)
        if not is_resolved:
            write_atomic(resolved, text)
        _discard_left_out(recipe, run)
        remove_old_marks(stages_of(recipe), run)
        yield run


@dataclass(frozen=True)
class _Work:
    """One stage with its dependencies; it is finished if their hash is on record."""

    stage: Stage
    run: RunFolder
    hashes: FileHashes
    config: dict[str, Any]
    inputs: dict[str, str]

    @property
    def hash(self) -> str:
        return sha256_json({"stage": self.stage.name, "config": self.config, "inputs": self.inputs})

    @property
    def is_done(self) -> bool:
        entry = stages_done(self.run).get(self.stage.name)
        return entry is not None and entry["hash"] == self.hash and entry["outputs"] == self.outputs()

    def say_why_again(self) -> None:
        """Say what has changed since the stage was finished, if it was: its files are about to be replaced."""
        entry = stages_done(self.run).get(self.stage.name)
        if entry is not None and entry["hash"] != self.hash:
            why = why_again(entry["config"], self.config)
            note(self.stage.name, f"done again, and replaced: {why} (--set out=DIR keeps both runs)")

    def begin(self, *, force: bool) -> float:
        """Return the seconds that earlier processes spent on this same work; otherwise discard their files and start
        again.

        For a process that was killed, the time up to its last saved file counts.
        """
        begun, spent = self.stage.begun(self.run), 0.0
        begun.parent.mkdir(exist_ok=True)
        earlier = read_mark(begun)
        if force or earlier is None or earlier.hash != self.hash:
            _discard(self.stage, self.run)
        else:
            saved = [file.stat().st_mtime for path in self.stage.leaves(self.run) for file in _files(path)]
            spent = earlier.seconds + max(0.0, max(saved, default=0.0) - begun.stat().st_mtime)
        write_json(begun, {"hash": self.hash, "seconds": spent})
        return spent

    def outputs(self) -> dict[str, str]:
        paths = {name: self.run.path / name for name in self.stage.writes}
        return {name: self.hashes.of(path) for name, path in paths.items() if path.exists()}


def _work(stage: Stage, recipe: Recipe, run: RunFolder, *, reads_only: bool = False) -> _Work:
    hashes = FileHashes(run.path / ".hashes.json", reads_only=reads_only)
    own = stage.recipe(recipe)
    config = {key: value_at(own, key) for key in stage.keys}
    return _Work(stage, run, hashes, config, _hash_inputs(stage, config, run, hashes))


def value_at(recipe: Recipe, key: str) -> Any:
    """Return the recipe's value at a dotted key, as JSON; None if a block on the way is null."""
    value: Any = recipe
    for part in key.split("."):
        value = None if value is None else getattr(value, part)
    return to_jsonable_python(value)


def _check(recipe: Recipe) -> Sources:
    """Check input before the first stage costs time; a report reads only the run. Return what was read."""
    sources = sources_read(recipe)
    importlib.import_module("allo.training.checkpointing")  # refuses a transformers that it does not fit
    importlib.import_module("allo.stages.check").check(recipe, sources)
    return sources


def _do(work: _Work, recipe: Recipe, progress: Progress, *, force: bool) -> None:
    """Run a stage and record it, resuming an earlier process's unfinished work."""
    stage, run = work.stage, work.run
    spent = work.begin(force=force)
    progress.begin(stage.name, spent=spent)
    reset_peak_memory()
    start = time.monotonic()
    try:
        counts = run_shared(stage, recipe, run) if stage.is_shared else stage.run(recipe, run)
    except Exception as error:
        # Without space, safetensors and torch raise errors of their own.
        is_full = "No space left" in str(error) or shutil.disk_usage(run.path).free < _LEAST_SPACE
        if is_full and not isinstance(error, UserError):
            raise UserError(
                f"{run.path}: no space left on the disk. Make room and start it again: what is done is kept."
            ) from error
        raise
    entry = {
        "hash": work.hash,
        "config": work.config,
        "inputs": work.inputs,
        "outputs": work.outputs(),
        **provenance(),
        "device": recipe.device,
        "seed": work.config.get("seed", stage.recipe(recipe).seed_of_data),
        "seconds": round(spent + time.monotonic() - start, 3),
        "peak_memory_bytes": peak_memory(),
        "counts": counts,
    }
    entries = stages_done(run) | {stage.name: entry}
    in_order = {one.name: entries[one.name] for one in stages_of(recipe) if one.name in entries}
    manifest = {
        "schema": SCHEMA,
        "name": recipe.name,
        "allo": importlib.metadata.version("allo-align"),
        "identity": identity(recipe),
        "stages": in_order,
    }
    write_manifest(run, manifest)
    stage.begun(run).unlink()
    _link_result(stage, recipe, run)
    progress.estimate.measured[stage.name] = entry["seconds"]
    note(stage.name, f"done in {span(entry['seconds'])}{result_in_words(counts, entry['outputs'])}")
    for sentence in importlib.import_module("allo.stages.explain").sentences_of(run.path, stage.name):
        say(f"  {sentence}", wrapped=True)


def _link_result(stage: Stage, recipe: Recipe, run: RunFolder) -> None:
    """After the last training stage, link the run's `model` to its result, unless that is done or there is none."""
    model = trained(recipe, run) / "model"
    if stage.name == recipe.training_stages[-1] and model.is_dir() and not is_linked(run, model):
        importlib.import_module("allo.stages.result").point_to_result(recipe, run)


def _hash_inputs(stage: Stage, config: dict[str, Any], run: RunFolder, hashes: FileHashes) -> dict[str, str]:
    """Return hashes of a stage's inputs: files of the run, and local files that its configuration names."""
    inputs = {name: hashes.of(run.path / name) for name in stage.reads if (run.path / name).exists()}
    named = list(named_files(config))
    if stage.name == "sft":
        named.append(Path(config["model"]).expanduser())
    return inputs | {str(path): hashes.of(path) for path in named if path.exists()}


def named_files(value: Any, rows: str | None = None) -> Iterator[Path]:
    """Yield every local file and folder that a configuration names, including its tasks' files below the folder
    `rows`."""
    if isinstance(value, list):
        for item in value:
            yield from named_files(item, rows)
    if isinstance(value, dict):
        rows = value.get("data_folder") or rows
        keys = ("file", "pairs", "feedback", "rewriter", "reward_model")
        yield from (Path(value[key]).expanduser() for key in keys if value.get(key))
        own = [value.get(key) or "" for key in ("scorer", "loss", "criterion", "task")]
        own += [*(value.get("beside") or []), *(value.get("function") or [])]
        yield from filter(None, map(own_file, own))
        if rows and value.get("task"):
            yield from (Path(rows) / value["task"]).glob(f"{value['split']}.jsonl*")
        for item in value.values():
            yield from named_files(item, rows)


def _files(path: Path) -> list[Path]:
    """Return a file, or those below a folder; none if neither exists."""
    return [file for file in (path, *path.rglob("*")) if file.is_file()]


def _discard(stage: Stage, run: RunFolder) -> None:
    """Remove a stage's files made with other settings, and its record first."""
    manifest = read_manifest(run)
    if manifest and manifest["stages"].pop(stage.name, None):
        write_manifest(run, manifest)
    remove(stage.begun(run))
    for path in stage.leaves(run):
        leave_block(path) if path == run.evaluation else remove(path)
    remove_broken_link(run)


def _discard_left_out(recipe: Recipe, run: RunFolder) -> None:
    """Remove the files of stages that the recipe no longer has, including those of rounds."""
    names = {stage.name for stage in stages_of(recipe)}
    there = rounds_there(run.path)
    in_all = in_rounds(STAGES, recipe.model_copy(update={"rounds": max(there, default=0)}))
    for stage in (*STAGES, *in_all):
        if stage.name not in names:
            _discard(stage, run)
    for folder in there.values():
        if not any(folder.iterdir()):
            folder.rmdir()
