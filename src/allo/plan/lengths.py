"""How long the rows of a run can be, as far as its recipe says."""

from dataclasses import dataclass

from allo.models.load import Model
from allo.models.model_checks import num_positions
from allo.recipe import Recipe
from allo.sampling.completions import prompt_room


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest rows: a prompt, and what follows it."""

    prompt: int
    completion: int

    @property
    def row(self) -> int:
        return self.prompt + self.completion


def training_lengths(recipe: Recipe) -> Lengths:
    """A row of `max_length` with the longest completion that is sampled; of ready pairs half is prompt."""
    sampled = recipe.sample.max_new_tokens if recipe.data.pairs is None else recipe.max_length // 2
    completion = max(1, min(sampled, recipe.max_length - 1))
    return Lengths(recipe.max_length - completion, completion)


def scoring_lengths(recipe: Recipe) -> Lengths:
    """Return the lengths of training; prompts that show the solution have as much room again.

    A rewriter is taken to be as large as the policy.
    """
    assert recipe.score is not None
    lengths = training_lengths(recipe)
    more = recipe.max_length if any(one.prompts_with_solution for one in recipe.score.entries) else 0
    return Lengths(lengths.prompt + more, lengths.completion)


def sampling_lengths(recipe: Recipe, model: Model, max_new_tokens: int) -> Lengths:
    """A prompt as long as the recipe and the model's positions allow, and its longest completion."""
    room = prompt_room(
        num_positions(model.config), max_length=recipe.max_length, max_new_tokens=max_new_tokens
    )
    return Lengths(room, max_new_tokens)
