"""Rounds of alignment by hand, each a run of its own: with momentum between them, or each on the next prompts.

    python -m experiments.rounds recipes/lab_rounds.yaml --momentum 0.5
    python -m experiments.rounds recipes/lab_rounds.yaml --next-prompts --set rounds=5

Without an option the last model is that of the recipe's own `rounds`, with `relocate: true`. Every round locates anew,
and only the last one is evaluated, beside the model that it started from.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from allo.errors import DivergedError, UserError
from allo.files.artifacts import RunFolder, remove
from allo.files.rounds import round_name, seed_of_round, trained
from allo.models.start import read_start
from allo.pipeline import run_all
from allo.recipe import Recipe, load_recipe
from allo.weights.checkpoints import Checkpoint, write_like
from allo.weights.fingerprints import as_bits
from allo.weights.finite import check_finite


def run_rounds(recipe: Recipe, *, momentum: float = 0.0, next_prompts: bool = False) -> list[RunFolder]:
    """Run the recipe's rounds, each from the previous one's model.

    With momentum a, each further round starts from theta_t + a (theta_t - theta_(t-1)). Here theta_t is the model that
    round t left, and theta_0 the first start.
    """
    if next_prompts and (recipe.data.limit is None or recipe.data.order == "shuffled"):
        raise UserError("The next prompts are the next data.limit of an unshuffled source: set both.")
    runs: list[RunFolder] = []
    left: list[Path] = []
    for number in range(1, recipe.rounds + 1):
        start = left[-1] if left else None
        if momentum and len(left) > 1:
            start = recipe.run_folder / f"start-{number}"
            extrapolate(left[-1], left[-2], start, momentum=momentum)
        own = of_round(recipe, number, start=start, next_prompts=next_prompts)
        runs.append(run_all(own, until=None if number == recipe.rounds else own.training_stages[-1]))
        left += [] if left else [Path(read_start(runs[0]).model)]
        left.append(trained(own, runs[-1]) / "model")
    return runs


def of_round(recipe: Recipe, number: int, *, start: Path | None, next_prompts: bool) -> Recipe:
    """Return the recipe of one round's run, with the seeds of the recipe's own rounds."""
    changed: dict[str, object] = {"rounds": 1, "out": recipe.run_folder, "name": round_name(number)}
    if start is not None:
        changed |= {
            "model": str(start),
            "sft": None,
            "seed": seed_of_round(recipe.seed, number),
            "data_seed": seed_of_round(recipe.seed_of_data, number),
        }
    if next_prompts:
        skip = recipe.data.skip + (number - 1) * (recipe.data.limit or 0)
        changed["data"] = recipe.data.model_copy(update={"skip": skip})
    return Recipe.model_validate({**dict(recipe), **changed})


def extrapolate(latest: Path, earlier: Path, out: Path, *, momentum: float) -> None:
    """Write the model beyond `latest`, as seen from `earlier`."""
    before = Checkpoint.open(earlier)

    def beyond(name: str, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
        for new, old in zip(pieces, before.pieces(name), strict=True):
            result = extrapolated(new, old, momentum=momentum)
            check_finite([(name, result)], where=str(out), advice="Lower the momentum.", kind=DivergedError)
            yield result

    remove(out)
    write_like(Checkpoint.open(latest), out, beyond)


def extrapolated(latest: Tensor, earlier: Tensor, *, momentum: float) -> Tensor:
    """Return theta_t + a (theta_t - theta_(t-1)) if the bits of the two differ; otherwise `latest`, bit for bit.

    Inputs and result share one shape and dtype; the computation is in fp32 and rounds once. Follows accelerated
    preference optimization (arXiv 2410.06293), which extrapolates the policies' log-probs.
    """
    differs = as_bits(latest) != as_bits(earlier)
    new, old = latest[differs].float(), earlier[differs].float()
    result = latest.clone()
    result[differs] = torch.add(new, new - old, alpha=momentum).to(latest.dtype)
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Run a recipe's rounds, each as a run of its own.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument(
        "--next-prompts", action="store_true", help="each round takes the next data.limit prompts"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.recipe, ["compare=null", *options.overrides])
    runs = run_rounds(recipe, momentum=options.momentum, next_prompts=options.next_prompts)
    print(f"The last round: {runs[-1].path}")


if __name__ == "__main__":
    main()
