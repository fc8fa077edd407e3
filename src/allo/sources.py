"""From a recipe's blocks to the records they name."""

from collections.abc import Sequence

from allo.errors import UserError
from allo.prompts import PromptSource, read_prompts, taken
from allo.prompts.pairs import read_pairs
from allo.recipe import Recipe
from allo.recipe.sources import Data, Part, Source
from allo.records import Pair, Prompt
from allo.tasks.base import distinct


def prompts_of(recipe: Recipe, source: Source) -> list[Prompt]:
    """The prompts of a source or a mixture; at least one. Raises `UserError` for bad input."""
    if isinstance(source, Data) and source.mixture is not None:
        parts = [(part, prompts_of(recipe, part)) for part in source.mixture]
        return taken(in_turn(parts), skip=source.skip, limit=source.limit)
    return read_prompts(_prompt_source(recipe, source))


def in_turn(parts: Sequence[tuple[Part, Sequence[Prompt]]]) -> list[Prompt]:
    """All prompts of the parts, each part's in its order, so that every beginning holds them in proportion to weight.

    All parts have a weight, or none; then it is the number of their prompts. A part that has run out is left out, and the others go on. Raises `UserError` for two prompts with one id.
    """
    turns = sorted(
        ((place + 0.5) / (part.weight or len(prompts)), number, place)
        for number, (part, prompts) in enumerate(parts)
        for place in range(len(prompts))
    )
    return list(distinct((f"data.mixture.{n}", parts[n][1][place]) for _, n, place in turns))


def training_prompts(recipe: Recipe) -> list[Prompt]:
    """The prompts of the recipe's `data` block."""
    return prompts_of(recipe, recipe.data)


def training_pairs(recipe: Recipe) -> list[Pair]:
    """The ready pairs of the recipe's `data` block; at least one. Raises `UserError` for bad input."""
    data = recipe.data
    assert data.pairs is not None
    found = read_pairs(data.pairs, chat=recipe.chat)
    pairs = found[data.skip :][: data.limit]
    if not pairs:
        raise UserError(
            f"{data.pairs}: no pairs left: {len(found)} were found, skip is {data.skip}; lower `skip`."
        )
    return pairs


def _prompt_source(recipe: Recipe, source: Source) -> PromptSource:
    """A recipe's source with the recipe's seed, chat setting and folder of local rows."""
    fields = source.model_dump(include=set(Source.model_fields))
    return PromptSource(**fields, folder=recipe.data_folder, seed=recipe.seed_of_order, chat=recipe.chat)
