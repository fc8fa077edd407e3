"""TRL's settings from a recipe."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from allo.errors import UserError
from allo.recipe import Improve, Recipe
from allo.recipe.own_code import function_of
from allo.recipe.trainers import Trainer
from allo.training.arguments import Arguments, training_arguments
from allo.training.trackers import tracker_names

_SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}  # TRL's losses that read label_smoothing


def trl_arguments(recipe: Recipe, *, folder: Path, device: torch.device) -> Arguments:
    """Build the config of the recipe's trainer from `improve.training` and other keys.

    Raises `UserError` if TRL or PEFT is not installed, and for a key or value that TRL refuses.
    """
    improve, sample = recipe.improve, recipe.sample
    assert improve is not None
    require_packages(improve.trained_by)
    # Nothing is saved during training: TRL's checkpoints are pickles. A killed run starts the stage again.
    settings: dict[str, Any] = {"beta": improve.beta, "save_strategy": "no", "eval_strategy": "no"}
    settings["disable_dropout"] = True
    if improve.trained_by.has_adapter:
        settings |= {"max_length": recipe.max_length, "label_smoothing": _label_smoothing(improve)}
    else:
        settings |= {
            "num_generations": sample.num_generations,
            "temperature": sample.temperature,
            "top_p": sample.top_p,
            "max_completion_length": sample.max_new_tokens,
        }
        settings |= {"reward_weights": recipe.judge.function_weights} if recipe.judge.function else {}
    kind: Any = function_of(improve.trained_by.config, key="improve.trainer")
    # By default TRL uses mixed precision and activation checkpointing.
    plain: dict[str, Any] = {"bf16": False, **tracker_names(recipe, "improve")}
    if "gradient_checkpointing" not in (improve.training.model_extra or {}):
        plain["activation_checkpointing"] = False
    return training_arguments(
        plain | improve.training.model_dump(),
        folder=folder,
        seed=recipe.seed,
        device=device,
        key="improve.training",
        kind=kind,
        settings=settings,
    )


def _label_smoothing(improve: Improve) -> float:
    """Return the adapters' label smoothing. Raises `UserError` if TRL's loss would not read it."""
    smoothing = float(improve.loss_settings.get("label_smoothing", 0.0))
    named = (improve.training.model_extra or {}).get("loss_type", "sigmoid")
    kinds = {named} if isinstance(named, str) else set(named)
    if smoothing and not kinds & _SMOOTHED:
        raise UserError(
            f"improve.loss_settings.label_smoothing is {smoothing}, and TRL's {' and '.join(sorted(kinds))} loss, with which "
            f"trainer {improve.trainer!r} trains, does not read it. Set improve.training.loss_type to robust, TRL's loss for "
            "labels of which this share is wrong (divided by 1 - 2 * label_smoothing, other than allo's dpo), or remove "
            "label_smoothing."
        )
    return smoothing


def require_packages(trainer: Trainer) -> None:
    """Raise `UserError` if the trainer's packages are not installed."""
    absent = [package for package in trainer.packages if find_spec(package) is None]
    if absent:
        raise UserError(
            f"improve.trainer {trainer.name!r} trains through {' and '.join(trainer.packages)}; not installed: "
            f"{', '.join(absent)}. Run pip install 'allo-align[trl,peft]'."
        )


@contextmanager
def without_known_warnings() -> Iterator[None]:
    """Suppress warnings that the libraries' own code causes and users cannot avoid."""
    with warnings.catch_warnings():
        # TRL 1.16 reads a name that transformers 5.23 has deprecated.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        # PEFT's SHiRA makes a sparse tensor without choosing whether to check it.
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled", UserWarning)
        yield
