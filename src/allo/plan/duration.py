"""The tokens that each stage reads or writes, and the time that they take at a rate."""

from collections.abc import Sequence
from dataclasses import dataclass

from allo.files.records import Message
from allo.recipe import Forget, Improve, Recipe
from allo.recipe.criteria import criterion_of
from allo.recipe.locate import Locate
from allo.recipe.training import Training
from allo.tasks.sources import Sources

CHARACTERS = 4
"""Characters of a token, as in English text."""
_READ = 1 / 3  # a forward pass costs a third of a forward and a backward pass

ASSUMED = (
    f"Assumed: {CHARACTERS} characters a token; rows cut at max_length; a pass that only reads costs a third of a training "
    "pass; a sampled token costs as much as a trained one, and every answer is sampled to its longest; one pair a prompt."
)


@dataclass(frozen=True)
class _Row:
    """The tokens of a prompt, and of the answers to it."""

    prompt: int
    answers: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.prompt + answer for answer in self.answers)


def tokens_of(recipe: Recipe, sources: Sources) -> dict[str, int]:
    """Return the tokens of each stage, counted as trained ones: estimates from the rows' characters."""
    rows, held_out = _rows(recipe, sources)
    found = {}
    if not recipe.data.is_ready:
        answers = len(rows) * recipe.sample.num_generations
        found["sample"] = answers * recipe.sample.max_new_tokens + sum(row.prompt for row in rows) * _READ
        rows = [_Row(row.prompt, (recipe.sample.max_new_tokens,) * 2) for row in rows]
    for stage in ("locate", "forget", "improve"):
        block = getattr(recipe, stage)
        if block is not None:
            one_side = stage == "forget" and not recipe.data.feedback
            reference = 0 if stage == "locate" else _READ
            tokens = sum(row.tokens for row in rows) / (2 if one_side else 1)
            found[stage] = tokens * _passes(block, len(rows)) * (1 + reference)
    if recipe.forget is not None and recipe.score is not None:
        models = sum(len(scorer.needs) for scorer in recipe.score.entries)
        found["score"] = models * _READ * sum(row.tokens for row in rows) / 2
    found["evaluate"] = (1 + recipe.evaluate.start) * _evaluated(recipe, held_out)
    order = ("sample", "locate", "score", "forget", "improve", "evaluate")
    return {stage: round(found[stage]) for stage in order if stage in found}


def _passes(block: Locate | Forget | Improve, rows: int) -> float:
    """Return how often a stage reads its rows; a search for weights that warms up no model reads them once, or never."""
    training: Training = block.training
    if isinstance(block, Locate) and not (criterion := criterion_of(block.criterion)).trains:
        return float(criterion.sums)
    most = (training.model_extra or {}).get("max_steps", -1)
    if most > 0:
        return float(
            most * training.per_device_train_batch_size * training.gradient_accumulation_steps / max(1, rows)
        )
    return training.num_train_epochs


def _rows(recipe: Recipe, sources: Sources) -> tuple[list[_Row], list[_Row]]:
    """Return the rows to train on, and those held out or in evaluation sets."""

    def row(prompt: str | list[Message], *answers: str) -> _Row:
        asked = prompt if isinstance(prompt, str) else "".join(turn.get("content") or "" for turn in prompt)
        longest, tokens = recipe.max_length, [len(answer) // CHARACTERS + 1 for answer in answers]
        return _Row(min(len(asked) // CHARACTERS + 1, longest), tuple(min(each, longest) for each in tokens))

    if recipe.data.pairs is not None:
        sides = (sources.pairs(), sources.held_out_pairs())
        kept, held_out = ([row(one.prompt, one.chosen, one.rejected) for one in side] for side in sides)
        return kept, held_out
    if recipe.data.feedback is not None:
        labelled = (sources.feedback(), sources.held_out_feedback())
        kept, held_out = ([row(one.prompt, one.completion) for one in side] for side in labelled)
        return kept, held_out
    asked = [prompt for prompts in sources.sets().values() for prompt in prompts]
    return [row(one.prompt) for one in sources.prompts(recipe.data)], [row(one.prompt) for one in asked]


def _evaluated(recipe: Recipe, rows: Sequence[_Row]) -> float:
    """Return the tokens that measure one model."""
    if recipe.data.is_ready:
        return sum(row.tokens for row in rows) * _READ
    answers = recipe.evaluate.num_generations + recipe.evaluate.greedy
    return len(rows) * answers * recipe.evaluate.max_new_tokens + sum(row.prompt for row in rows) * _READ


def words(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
