"""The longest rows of a run that its recipe allows."""

from dataclasses import dataclass

from allo.models.load import Model
from allo.models.model_checks import num_positions, prompt_room
from allo.recipe import Recipe


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest rows: a prompt, and its continuation."""

    prompt: int
    completion: int

    @property
    def row(self) -> int:
        return self.prompt + self.completion


def training_lengths(recipe: Recipe) -> Lengths:
    """Return a row of `max_length` with the longest sampled completion; for ready rows, half is prompt."""
    sampled = recipe.max_length // 2 if recipe.data.is_ready else recipe.sample.max_new_tokens
    completion = max(1, min(sampled, recipe.max_length - 1))
    return Lengths(recipe.max_length - completion, completion)


def scoring_lengths(recipe: Recipe) -> Lengths:
    """Return the lengths in training; prompts that show the solution double the row.

    A rewriter is assumed to be as large as the policy.
    """
    assert recipe.score is not None
    lengths = training_lengths(recipe)
    more = recipe.max_length if any(one.prompts_with_solution for one in recipe.score.entries) else 0
    return Lengths(lengths.prompt + more, lengths.completion)


def sampling_lengths(recipe: Recipe, model: Model, max_new_tokens: int) -> Lengths:
    """Return the longest prompt that the recipe and the model's positions allow, and its longest completion."""
    room = prompt_room(
        num_positions(model.config), max_length=recipe.max_length, max_new_tokens=max_new_tokens
    )
    return Lengths(room, max_new_tokens)
