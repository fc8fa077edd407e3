"""Rounds: a recipe's alignment repeated, each time from the previous round's model (decision 0020)."""

from pathlib import Path

from allo.files.artifacts import RunFolder, sha256_text
from allo.recipe import Recipe
from allo.recipe.numbers import Count, CountOrZero

_SEEDS = 2**31  # seeds that every generator accepts


class RoundRecipe(Recipe):
    """A recipe for round `number`, with the round's own seeds."""

    number: Count
    order_seed: CountOrZero

    @property
    def seed_of_order(self) -> int:
        return self.order_seed


def of_round(recipe: Recipe, number: int) -> RoundRecipe:
    """Return the recipe of round `number`, counted from 1. The first round's recipe is unchanged.

    All rounds take the same prompts, in one order.
    """
    changed: dict[str, object] = {"number": number, "order_seed": recipe.seed_of_order}
    if number > 1:
        changed["seed"] = seed_of_round(recipe.seed, number)
        changed["data_seed"] = seed_of_round(recipe.seed_of_data, number)
    return RoundRecipe.model_validate({**dict(recipe), **changed})


def seed_of_round(seed: int, number: int) -> int:
    """Return a seed that differs, barring chance, between rounds and between recipe seeds."""
    return int(sha256_text(f"seed {seed}, round {number}")[:16], 16) % _SEEDS


def round_name(number: int) -> str:
    """Return the name of a round's folder inside the run's."""
    return f"round-{number}"


def rounds_there(run: Path) -> dict[int, Path]:
    """Return the round folders of a run by number, in order."""
    found = {path.name.removeprefix("round-"): path for path in run.glob("round-*") if path.is_dir()}
    return {int(number): found[number] for number in sorted(filter(str.isdigit, found), key=int)}


def first_round(run: RunFolder) -> RunFolder:
    """Return the folder of the first alignment: the run itself, or its first round."""
    return RunFolder(rounds_there(run.path).get(1, run.path))


def training_folders(recipe: Recipe, run: RunFolder) -> dict[str, Path]:
    """Return each training stage's folder by name, in order."""
    folders = {"forget": run.forget, "improve": run.improve}
    return {name: folders[name] for name in recipe.training_stages}


def trained(recipe: Recipe, run: RunFolder) -> Path:
    """Return the folder of the last training stage."""
    return list(training_folders(recipe, run).values())[-1]
