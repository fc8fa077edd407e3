"""Rounds by hand: without an option the recipe's own; momentum is its formula, entry by entry, and moves nothing else."""

from pathlib import Path

import pytest
import torch

from allo.errors import DivergedError, UserError
from allo.files.artifacts import RunFolder
from allo.models.start import read_start
from allo.pipeline import run_all
from allo.recipe import Recipe
from allo.tasks.sources import training_prompts
from allo.weights.checkpoints import Checkpoint, fingerprint
from allo.weights.fingerprints import as_bits
from experiments.rounds import extrapolate, extrapolated, of_round, run_rounds
from model_folders import copy_of, tensors_of, write
from tiny_run import tiny

# Improving alone, on half of the tiny run's problems.
LEAST = (
    *("sft=null", "data.limit=8", "evaluate.num_generations=0", "evaluate.kl=null", "evaluate.start=false"),
    *("locate.criterion=magnitude", "sample.batch_size=32", "evaluate.batch_size=8"),
    *("forget=null", "score=null", "improve.training.learning_rate=2e-3"),
    *("improve.training.lr_scheduler_type=constant", "rounds=2"),
)
MOMENTUM = 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_formula_in_fp32_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    earlier = torch.randn(4096, generator=generator).to(dtype)
    latest = (earlier.float() + 0.01 * torch.randn(4096, generator=generator)).to(dtype)
    found = extrapolated(latest, earlier, momentum=0.5)
    # At one half both products are exact: what the CPU makes of a fused multiply-add is the same.
    expected = (latest.float() + 0.5 * (latest.float() - earlier.float())).to(dtype)
    assert found.dtype == dtype
    assert torch.equal(as_bits(found), as_bits(expected))
    assert (found != latest).float().mean() > 0.5


def test_a_worked_value() -> None:
    assert extrapolated(torch.tensor([3.0]), torch.tensor([1.0]), momentum=0.25).item() == 3.5


def test_equal_weights_keep_their_bits_and_the_inputs_theirs() -> None:
    odd = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45, 2.0])
    latest, earlier = torch.cat([odd, torch.tensor([1.0])]), torch.cat([odd, torch.tensor([0.5])])
    before = latest.clone()
    found = extrapolated(latest, earlier, momentum=0.9)
    assert torch.equal(as_bits(found)[:-1], as_bits(odd))
    assert found[-1] == torch.tensor(1.0) + 0.9 * 0.5
    assert torch.equal(as_bits(latest), as_bits(before))


def test_a_round_that_begins_beyond_the_finite_numbers_is_refused(folder: Path, tmp_path: Path) -> None:
    far = copy_of(folder, tmp_path / "far")
    write(far, {name: torch.full_like(tensor, 3e38) for name, tensor in tensors_of(far).items()})
    with pytest.raises(DivergedError, match=r"tensor .*NaN or infinite"):
        extrapolate(far, folder, tmp_path / "out", momentum=0.9)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_an_option_the_last_model_is_that_of_the_recipes_rounds(tmp_path: Path) -> None:
    expected = run_all(tiny(tmp_path / "recipe", *LEAST), until="improve").improve
    first, last = run_rounds(tiny(tmp_path / "by hand", *LEAST))
    assert Path(read_start(last).model) == (first.improve / "model").resolve()
    assert fingerprint(last.improve / "model") == fingerprint(expected / "model")
    assert last.evaluation.exists() and not first.evaluation.exists()


@pytest.mark.slow
def test_with_momentum_the_next_round_begins_beyond_the_last(tmp_path: Path) -> None:
    first, last = run_rounds(tiny(tmp_path, *LEAST), momentum=MOMENTUM)
    folders = [Path(read_start(run).model) for run in (first, last)]
    start, begun = (Checkpoint.open(one) for one in folders)
    left = Checkpoint.open(first.improve / "model")
    moved = 0
    for name in start.stored:
        before, theta, found = (one.read(name) for one in (start, left, begun))
        same = as_bits(theta) == as_bits(before)
        expected = torch.where(same, theta, theta + MOMENTUM * (theta - before))
        assert torch.equal(as_bits(found), as_bits(expected)), name
        moved += int((found != theta).sum())
    assert moved > 0
    assert fingerprint(last.improve / "model") != fingerprint(folders[1])


def taken(recipe: Recipe, *, next_prompts: bool) -> list[str]:
    rounds = (of_round(recipe, n, start=None, next_prompts=next_prompts) for n in (1, 2, 3))
    return [prompt.id for one in rounds for prompt in training_prompts(one)]


def test_the_next_prompts_are_ones_that_no_earlier_round_took(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, "data.limit=8", "data.skip=4")
    more = tiny(tmp_path, "data.limit=24", "data.skip=4")
    assert taken(recipe, next_prompts=True) == [prompt.id for prompt in training_prompts(more)]
    assert len(set(taken(recipe, next_prompts=False))) == 8


@pytest.mark.parametrize("override", ["data.limit=null", "data.order=shuffled"])
def test_next_prompts_that_would_come_again_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match=r"the next data\.limit of an unshuffled source"):
        run_rounds(tiny(tmp_path, override, "rounds=2"), next_prompts=True)
    assert not RunFolder(tmp_path / "tiny").path.exists()
