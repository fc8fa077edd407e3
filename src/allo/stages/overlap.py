"""The overlap of a run's evaluation problems with its training problems."""

from collections.abc import Iterator, Mapping, Sequence

from allo.files.evaluation import Overlap
from allo.files.records import Feedback, Message, Pair, Prompt
from allo.tasks.base import question_of
from allo.tasks.overlap import overlap
from allo.tasks.sources import Sources


def overlaps(sources: Sources, sets: Mapping[str, Sequence[Prompt | Pair | Feedback]]) -> dict[str, Overlap]:
    """Count each evaluation set's questions that fine-tuning or alignment has seen, whatever the wording around them."""
    trained = [question_of(prompt) for prompt in _trained_on(sources)]
    return {
        name: overlap([question_of(prompt.prompt) for prompt in prompts], trained)
        for name, prompts in sets.items()
    }


def _trained_on(sources: Sources) -> Iterator[str | list[Message]]:
    """Yield the prompts of the demonstrations, and of the pairs, labelled completions or problems."""
    recipe, data = sources.recipe, sources.recipe.data
    for source in recipe.sft.sources if recipe.sft else []:
        yield from (prompt.prompt for prompt in sources.prompts(source))
    if data.pairs is not None:
        yield from (pair.prompt for pair in sources.pairs())
    elif data.feedback is not None:
        yield from (row.prompt for row in sources.feedback())
    else:
        yield from (prompt.prompt for prompt in sources.prompts(data))
