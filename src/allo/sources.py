"""From a recipe's blocks to the records they name."""

from collections.abc import Sequence

from allo.errors import UserError
from allo.prompts import PromptSource, prompts_and_reading, repeated, taken
from allo.prompts.pairs import pairs_and_reading
from allo.recipe import Recipe
from allo.recipe.sources import Data, Part, Source
from allo.records import Pair, Prompt
from allo.rows import Reading
from allo.tasks.base import distinct


def prompts_of(recipe: Recipe, source: Source) -> list[Prompt]:
    """Return the prompts of a source or a mixture; at least one. Raises `UserError` for bad input."""
    return _prompts_and_readings(recipe, source, key="")[0]


def readings(recipe: Recipe) -> dict[str, Reading]:
    """Return what became of the rows of every source, by its key in the recipe. Raises `UserError` for bad input."""
    sources: dict[str, Source] = {f"sft.sources.{n}": each for n, each in enumerate(_sft(recipe))}
    sources |= {f"evaluate.sets.{name}": each for name, each in recipe.evaluate.sets.items()}
    sources |= {"evaluate.kl": recipe.evaluate.kl} if recipe.evaluate.kl else {}
    if recipe.data.pairs is None:
        sources = {"data": recipe.data} | sources
        found: dict[str, Reading] = {}
    else:
        found = {"data.pairs": pairs_and_reading(recipe.data.pairs, chat=recipe.chat)[1]}
    for key, source in sources.items():
        found |= _prompts_and_readings(recipe, source, key=key)[1]
    return found


def _sft(recipe: Recipe) -> Sequence[Source]:
    return recipe.sft.sources if recipe.sft else ()


def _prompts_and_readings(
    recipe: Recipe, source: Source, *, key: str
) -> tuple[list[Prompt], dict[str, Reading]]:
    if not isinstance(source, Data) or source.mixture is None:
        prompts, reading = prompts_and_reading(_prompt_source(recipe, source))
        return prompts, {key: reading}
    parts: list[tuple[Part, list[Prompt]]] = []
    found: dict[str, Reading] = {}
    for number, part in enumerate(source.mixture):
        prompts, of_part = _prompts_and_readings(recipe, part, key=f"{key}.mixture.{number}")
        parts.append((part, prompts))
        found |= of_part
    prompts = taken(in_turn(parts), skip=source.skip, limit=source.limit)
    return prompts, {key: Reading(len(prompts), duplicates=repeated(prompts)), **found}


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
    found, _ = pairs_and_reading(data.pairs, chat=recipe.chat)
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
