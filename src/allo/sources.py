"""From a recipe's blocks to the records they name."""

from allo.prompts import PromptSource, read_prompts
from allo.recipe import Recipe, Source
from allo.records import Prompt


def prompt_source(recipe: Recipe, source: Source) -> PromptSource:
    """A recipe's source with the recipe's seed, chat setting and folder of local rows."""
    fields = source.model_dump(include=set(Source.model_fields))
    return PromptSource(**fields, folder=recipe.data_folder, seed=recipe.seed, chat=recipe.chat)


def training_prompts(recipe: Recipe) -> list[Prompt]:
    """The prompts of the recipe's `data` block."""
    return read_prompts(prompt_source(recipe, recipe.data))
