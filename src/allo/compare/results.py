"""Finished trials, read from their JSON files and checked: the basis of a comparison's summary."""

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from allo.errors import UserError
from allo.files.json_forms import checked, unsealed
from allo.files.json_text import parse_json
from allo.stats.metrics import pass_at_k


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Sampled(_Part):
    """The number of right samples of each prompt, out of `of` samples each."""

    correct: list[int]
    of: int = Field(gt=0)


class SetResult(_Part):
    """A model's answers on one set: one entry per prompt, in the prompts' order."""

    prompts: list[str] = Field(min_length=1)
    greedy: list[Literal[0, 1]] | None
    sampled: Sampled | None
    mean_tokens: float | None

    @model_validator(mode="after")
    def _one_entry_a_prompt(self) -> "SetResult":
        num = len(self.prompts)
        if len(set(self.prompts)) != num:
            raise ValueError("a prompt occurs twice in `prompts`")
        if self.greedy is None and self.sampled is None:
            raise ValueError("neither `greedy` nor `sampled` holds answers")
        if self.greedy is not None and len(self.greedy) != num:
            raise ValueError(f"`greedy` has {len(self.greedy)} entries for {num} prompts")
        if self.sampled is not None:
            if len(self.sampled.correct) != num:
                raise ValueError(
                    f"`sampled.correct` has {len(self.sampled.correct)} entries for {num} prompts"
                )
            if not all(0 <= right <= self.sampled.of for right in self.sampled.correct):
                raise ValueError(f"`sampled.correct` has an entry outside 0 to {self.sampled.of}")
        return self

    def right(self) -> NDArray[np.float64]:
        """Return the share of right samples per prompt; without samples, the greedy result."""
        rows = self.rows()
        return rows["sampled" if self.sampled is not None else "greedy"]

    def rows(self) -> dict[str, NDArray[np.float64]]:
        """Return each kind of accuracy as one value per prompt: greedy, sampled, and pass@2, pass@4, ... of the
        samples."""
        found = {}
        if self.sampled is not None:
            of, correct = self.sampled.of, np.array(self.sampled.correct)
            found["sampled"] = correct / of
            for k in (2**power for power in range(1, of.bit_length()) if 2**power <= of):
                found[f"pass@{k}"] = _passes(of, k)[correct]
        if self.greedy is not None:
            found["greedy"] = np.array(self.greedy, dtype=float)
        return found


@cache
def _passes(num_samples: int, k: int) -> NDArray[np.float64]:
    """Return pass@k of a prompt for each number of right samples: (num_samples + 1,)."""
    return np.array([pass_at_k([hits], num_samples=num_samples, k=k) for hits in range(num_samples + 1)])


class Kl(_Part):
    """KL to the start in nats per token on `set`, with its interval over that set's prompts."""

    set: str
    value: float
    low: float | None
    high: float | None


class Cost(_Part):
    """The cost of locating, scoring, forgetting and improving together."""

    seconds: float
    peak_memory_bytes: float
    training_state_bytes: float
    trained_weights: int
    density: float


AGAIN = "Remove the file; the comparison makes it again."
ORIGIN = ("model", "dtype", "max_length", "chat", "sft", "data")
"""Recipe keys that all trials of a comparison share."""


class TrialResult(_Part):
    """One method with its settings and one seed, trained and evaluated."""

    schema_: Literal[1] = Field(alias="schema")
    method: str
    settings: dict[str, Any]
    seed: int
    purpose: Literal["tune", "test"]
    recipe: dict[str, Any]
    commit: str | None
    dirty: bool | None
    versions: dict[str, Any]
    hardware: str | None
    cost: Cost
    sets: dict[str, SetResult] = Field(min_length=1)
    kl: Kl | None
    chosen_drop: float | None
    losses: dict[str, list[float]] = {}
    """One list per training stage, in order: one value per logged step."""
    path: Path = Field(default=Path(), exclude=True)

    def recipe_value(self, key: str) -> Any:
        """Return the resolved recipe's value at a dotted key. Raises `UserError` if there is none."""
        value: Any = self.recipe
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise UserError(f"{self.path}: the recipe of this trial has no key {key!r}")
            value = value[part]
        return value


def read_result(path: Path) -> TrialResult:
    """Read a finished trial. Raises `UserError` naming the file and the error if it is incomplete."""
    place = f"{path}: not a finished trial"
    trial = checked(read_record(path), TrialResult, place=place, advice=AGAIN)
    return trial.model_copy(update={"path": path})


def read_record(path: Path) -> dict[str, Any]:
    """Read the object in a trial's file or its failure's. Raises `UserError` if it is missing or damaged."""
    place = f"{path}: not a finished trial"
    content = parse_json(path.read_bytes(), place=place, advice=AGAIN)
    return unsealed(checked(content, dict[str, Any], place=place, advice=AGAIN), place=place, advice=AGAIN)


def read_results(folder: Path) -> list[TrialResult]:
    """Return all trials of a comparison folder, by method and file name; they share each set's prompts.

    Raises `UserError` if the folder holds none, two files hold the same trial, or sets differ.
    """
    paths = sorted((folder / "trials").glob("*/*.json"))
    if not paths:
        raise UserError(f"{folder / 'trials'}: holds no trial. Give the folder that `allo compare` wrote.")
    trials = [read_result(path) for path in paths]
    check_results(trials)
    return trials


def check_results(trials: list[TrialResult]) -> None:
    """Raise `UserError` if two trials are the same, or differ in a set's prompts or number of samples."""
    _check_same_origin(trials)
    seen: dict[str, TrialResult] = {}
    first: dict[str, TrialResult] = {}
    for trial in trials:
        identity = repr((trial.method, sorted(trial.settings.items()), trial.seed, trial.purpose))
        if identity in seen:
            raise UserError(
                f"{trial.path}: the same method, settings, seed and purpose as {seen[identity].path}. Remove one."
            )
        seen[identity] = trial
        for name, result in trial.sets.items():
            other = first.setdefault(name, trial)
            if _asked(result) != _asked(other.sets[name]):
                raise UserError(
                    f"{trial.path}: set {name!r} has other prompts, or other numbers of samples, than in {other.path}. "
                    "All trials must answer the same questions: remove the outdated one."
                )


def _check_same_origin(trials: list[TrialResult]) -> None:
    """Raise `UserError` if a trial comes from another recipe: methods change the training, not its data."""
    for key in ORIGIN:
        values = {json.dumps(trial.recipe.get(key), sort_keys=True): trial for trial in trials}
        if len(values) > 1:
            first, second, *_ = values.values()
            raise UserError(
                f"{second.path}: made from another recipe than {first.path}: `{key}` differs. Remove the older ones, or "
                "give the comparison another name."
            )


def _asked(result: SetResult) -> tuple[list[str], int | None, bool]:
    return result.prompts, result.sampled.of if result.sampled else None, result.greedy is not None
