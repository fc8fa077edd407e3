"""One trial: a method with settings and a seed, as a recipe, as a run, and as one JSON file."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from allo.compare.methods import START, Resolved
from allo.compare.results import read_record, read_result
from allo.errors import DivergedError, UserError
from allo.files.artifacts import FileHashes, RunFolder, read_json, remove, sha256_json, write_json
from allo.files.json_forms import sealed
from allo.files.manifest import stages_done
from allo.files.rounds import training_folders
from allo.pipeline import named_files, run_all, stages_of, value_at
from allo.recipe import Recipe
from allo.recipe.text import place

SCHEMA = 1
RATE = "rate"
METRICS = "metrics.jsonl"
RATED = ("forget", "improve")
# The last stages of the two shared preparations: samples with their pairs, then importance and token scores.
SAMPLED, PREPARED = "pair", "score"
_PREPARING = ("sft", "begin", "sample", "judge", "pair", "locate", "score")

Purpose = Literal["tune", "test"]
Overrides = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One trial; `settings` are `rate`, a factor on the recipe's learning rates, and dotted recipe keys."""

    method: Resolved
    settings: Overrides
    seed: int
    purpose: Purpose

    @property
    def name(self) -> str:
        """Return a file name without its ending; equal only for equal trials."""
        digest = sha256_json(dict(self.settings))[:8]
        return f"{self.purpose}-rate-{self.settings[RATE]:g}-{digest}-seed-{self.seed}"

    def recipe(self, base: Recipe) -> Recipe:
        """Return the trial's recipe. Raises `UserError` if the method's changes give no valid one."""
        assert base.compare is not None
        fields = base.model_dump(mode="json") | {"compare": None}
        for key, value in {**self.method.changes, **self.settings}.items():
            if key != RATE:
                place(fields, key, value)
        fields["seed"] = self.seed
        fields["data_seed"] = self.seed if base.compare.resample else base.seed_of_data
        made = self._valid(fields)
        for stage in RATED:
            if (block := getattr(made, stage)) is not None:
                rate = block.training.learning_rate * self.method.scale * self.settings[RATE]
                place(fields, f"{stage}.training.learning_rate", rate)
        evaluate = fields["evaluate"]
        evaluate["start"] = self.method.name == base.compare.reference and (
            self.purpose == "test" or dict(self.settings) == {RATE: min(base.compare.rates)}
        )
        if self.purpose == "tune":
            evaluate["sets"] = {"validation": base.compare.validation.model_dump(mode="json")}
        return self._valid(fields)

    def _valid(self, fields: dict[str, Any]) -> Recipe:
        try:
            return Recipe.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(
                f"compare: method {self.method.name!r} with {dict(self.settings)}: {where}: {first['msg']}"
            ) from error


@dataclass(frozen=True)
class Comparison:
    """The folder of a comparison: `trials/` has one JSON file per trial, `shared/` has the trials' common stages."""

    path: Path

    def file(self, trial: Trial) -> Path:
        return self.path / "trials" / trial.method.name / f"{trial.name}.json"

    def start_file(self, trial: Trial) -> Path:
        return self.path / "trials" / START / f"{trial.purpose}-seed-{trial.seed}.json"

    def failure_file(self, trial: Trial) -> Path:
        return self.path / "failed" / trial.method.name / f"{trial.name}.json"

    def set_aside_other_tests(self, trials: Sequence[Trial]) -> None:
        """Move test trials with other settings out of the results: only the tuned setting is compared."""
        names = {self.file(trial) for trial in trials}
        for folder in {self.file(trial).parent for trial in trials}:
            for file in set(folder.glob("test-*.json")) - names:
                settings = {
                    json.dumps(dict(t.settings), sort_keys=True)
                    for t in trials
                    if self.file(t).parent == folder
                }
                if json.dumps(read_record(file).get("settings"), sort_keys=True) not in settings:
                    aside = _made(self.path / "superseded" / folder.name / file.name)
                    os.replace(file, aside)

    def has_tests_of(self, method: str) -> bool:
        return any((self.path / "trials" / method).glob("test-*.json"))

    def work(self, trial: Trial) -> Path:
        return self.path / "work" / f"{trial.method.name}-{trial.name}"

    def shared(self, key: str) -> Path:
        return self.path / "shared" / key

    def files(self, recipe: Recipe) -> dict[str, str]:
        """Return hashes of the local files that a recipe names, including its model."""
        self.path.mkdir(parents=True, exist_ok=True)
        hashes = FileHashes(self.path / ".hashes.json")
        named = [*named_files(recipe.model_dump(mode="json")), Path(recipe.model).expanduser()]
        return {str(path): hashes.of(path) for path in named if path.exists()}

    def result(self, trial: Trial, recipe: Recipe) -> dict[str, Any] | None:
        """Return the result, or failure record, of a trial with the same recipe and files; otherwise None.

        Raises `UserError` for any other file, and for a damaged one.
        """
        files = self.files(recipe)
        for file in (self.file(trial), self.failure_file(trial)):
            if file.exists():
                found = read_record(file)
                if _is_of(found.get("recipe", {}), recipe) and found.get("files", files) == files:
                    if "failed" not in found:
                        read_result(file)
                    return found
        return None


@dataclass(frozen=True)
class Preparation:
    """The stages of a recipe up to `until`, run once for all trials that share them."""

    key: str
    recipe: Recipe = field(hash=False, compare=False)
    until: str
    before: str | None
    """The preparation that this one continues."""


def preparations(recipe: Recipe) -> list[Preparation]:
    """Return the shared stages that a trial starts from: first its pairs, then its importance and token scores."""
    made: list[Preparation] = []
    for until in (SAMPLED, PREPARED):
        shared = _PREPARING[: _PREPARING.index(until) + 1]
        stages = [stage for stage in stages_of(recipe) if stage.name not in ("forget", "improve")]
        names = [stage.name for stage in stages]
        last = max((i for i, name in enumerate(names) if name.removeprefix("round-1/") in shared), default=-1)
        keys = [key for stage in stages[: last + 1] for key in stage.keys]
        config = {key: value_at(recipe, key) for key in keys}
        key = f"{until}-{sha256_json([names[: last + 1], config])[:12]}"
        before = made[-1].key if made else None
        if last >= 0 and not (made and names[last] == made[-1].until):
            made.append(Preparation(key, recipe, names[last], before))
    return made


def prepare(comparison: Comparison, preparation: Preparation) -> None:
    """Run the unfinished stages of one preparation."""
    folder = comparison.shared(preparation.key)
    if preparation.before is not None and not folder.exists():
        _copy(comparison.shared(preparation.before), folder)
    run_all(_in(preparation.recipe, folder), until=preparation.until)


def run_trial(comparison: Comparison, trial: Trial, recipe: Recipe) -> None:
    """Train and evaluate from the prepared stages; remove the run's folder once its JSON file exists."""
    work = comparison.work(trial)
    shared = preparations(recipe)
    if shared and not work.exists():
        _copy(comparison.shared(shared[-1].key), work)
    head = {
        "schema": SCHEMA,
        "method": trial.method.name,
        "settings": dict(trial.settings),
        "seed": trial.seed,
        "purpose": trial.purpose,
        "recipe": _portable(recipe),
        "files": comparison.files(recipe),
    }
    try:
        run = run_all(_in(recipe, work), until="evaluate")
    except DivergedError as error:
        write_json(_made(comparison.failure_file(trial)), sealed(head | {"failed": str(error)}))
        remove(comparison.file(trial))
        remove(work)
        return
    evaluated, stages = read_json(run.evaluation), stages_done(run)
    made_with = {key: stages["evaluate"][key] for key in ("commit", "dirty", "versions", "hardware")}
    if "start" in evaluated["models"]:
        start = head | {"method": START, "settings": {}} | made_with | _figures(evaluated, "start", {})
        write_json(_made(comparison.start_file(trial)), sealed(start))
    figures = _figures(evaluated, "aligned", _trained(stages)) | {"losses": _losses(recipe, run)}
    write_json(_made(comparison.file(trial)), sealed(head | made_with | figures))
    remove(comparison.failure_file(trial))
    remove(work)


def _figures(evaluated: dict[str, Any], model: str, stages: dict[str, Any]) -> dict[str, Any]:
    """Return a trial file's entries for one evaluated model, from `08-eval.json`."""
    found = evaluated["models"][model]
    counts = [stage["counts"] for stage in stages.values()]
    likelihood = found.get("likelihood")
    return {
        "cost": {
            "seconds": found["seconds"],
            "peak_memory_bytes": max((stage["peak_memory_bytes"] for stage in stages.values()), default=0),
            "training_state_bytes": found["training_state_bytes"],
            "trained_weights": found["trained_weights"],
            "density": found["density"],
            "changed_weights": max((count.get("changed_weights", 0) for count in counts), default=0),
        },
        "sets": {
            name: _outcomes(rows) | {"mean_tokens": found["sets"][name]["mean_tokens"]}
            for name, rows in evaluated["completions"][model].items()
        },
        "kl": found["kl"],
        "chosen_drop": None if likelihood is None else -likelihood["chosen"],
    }


def _losses(recipe: Recipe, run: RunFolder) -> dict[str, list[float]]:
    """Return the loss of each logged step by training stage, in order; empty for a run in rounds."""
    return {
        name: [
            row["loss"]
            for row in map(json.loads, (folder / METRICS).read_text().splitlines())
            if row.get("loss") is not None
        ]
        for name, folder in training_folders(recipe, run).items()
        if (folder / METRICS).exists()
    }


def _outcomes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the outcome of each problem: 0 or 1 for the greedy answer, and the number of right samples."""
    of = len(rows[0]["sampled"])
    answers = [one for row in rows for one in [*row["sampled"], *filter(None, [row.get("greedy")])]]
    if any(one["correct"] is None for one in answers):
        raise UserError(
            "compare: judge.function gave an answer another reward than 0 and 1, or no verdict, and a comparison is of right "
            "and wrong answers. Compare by a function that returns True or False."
        )
    return {
        "prompts": [row["prompt_id"] for row in rows],
        "greedy": [int(row["greedy"]["correct"]) for row in rows] if "greedy" in rows[0] else None,
        "sampled": {"correct": [sum(one["correct"] for one in row["sampled"]) for row in rows], "of": of}
        if of
        else None,
    }


def _trained(stages: dict[str, Any]) -> dict[str, Any]:
    trained = ("locate", "score", "forget", "improve")  # in rounds also round-1/locate and so on
    return {name: stage for name, stage in stages.items() if name.rpartition("/")[2] in trained}


def _in(recipe: Recipe, folder: Path) -> Recipe:
    return recipe.model_copy(update={"out": folder})


def _portable(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON, without its run's path."""
    fields: dict[str, Any] = recipe.model_dump(mode="json", exclude={"out", "compare"})
    return fields


def _is_of(fields: dict[str, Any], recipe: Recipe) -> bool:
    """Return whether a trial was made from `recipe`; a key that its recipe lacks counts as its default."""
    try:
        return _portable(Recipe.model_validate(fields)) == _portable(recipe)
    except ValidationError:
        return False


def _copy(source: Path, target: Path) -> None:
    """Link a folder's files under a second path: none is ever changed in place, so no copy is needed."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, copy_function=_link, ignore=shutil.ignore_patterns(".lock"))
    os.replace(part, target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _made(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
