"""The settings that a sharded model, whose rows are divided among processes, does not fit."""

from typing import TYPE_CHECKING

from allo.recipe.backends import BACKENDS
from allo.recipe.granularity import WEIGHT
from allo.recipe.scores import scorer_entry

if TYPE_CHECKING:
    from allo.recipe import Recipe

_SERVE = "set sample.backend to openai, and sample.serve to true or sample.servers to those that you start; or give data.pairs"


def shards_fault(recipe: "Recipe") -> str:
    """Return why a recipe's model cannot be sharded and what to do, or an empty text."""
    if not recipe.data.is_ready and not BACKENDS[recipe.sample.backend].asks_servers:
        return f"a sharded model does not sample: {_SERVE}"
    if recipe.rounds > 1:
        return "rounds sample from models that no server has yet: set rounds to 1"
    if recipe.improve and not recipe.improve.trained_by.selects:
        return f"improve.trainer {recipe.improve.trainer!r} trains whole models: set it to selected, or remove shards"
    sampled = {"evaluate.sets": recipe.evaluate.sets, "evaluate.kl": recipe.evaluate.kl}
    if given := [key for key, value in sampled.items() if value]:
        return (
            f"a sharded model does not sample: remove {', '.join(given)}; after the run, give them to `allo evaluate` without "
            "shards where one process holds the model, or measure 07-improve/model at `vllm serve`"
        )
    if recipe.data.held_out is not None and not recipe.data.is_ready:
        return "a sharded model does not answer held-out prompts, which would only be left out: remove data.held_out"
    if recipe.locate and recipe.locate.granularity != WEIGHT:
        return f"locate.granularity {recipe.locate.granularity!r}: single weights are located; remove it"
    for name in recipe.score.scorers if recipe.score and recipe.forget else ():
        entry = scorer_entry(name)
        if entry.weights or "rewriter" in entry.needs or recipe.reads_warmup:
            return f"score.scorer {name!r} asks other models, which are not sharded: choose another, such as confidence"
    return ""


def is_evaluated(recipe: "Recipe") -> bool:
    """Return whether a recipe measures its models: a sharded one only on rows that need no samples."""
    return recipe.shards is None or bool(recipe.data.held_out or recipe.evaluate.likelihood_pairs)
