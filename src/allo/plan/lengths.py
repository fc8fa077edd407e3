"""How long the rows of a run are, as far as the recipe says."""

from dataclasses import dataclass

from allo.recipe import Recipe


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest rows: a prompt, and what follows it."""

    prompt: int
    completion: int

    @property
    def row(self) -> int:
        return self.prompt + self.completion


def training_lengths(recipe: Recipe) -> Lengths:
    """A row of `max_length` with the longest completion that sampling leaves; of ready pairs half is prompt."""
    if recipe.data.pairs is None:
        completion = min(recipe.sample.max_new_tokens, recipe.max_length - 1)
    else:
        completion = recipe.max_length - recipe.max_length // 2
    return Lengths(recipe.max_length - completion, completion)
