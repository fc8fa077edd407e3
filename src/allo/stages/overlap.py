"""The overlap of a run's evaluation problems with its training problems."""

from collections.abc import Iterator, Mapping, Sequence

from allo.files.evaluation import Overlap
from allo.files.records import Message, Pair, Prompt
from allo.recipe import Recipe
from allo.tasks.base import question_of
from allo.tasks.overlap import overlap
from allo.tasks.sources import prompts_of, training_pairs


def overlaps(recipe: Recipe, sets: Mapping[str, Sequence[Prompt | Pair]]) -> dict[str, Overlap]:
    """Count each evaluation set's questions that fine-tuning or alignment has seen, whatever the wording around them."""
    trained = [question_of(prompt) for prompt in _trained_on(recipe)]
    return {
        name: overlap([question_of(prompt.prompt) for prompt in prompts], trained)
        for name, prompts in sets.items()
    }


def _trained_on(recipe: Recipe) -> Iterator[str | list[Message]]:
    """Yield the prompts of the demonstrations, and of the pairs or of the problems."""
    for source in recipe.sft.sources if recipe.sft else []:
        yield from (prompt.prompt for prompt in prompts_of(recipe, source))
    if recipe.data.pairs is not None:
        yield from (pair.prompt for pair in training_pairs(recipe))
        return
    yield from (prompt.prompt for prompt in prompts_of(recipe, recipe.data))
