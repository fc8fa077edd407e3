"""Measures of a model on the run's held-out rows, which are pairs or labelled completions."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from allo.files.artifacts import RunFolder, read_jsonl
from allo.files.batches import Dealing
from allo.files.evaluation import FEEDBACK, Overlap
from allo.files.records import Feedback, Pair
from allo.models.load import Model, Tokenizer
from allo.recipe import Recipe
from allo.recipe.sources import HELD_OUT
from allo.stages.likelihood import ROWS, AtStart, measured_feedback, measured_pairs

HeldOutRows = list[Pair] | list[Feedback]


def held_out_rows(recipe: Recipe, folder: RunFolder) -> HeldOutRows:
    """Return the run's held-out pairs or labelled completions; nothing if there are none."""
    if not folder.held_out.exists():
        return []
    if recipe.data.feedback is not None:
        return read_jsonl(folder.held_out, Feedback)
    return read_jsonl(folder.held_out, Pair)


def on_held_out(
    recipe: Recipe,
    rows: HeldOutRows,
    model: Model,
    tokenizer: Tokenizer,
    at_start: AtStart | None,
    overlap: Overlap,
    deal: Dealing,
) -> dict[str, Any]:
    """Return the measures of held-out rows, with the beta of the last training stage, and their `overlap`."""
    block = recipe.improve or recipe.forget
    assert block is not None
    labelled = recipe.data.feedback is not None
    measured: Callable[..., dict[str, Any]] = measured_feedback if labelled else measured_pairs
    beta, length, seed = block.beta, recipe.max_length, recipe.seed
    size = min(ROWS, recipe.evaluate.batch_size)
    settings: dict[str, Any] = {"beta": beta, "max_length": length, "seed": seed, "size": size, "deal": deal}
    found = measured(rows, model, tokenizer, at_start, **settings)
    return {FEEDBACK if labelled else HELD_OUT: found | {"overlap": asdict(overlap)}}
