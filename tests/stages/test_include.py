"""`locate.include` and `locate.exclude` in a run: exactly k of all weights, none outside, and the best of those inside."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from allo.delta import export_shira, read_delta
from allo.errors import UserError
from allo.files.artifacts import RunFolder
from allo.models.load import linear_names
from allo.pipeline import run_all, value_at
from allo.recipe.criteria import CRITERIA
from allo.recipe.locate import Locate
from allo.report.read import view
from allo.stages import check, improve, locate, score
from allo.training.dpo_passes import DpoPasses
from allo.training.result import located_mask
from allo.weights.importance_map import ImportanceMap
from allo.weights.param_mask import ParamMask
from allo.weights.selection import num_to_select, select
from locate_setup import BETA, DENSITY, FUSED, TRAINING, recipe, with_pairs
from tiny import model, shapes, weights
from tiny_run import LAB, tiny

PATTERNS = {"include": ["linear", "*layernorm.weight"], "exclude": ["model.layers.0.mlp.*"]}
# One update: what then happens to a tensor does not depend on which others are trained.
ONE = {"num_train_epochs": 1, "gradient_accumulation_steps": 4, "max_grad_norm": 1e9}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return with_pairs(tmp_path)


def allowed() -> set[str]:
    """The tensors that `PATTERNS` name in the tiny model, whose head is tied."""
    names = {
        name for name in shapes(model()) if ".self_attn." in name or ".mlp." in name or "layernorm" in name
    }
    return {name for name in names if not name.startswith("model.layers.0.mlp.")}


def block(criterion: str, **own: Any) -> dict[str, Any]:
    training = (FUSED | {"num_train_epochs": 1}) if criterion == "warmup_fused" else TRAINING | ONE
    return {"criterion": criterion, "beta": BETA, "training": training, **own}


def located(run: RunFolder, criterion: str, density: float = DENSITY, **own: Any) -> ImportanceMap:
    locate.run(recipe(locate=block(criterion, **own), improve={"density": density}), run)
    return ImportanceMap.load(run.importance)


@pytest.mark.invariant(
    "With `locate.include` and `exclude`, a mask has k of all weights, none outside the named tensors, and the best inside."
)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_each_criterion_selects_the_top_k_of_the_masked_scores(criterion: str, run: RunFolder) -> None:
    """The same scores, ties included, as those of a run that may select every weight."""
    every = located(run, criterion, density=1.0)
    scores = {name: every.scores[name] for name in allowed()}
    found = located(run, criterion, **PATTERNS)
    k = num_to_select(DENSITY, sum(map(len, every.scores.values())))
    wanted = select(lambda: scores.items(), k=k)
    assert found.indices.keys() == wanted.keys() <= allowed()
    for name, indices in wanted.items():
        assert torch.equal(found.indices[name], indices)
    assert found.mask_at(0.03).num_selected == num_to_select(0.03, sum(map(len, every.scores.values())))
    assert found.mask_at(0.03).metadata["include"] == "linear, *layernorm.weight"


@pytest.mark.parametrize("granularity", ["row", "block(4)"])
def test_whole_groups_are_the_best_of_the_allowed_tensors(granularity: str, run: RunFolder) -> None:
    found = located(run, "gradient", granularity=granularity, **PATTERNS)
    half = found.mask_at(DENSITY / 2)
    assert found.indices.keys() <= allowed() and 0 < half.num_selected <= 0.5 * DENSITY * half.num_weights
    # As from all scores, those of other tensors set to zero.
    every = located(run, "gradient", density=1.0, granularity=granularity)
    scores = {name: one if name in allowed() else 0 * one for name, one in every.scores.items()}
    wanted = ImportanceMap(every.indices, scores, every.shapes, every.metadata).mask_at(DENSITY / 2)
    assert half.indices.keys() == wanted.indices.keys()
    assert all(torch.equal(half.indices[name], wanted.indices[name]) for name in wanted.indices)


def warmed_up(kind: str, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The model's weights after a warm-up of several steps under `PATTERNS`, whose state is as small as they say."""
    models: list[Any] = []
    load = locate.load_start
    monkeypatch.setattr(locate, "load_start", lambda *own: models.append(load(*own)) or models[0])
    training = FUSED if kind == "warmup_fused" else TRAINING
    own = recipe(locate={"criterion": kind, "training": training, **PATTERNS})
    counts = locate.run(own, run)
    num_allowed = sum(param.numel() for name, param in model().named_parameters() if name in allowed())
    if kind == "warmup_fused":
        assert counts["host_state_bytes"] == 8 * num_allowed
    else:  # master, gradient and reference; plain SGD has no moments
        assert counts["training_state_bytes"] == 12 * num_allowed
    return weights(models[0][0])


@pytest.mark.parametrize("kind", ["warmup", "warmup_fused"])
def test_a_warmup_moves_no_other_tensor_and_keeps_no_state_for_it(
    kind: str, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    after, before = warmed_up(kind, run, monkeypatch), weights(model())
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert moved == allowed()


def test_sums_are_kept_only_of_the_allowed_tensors(run: RunFolder) -> None:
    counts = locate.run(recipe(locate=block("fisher", **PATTERNS)), run)
    assert counts["host_state_bytes"] == 4 * sum(
        param.numel() for name, param in model().named_parameters() if name in allowed()
    )


def test_other_tensors_have_no_gradient_in_the_passes(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: set[str] = set()
    take = DpoPasses.take_start_gradients

    def watched(passes: DpoPasses, each: Any, **own: Any) -> None:
        take(passes, lambda name, param, gradient: (taken.add(name), each(name, param, gradient)), **own)

    monkeypatch.setattr(DpoPasses, "take_start_gradients", watched)
    located(run, "gradient", **PATTERNS)
    assert taken == allowed()


@pytest.mark.parametrize("kind", ["warmup", "warmup_fused"])
def test_the_implicit_scorer_asks_the_warmup_of_the_allowed_tensors(kind: str, run: RunFolder) -> None:
    """Its file has these alone, and the scores are those of a warm-up file with all tensors."""
    training = FUSED if kind == "warmup_fused" else TRAINING
    own = recipe(scorer="implicit", locate={"criterion": kind, "training": training, **PATTERNS})
    locate.run(own, run)
    file = run.warmup / locate.WARMUP_WEIGHTS
    tensors = load_file(file)
    assert tensors.keys() == allowed()
    score.run(own, run)
    few = run.token_scores.read_bytes()
    locate._keep_warmup(run, weights(model()) | tensors)
    score.run(own, run)
    assert run.token_scores.read_bytes() == few


# PEFT


def assert_exports(run: RunFolder, folder: Path, base: Path) -> None:
    """The run's delta as an adapter gives the run's own model."""
    linear = linear_names(base)
    found = export_shira(base, run.improve / "delta.safetensors", folder, linear=linear)
    assert found.num_changed > 0
    load = AutoModelForCausalLM.from_pretrained
    adapted = PeftModel.from_pretrained(load(base, dtype=torch.float32).eval(), folder).eval()
    tuned, ids = load(run.improve / "model", dtype=torch.float32).eval(), torch.arange(12).reshape(2, 6)
    # PEFT makes its sparse tensors from the file's indices unchecked, and torch warns about that.
    with torch.no_grad(), torch.sparse.check_sparse_tensor_invariants():
        assert torch.equal(adapted(ids).logits, tuned(ids).logits)
        assert not torch.equal(load(base, dtype=torch.float32).eval()(ids).logits, tuned(ids).logits)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_with_linear_alone_a_run_exports_to_peft_and_without_it_does_not(
    run: RunFolder, tmp_path: Path
) -> None:
    for include in ([], ["linear"]):
        own = recipe(
            locate=block("gradient", include=include),
            score=None,
            forget=None,
            improve={"density": DENSITY, "training": TRAINING},
        )
        locate.run(own, run)
        improve.run(own, run)
        if not include:
            with pytest.raises(UserError, match="Linear layer"):
                assert_exports(run, tmp_path / "refused", run.start / "model")
    mask = located_mask(own, run, model(), density=DENSITY)
    assert mask.num_selected == num_to_select(DENSITY, mask.num_weights)
    changed = read_delta(run.improve / "delta.safetensors").indices
    assert changed.keys() <= set(linear_names(run.start / "model"))
    assert_exports(run, tmp_path / "adapter", run.start / "model")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_laboratory_run_says_what_it_selects_and_exports_to_peft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("sft=null", "data.limit=8", "evaluate.num_generations=0", "evaluate.kl=null")
    own = tiny(tmp_path, *quick, "locate.include=[linear]", "locate.exclude=['*down_proj*']")
    run = run_all(own)
    said = capsys.readouterr()
    assert "weights may be selected" in said.err + said.out and "share of all weights" in said.err + said.out
    for stage, density in ((run.forget, 0.05), (run.improve, own.improve.density)):
        mask = ParamMask.load(stage / "mask.safetensors")
        assert mask.num_selected == num_to_select(density, mask.num_weights)
        assert mask.indices.keys() <= set(linear_names(LAB)) and not any(
            "down_proj" in name for name in mask.indices
        )
    assert_exports(run, tmp_path / "adapter", LAB)
    among = view(run.path).among["improve"]
    assert among["include"] == "linear" and among["exclude"] == "*down_proj*"
    page = (run.path / "report.html").read_text()
    assert f"chosen among {int(among['num_allowed']):,} weights (include linear; exclude *down_proj*)" in page


# Refused before the first stage, and old runs


@pytest.mark.parametrize(
    ("patterns", "says"),
    [
        (
            "locate.include=[liner]",
            "locate.include: 'liner' names none of the model's .* did you mean linear",
        ),
        ("locate.exclude=[q_proj]", r"locate.exclude: 'q_proj' names none .* '\*q_proj\*' names"),
        ("locate.include=[model.norm.weight]", "locate.include: 128 of the model's .* asks for"),
        ("locate.exclude=['*']", "locate.exclude: 0 of the model's .* name other"),
        ("locate.include=[experts]", "'experts' names none .* routed experts"),
    ],
)
def test_check_refuses_patterns_before_the_first_stage(tmp_path: Path, patterns: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check.check(tiny(tmp_path, patterns))
    with pytest.raises(UserError, match=says):
        run_all(tiny(tmp_path, patterns))
    assert not (tmp_path / "tiny" / "00-sft").exists()


def test_a_recipe_without_patterns_has_the_hash_and_the_text_that_it_had(tmp_path: Path) -> None:
    own = tiny(tmp_path)
    keys = ["criterion", "granularity", "beta", "accumulate", "max_tokens_per_batch", "training"]
    assert list(value_at(own, "locate")) == keys
    assert list(own.model_dump(mode="json")["locate"]) == keys
    empty = tiny(tmp_path, "locate.include=[]", "locate.exclude=[]")
    assert value_at(empty, "locate") == value_at(own, "locate")
    assert list(Locate(include=["linear"]).model_dump()) == ["criterion", "include", *keys[1:]]
