"""From a recipe's blocks to the records they name."""

from allo.errors import UserError
from allo.prompts import PromptSource, read_pairs, read_prompts
from allo.recipe import Recipe
from allo.recipe.sources import Source
from allo.records import Pair, Prompt


def prompt_source(recipe: Recipe, source: Source) -> PromptSource:
    """A recipe's source with the recipe's seed, chat setting and folder of local rows."""
    fields = source.model_dump(include=set(Source.model_fields))
    return PromptSource(**fields, folder=recipe.data_folder, seed=recipe.seed_of_order, chat=recipe.chat)


def training_prompts(recipe: Recipe) -> list[Prompt]:
    """The prompts of the recipe's `data` block."""
    return read_prompts(prompt_source(recipe, recipe.data))


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
