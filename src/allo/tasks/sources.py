"""The records that a recipe's blocks name."""

from collections.abc import Sequence
from typing import TypeVar

from allo.errors import UserError
from allo.files.records import Feedback, Pair, Prompt
from allo.files.rows import Reading
from allo.recipe import Recipe
from allo.recipe.sources import HELD_OUT, Data, EvaluationSet, Part, Source
from allo.tasks.base import distinct
from allo.tasks.feedback import read_feedback
from allo.tasks.held_out import sentence, split
from allo.tasks.pairs import pairs_and_reading
from allo.tasks.prompts import PromptSource, prompts_and_reading, repeated, taken

Ready = TypeVar("Ready", Pair, Feedback)


class Sources:
    """The rows that a recipe names, each source read once."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._prompts: dict[PromptSource, tuple[list[Prompt], Reading]] = {}
        self._pairs: tuple[list[Pair], Reading] | None = None
        self._feedback: tuple[list[Feedback], Reading] | None = None

    def prompts(self, source: Source) -> list[Prompt]:
        """Return the prompts (at least one) of a source or a mixture. Raises `UserError` for bad input.

        Held-out prompts of the recipe's `data` block are left out.
        """
        return self._split_prompts(source)[0]

    def sets(self) -> dict[str, list[Prompt]]:
        """Return the prompts of each evaluation set, held-out prompts among them. Raises `UserError` for bad input."""
        found = {name: self.prompts(source) for name, source in self.recipe.evaluate.sets.items()}
        if self.recipe.data.is_ready:
            return found
        held_out = self._split_prompts(self.recipe.data)[1]
        return found | ({HELD_OUT: held_out} if held_out else {})

    def pairs(self) -> list[Pair]:
        """Return the ready pairs (at least one) to train on, of the recipe's `data` block.

        Raises `UserError` for bad input.
        """
        return self._split_pairs()[0]

    def held_out_pairs(self) -> list[Pair]:
        """Return the ready pairs that are held out. Raises `UserError` for bad input."""
        return self._split_pairs()[1]

    def feedback(self) -> list[Feedback]:
        """Return the labelled completions (at least one) to train on, of the recipe's `data` block.

        Raises `UserError` for bad input.
        """
        return self._split_feedback()[0]

    def held_out_feedback(self) -> list[Feedback]:
        """Return the labelled completions that are held out. Raises `UserError` for bad input."""
        return self._split_feedback()[1]

    def held_out(self) -> str:
        """Return how many rows are held out, in words; nothing if the recipe holds out none."""
        if not self.recipe.data.held_out:
            return ""
        if self.recipe.data.pairs is not None:
            return sentence(*self._split_pairs())
        if self.recipe.data.feedback is not None:
            return sentence(*self._split_feedback())
        return sentence(*self._split_prompts(self.recipe.data))

    def _split_prompts(self, source: Source) -> tuple[list[Prompt], list[Prompt]]:
        prompts = self._prompts_and_readings(source, key="")[0]
        held_out = source.held_out if isinstance(source, Data) else 0
        return split(prompts, held_out, seed=self.recipe.seed_of_order)

    def _split_pairs(self) -> tuple[list[Pair], list[Pair]]:
        data, (found, _) = self.recipe.data, self._pairs_and_reading()
        pairs = _some_of(found, data, f"{data.pairs}: no pairs")
        return split(pairs, data.held_out, seed=self.recipe.seed_of_order)

    def _split_feedback(self) -> tuple[list[Feedback], list[Feedback]]:
        data, (found, _) = self.recipe.data, self._feedback_and_reading()
        rows = _some_of(found, data, f"{data.feedback}: no labelled completions")
        return split(rows, data.held_out, seed=self.recipe.seed_of_order)

    def readings(self) -> dict[str, Reading]:
        """Return the fate of every source's rows by its key in the recipe. Raises `UserError` for bad input."""
        recipe = self.recipe
        sft = recipe.sft.sources if recipe.sft else []
        sources: dict[str, Source] = {f"sft.sources.{n}": each for n, each in enumerate(sft)}
        sources |= {f"evaluate.sets.{name}": each for name, each in recipe.evaluate.sets.items()}
        sources |= {"evaluate.kl": recipe.evaluate.kl} if recipe.evaluate.kl else {}
        found: dict[str, Reading] = {}
        if recipe.data.pairs is not None:
            found["data.pairs"] = self._pairs_and_reading()[1]
        elif recipe.data.feedback is not None:
            found["data.feedback"] = self._feedback_and_reading()[1]
        else:
            sources = {"data": recipe.data} | sources
        for key, source in sources.items():
            found |= self._prompts_and_readings(source, key=key)[1]
        return found

    def _pairs_and_reading(self) -> tuple[list[Pair], Reading]:
        if self._pairs is None:
            data = self.recipe.data
            assert data.pairs is not None
            self._pairs = pairs_and_reading(
                data.pairs,
                split=data.split,
                config=data.config,
                chat=self.recipe.chat,
                pairing=self.recipe.pair,
                skip_bad=bool(data.skip_bad),
            )
        return self._pairs

    def _feedback_and_reading(self) -> tuple[list[Feedback], Reading]:
        if self._feedback is None:
            data = self.recipe.data
            assert data.feedback is not None
            self._feedback = read_feedback(
                data.feedback,
                split=data.split,
                config=data.config,
                chat=self.recipe.chat,
                skip_bad=bool(data.skip_bad),
            )
        return self._feedback

    def _prompts_and_readings(self, source: Source, *, key: str) -> tuple[list[Prompt], dict[str, Reading]]:
        if not isinstance(source, Data) or source.mixture is None:
            one = _prompt_source(self.recipe, source)
            if one not in self._prompts:
                self._prompts[one] = prompts_and_reading(one)
            prompts, reading = self._prompts[one]
            return prompts, {key: reading}
        parts: list[tuple[Part, list[Prompt]]] = []
        found: dict[str, Reading] = {}
        for number, part in enumerate(source.mixture):
            prompts, of_part = self._prompts_and_readings(part, key=f"{key}.mixture.{number}")
            parts.append((part, prompts))
            found |= of_part
        prompts = taken(in_turn(parts), skip=source.skip, limit=source.limit)
        return prompts, {key: Reading(len(prompts), duplicates=repeated(prompts)), **found}


def sources_read(recipe: Recipe) -> Sources:
    """Read all of a recipe's sources. Raises `UserError` for bad input, before transformers is loaded."""
    sources = Sources(recipe)
    sources.readings()
    return sources


def prompts_of(recipe: Recipe, source: Source) -> list[Prompt]:
    """Return the prompts (at least one) of a source or a mixture. Raises `UserError` for bad input."""
    return Sources(recipe).prompts(source)


def in_turn(parts: Sequence[tuple[Part, Sequence[Prompt]]]) -> list[Prompt]:
    """Return all prompts, each part's in order, mixed so that every beginning has the parts' proportions.

    Either all parts have a weight or none; without weights their prompts are counted. When a part runs out, the
    others go on. Raises `UserError` for two prompts with one id.
    """
    turns = sorted(
        ((place + 0.5) / (part.weight or len(prompts)), number, place)
        for number, (part, prompts) in enumerate(parts)
        for place in range(len(prompts))
    )
    return list(distinct((f"data.mixture.{n}", parts[n][1][place]) for _, n, place in turns))


def training_prompts(recipe: Recipe) -> list[Prompt]:
    """Return the prompts of the recipe's `data` block that are not held out."""
    return prompts_of(recipe, recipe.data)


def _some_of(rows: list[Ready], data: Data, none: str) -> list[Ready]:
    """Return the rows that `skip` and `limit` leave. Raises `UserError`, beginning with `none`, if there are none."""
    kept = rows[data.skip :][: data.limit]
    if not kept:
        raise UserError(f"{none} left: {len(rows)} were found, skip is {data.skip}; lower `skip`.")
    return kept


def training_pairs(recipe: Recipe) -> list[Pair]:
    """Return the ready pairs to train on; see `Sources.pairs`."""
    return Sources(recipe).pairs()


def _prompt_source(recipe: Recipe, source: Source) -> PromptSource:
    """Return a recipe's source with the recipe's seed, chat setting, folder of local rows, and judge."""
    fields = source.model_dump(include=set(Source.model_fields))
    return PromptSource(
        **fields,
        folder=recipe.data_folder,
        seed=recipe.seed_of_order,
        chat=recipe.chat,
        for_function=bool(recipe.judge.function)
        and not (isinstance(source, EvaluationSet) and source.by_answer),
    )
