"""Rounds: a recipe's alignment repeated, each time from the model that the last time left (decision 0020)."""

from pathlib import Path

from allo.files.artifacts import RunFolder, sha256_text
from allo.recipe import Recipe
from allo.recipe.numbers import Count, CountOrZero
from allo.recipe.sources import Data

_SEEDS = 2**31  # what every generator takes


class RoundRecipe(Recipe):
    """A recipe as round `number` sees it: draws and prompts of the round's own."""

    number: Count
    order_seed: CountOrZero

    @property
    def seed_of_order(self) -> int:
        return self.order_seed


def of_round(recipe: Recipe, number: int) -> RoundRecipe:
    """The recipe of round `number`, from 1 on. The first is the recipe as it stands.

    Prompts keep one order in all rounds, so that the next ones are ones that no earlier round took.
    """
    changed: dict[str, object] = {"number": number, "order_seed": recipe.seed_of_order}
    if number > 1:
        changed["seed"] = seed_of_round(recipe.seed, number)
        changed["data_seed"] = seed_of_round(recipe.seed_of_data, number)
    if recipe.round_prompts == "next":
        taken = (number - 1) * (recipe.data.limit or 0)
        changed["data"] = recipe.data.model_copy(update={"skip": recipe.data.skip + taken})
    return RoundRecipe.model_validate({**dict(recipe), **changed})


def data_of_rounds(recipe: Recipe) -> dict[int, Data]:
    """The data of each round that takes other problems than the rounds before it, by number."""
    found = {1: recipe.data}
    for number in range(2, recipe.rounds + 1):
        data = of_round(recipe, number).data
        if data not in found.values():
            found[number] = data
    return found


def seed_of_round(seed: int, number: int) -> int:
    """A seed that neither another round nor the same round of another seed has, but by chance."""
    return int(sha256_text(f"seed {seed}, round {number}")[:16], 16) % _SEEDS


def round_name(number: int) -> str:
    """A round's folder in the run's."""
    return f"round-{number}"


def rounds_there(run: Path) -> dict[int, Path]:
    """The rounds' folders that a run's folder holds, by number, in order."""
    found = {path.name.removeprefix("round-"): path for path in run.glob("round-*") if path.is_dir()}
    return {int(number): found[number] for number in sorted(filter(str.isdigit, found), key=int)}


def first_round(run: RunFolder) -> RunFolder:
    """Where the first alignment's files are: in the run itself, or in its first round."""
    return RunFolder(rounds_there(run.path).get(1, run.path))


def training_folders(recipe: Recipe, run: RunFolder) -> dict[str, Path]:
    """The folder of each training stage by its name, in the recipe's order."""
    folders = {"forget": run.forget, "improve": run.improve}
    return {name: folders[name] for name in recipe.training_stages}


def trained(recipe: Recipe, run: RunFolder) -> Path:
    """The folder of the last training stage."""
    return list(training_folders(recipe, run).values())[-1]
