"""A plan of a recipe that selects in some tensors counts the state of these alone."""

import math
from pathlib import Path

import pytest

import tiny
from allo.errors import UserError
from allo.plan import plan_stage
from allo.plan.preview import preview
from allo.plan.preview_page import lines
from allo.plan.training import spread_mask
from allo.recipe import Recipe
from allo.weights.checkpoints import Checkpoint
from allo.weights.selection import num_to_select
from locate_setup import recipe as stage_recipe
from tiny import TOKENIZER
from tiny_run import LAB
from tiny_run import tiny as run_recipe

Q = "*.q_proj.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny.model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def recipe(checkpoint: Path, criterion: str, **own: object) -> Recipe:
    locate = {"criterion": criterion, **own}
    pairs = checkpoint / "pairs.jsonl"
    pairs.write_text('{"prompt": "Problem:", "chosen": " one", "rejected": " two"}\n')
    return stage_recipe(
        model=str(checkpoint), data={"pairs": str(pairs)}, locate=locate, improve={"density": 0.05}
    )


def sizes() -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in tiny.shapes(tiny.model()).items()}


def test_a_spread_mask_selects_the_density_of_all_in_the_allowed_tensors() -> None:
    among = {name for name in sizes() if "up_proj" in name or "down_proj" in name}
    mask = spread_mask(tiny.model(), density=0.05, among=among)
    counts = {name: len(indices) for name, indices in mask.indices.items()}
    assert sum(counts.values()) == num_to_select(0.05, sum(sizes().values())) and counts.keys() == among


@pytest.mark.parametrize(("criterion", "each"), [("warmup_fused", 8), ("gradient", 4), ("fisher", 4)])
def test_locating_keeps_host_state_of_the_allowed_tensors(
    checkpoint: Path, criterion: str, each: int
) -> None:
    few = plan_stage(recipe(checkpoint, criterion, include=[Q]), "locate")
    every = plan_stage(recipe(checkpoint, criterion), "locate")
    q = sum(size for name, size in sizes().items() if "q_proj" in name)
    assert (few.host, every.host) == (each * q, each * sum(sizes().values()))


@pytest.mark.parametrize("stage", ["locate", "forget", "improve"])
def test_stages_that_train_plan_less_without_the_largest_tensor(checkpoint: Path, stage: str) -> None:
    """No gradient of the embeddings, and in a warm-up no state of them either."""
    few = plan_stage(recipe(checkpoint, "warmup", include=["linear"]), stage)
    every = plan_stage(recipe(checkpoint, "warmup"), stage)
    assert few.total < every.total
    if stage == "locate":
        assert few.bytes["state"] < 0.7 * every.bytes["state"]


def test_a_plan_refuses_patterns_that_a_run_refuses(checkpoint: Path) -> None:
    for criterion in ("warmup", "gradient"):
        with pytest.raises(UserError, match=r"locate.include: '\*qproj\*' names none"):
            plan_stage(recipe(checkpoint, criterion, include=["*qproj*"]), "locate")
    with pytest.raises(UserError, match=r"locate\.include: 32 of the model's"):
        plan_stage(recipe(checkpoint, "last", include=["*input_layernorm*"]), "improve")


def test_the_checks_page_says_which_weights_and_that_the_density_is_of_all(tmp_path: Path) -> None:
    def page(*own: str) -> str:
        shown = preview(run_recipe(tmp_path, *own))
        return " ".join(" ".join(line.plain for line in lines(shown, width=100, plain=True)).split())

    shapes = Checkpoint.open(LAB).shapes
    q = sum(math.prod(shape) for name, shape in shapes.items() if "q_proj" in name)
    total = sum(math.prod(shape) for shape in shapes.values())
    own = run_recipe(tmp_path, "forget.density=0.01", "improve.density=0.02")
    k = num_to_select(own.max_density, total)
    said = f"in 4 of {len(shapes)} tensors; density 0.02 is a share of all weights: {k:,}, which is {k / q:.3g} of those"
    shown = page("forget.density=0.01", "improve.density=0.02", f"locate.include=['{Q}']")
    assert f"locate {q:,} of {total:,} weights may be selected, {said}" in shown
    assert "may be selected" not in page()
