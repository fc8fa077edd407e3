"""The other forms of the method that are kept run, and do what they say."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from allo.files.artifacts import RunFolder, read_json
from allo.losses import PairSums
from allo.models.start import read_start
from allo.pipeline import run_all
from allo.recipe import Recipe
from allo.weights.checkpoints import Checkpoint, fingerprint
from allo.weights.fingerprints import as_bits
from allo.weights.importance_map import ImportanceMap
from allo.weights.param_mask import ParamMask
from experiments import improve_first, locate_between
from experiments.r_dpo import r_dpo
from tiny_run import tiny

ROOT = Path(__file__).resolve().parents[2]
QUICK = (
    *("sft=null", "data.limit=8", "evaluate.num_generations=0", "evaluate.kl=null", "evaluate.start=false"),
    *("locate.criterion=magnitude", "score.scorer=confidence", "sample.batch_size=32"),
    *("forget.training.learning_rate=1e-3", "improve.training.learning_rate=1e-3"),
    *("forget.training.warmup_steps=0", "improve.training.warmup_steps=0"),
)
# The figures that the experiments report.
MEASURED = ("evaluate.num_generations=1", "evaluate.kl={task: planted_flaws, split: unrelated, limit: 2}")
R_DPO = f"{ROOT / 'experiments' / 'r_dpo.py'}:r_dpo"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return tiny(tmp_path_factory.mktemp("forms"), *QUICK, *MEASURED)


@pytest.fixture(scope="module")
def once(recipe: Recipe) -> RunFolder:
    """The run that locates once, forgets and learns."""
    return run_all(recipe)


def test_what_is_forgotten_last_is_forgotten_from_the_model_that_learned(recipe: Recipe) -> None:
    forgotten = improve_first.improve_first(recipe)
    learned = RunFolder(recipe.out / "tiny-learned")
    assert Path(read_start(forgotten).model) == (learned.improve / "model").resolve()
    mask = ParamMask.load(forgotten.forget / "mask.safetensors")
    models = (Path(read_start(learned).model), learned.improve / "model", forgotten.forget / "model")
    start, between, after = map(Checkpoint.open, models)
    assert len({fingerprint(model) for model in models}) == 3
    for name in start.stored:
        taken_over, left = (as_bits(one.read(name).reshape(-1)) for one in (between, after))
        outside = torch.ones(len(left), dtype=torch.bool)
        outside[mask.indices.get(name, torch.empty(0)).long()] = False
        assert torch.equal(left[outside], taken_over[outside]), name
    assert list(read_json(forgotten.evaluation)["models"]) == ["aligned"]


@pytest.mark.slow
def test_located_again_the_weights_are_those_of_the_model_that_forgot(
    recipe: Recipe, once: RunFolder
) -> None:
    again = locate_between.realigned(recipe, once)
    assert fingerprint(again.forget / "model") == fingerprint(once.forget / "model")
    found, before = (ImportanceMap.load(run.importance) for run in (again, once))
    forgot = Checkpoint.open(once.forget / "model")
    for name, indices in found.indices.items():
        sizes = forgot.read(name).reshape(-1)[indices.long()].abs().float()
        torch.testing.assert_close(found.scores[name].float(), sizes)
    assert any(not torch.equal(found.scores[n], before.scores[n]) for n in found.scores)
    figures = locate_between.figures(again, once, 0.1)
    assert set(figures) == {"test", "KL to the start", "overlap of the masks"}
    assert 0 < figures["overlap of the masks"] <= 1
    assert found.metadata["base_fingerprint"] == read_start(once).fingerprint, "a delta to the run's start"


def test_r_dpo_is_its_formula_and_a_longer_chosen_answer_has_less_left_to_win() -> None:
    chosen = torch.tensor([2.0, -1.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    lengths = (torch.tensor([2.0, 3.0, 9.0, 3.0]), torch.tensor([4.0, 3.0, 3.0, 9.0]))
    pairs = PairSums(chosen.detach(), rejected, *lengths, chosen, rejected)
    losses = r_dpo(pairs, beta=0.1, alpha=0.5)
    margins = [0.3 - 0.5 * 2, -0.3, 0.1 + 0.5 * 6, 0.1 - 0.5 * 6]
    expected = torch.tensor([math.log1p(math.exp(-margin)) for margin in margins], dtype=torch.float64)
    torch.testing.assert_close(losses.detach(), expected, rtol=1e-12, atol=1e-12)
    (slopes,) = torch.autograd.grad(losses.sum(), chosen)
    assert -slopes[2] < -slopes[3]
    none = r_dpo(replace(pairs, chosen_lengths=lengths[1], rejected_lengths=lengths[0]), beta=0.1, alpha=0.0)
    assert none.tolist() == pytest.approx([math.log1p(math.exp(-0.1 * m)) for m in (3, -3, 1, 1)])


@pytest.mark.slow
def test_r_dpo_trains_as_a_loss_of_ones_own(once: RunFolder, recipe: Recipe) -> None:
    plain = fingerprint(once.improve / "model")
    own = tiny(recipe.out, *QUICK, f"improve.loss={R_DPO}", "improve.loss_settings={alpha: 0.2}")
    assert fingerprint(run_all(own, until="improve").improve / "model") != plain


def test_each_form_has_its_line() -> None:
    text = (ROOT / "experiments" / "README.md").read_text()
    for path in (ROOT / "experiments").glob("[!_]*.py"):
        assert f"`{path.name}" in text, path.name
    for key in ("momentum", "round_prompts", "order", "r_dpo"):
        assert f"`{key}" in text or f": {key}`" in text, key
