"""`allo.locate`: the mask that a run's stage finds, and a model that is as it was."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import allo
from allo.errors import UserError
from allo.files.artifacts import read_jsonl
from allo.files.records import Pair
from allo.models.load import load_model, load_tokenizer
from allo.models.start import read_start
from allo.pipeline import run_all
from allo.training.arguments import training_arguments
from allo.weights.importance import criterion
from allo.weights.importance_map import ImportanceMap
from allo.weights.selection import num_to_select
from tiny_run import LAB, tiny

RIGHT, WRONG = "First 7 + 5 = 12. The answer is 12.", "First 7 - 5 = 2. The answer is 2."
PAIRS = [{"prompt": "Problem: Tom has 7 pens.\n", "chosen": RIGHT, "rejected": WRONG}]
TOKENIZER = load_tokenizer(LAB)


@pytest.fixture
def model() -> LlamaForCausalLM:
    return load_model(LAB, dtype=torch.float32, device="cpu")


def arguments(folder: Path, **settings: object) -> object:
    own = {
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        **settings,
    }
    return training_arguments(own, folder=folder, seed=0, device=torch.device("cpu"), key="args")


def bits(model: LlamaForCausalLM) -> dict[str, Tensor]:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


@pytest.mark.parametrize("patterns", [{}, {"include": ["linear"], "exclude": ["*.layers.0.*"]}], ids=str)
def test_the_mask_is_that_of_the_stage(patterns: dict[str, list[str]], tmp_path: Path) -> None:
    recipe = tiny(
        tmp_path, "sft=null", *(f"locate.{key}={json.dumps(value)}" for key, value in patterns.items())
    )
    run = run_all(recipe, until="locate")
    assert recipe.locate is not None
    density = recipe.max_density
    expected = ImportanceMap.load(run.importance).mask_at(density)
    args = training_arguments(
        recipe.locate.training.model_dump(),
        folder=tmp_path / "short",
        seed=recipe.seed_of_data,
        device=torch.device("cpu"),
        key="args",
    )
    pairs = [vars(pair) for pair in read_jsonl(run.pairs, Pair)]
    model = load_model(LAB, dtype=torch.float32, device="cpu")
    found = allo.locate(
        model,
        pairs,
        args=args,
        processing_class=TOKENIZER,
        criterion=recipe.locate.criterion,
        density=density,
        beta=recipe.locate.beta,
        max_length=recipe.max_length,
        **patterns,
    )
    assert not patterns or not any(".layers.0." in name or "embed" in name for name in found.indices)
    assert found.num_selected == num_to_select(density, found.num_weights)
    assert found.metadata["base_fingerprint"] == read_start(run).fingerprint
    assert found.indices.keys() == expected.indices.keys()
    for name, indices in expected.indices.items():
        assert torch.equal(found.indices[name], indices)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_it_was(model: LlamaForCausalLM, training: bool, tmp_path: Path) -> None:
    model.train(training)
    model.lm_head.weight.requires_grad_(False)  # frozen before, frozen after
    before = bits(model)
    trainable = {name: param.requires_grad for name, param in model.named_parameters()}
    mask = allo.locate(model, PAIRS, args=arguments(tmp_path), processing_class=TOKENIZER, density=0.1)
    assert mask.density == pytest.approx(0.1, abs=1e-5)
    assert model.training == training
    for name, param in model.named_parameters():
        assert torch.equal(param, before[name]) and param.requires_grad == trainable[name]
    allo.SelectedWeights(model, mask)  # nothing is left on it that would be in the way


def test_the_model_is_as_it_was_also_after_an_error(model: LlamaForCausalLM, tmp_path: Path) -> None:
    before = bits(model)

    def broken(theta: Tensor, tuned: Tensor) -> Tensor:
        assert not torch.equal(theta, tuned)
        return torch.full_like(theta, torch.nan)

    with pytest.raises(UserError, match="NaN or negative"):
        allo.locate(
            model, PAIRS, args=arguments(tmp_path), processing_class=TOKENIZER, density=0.1, criterion=broken
        )
    for name, param in model.named_parameters():
        assert torch.equal(param, before[name])
    allo.SelectedWeights(model, allo.ParamMask.full({name: tuple(p.shape) for name, p in before.items()}))


def test_a_density_that_selects_nothing_is_refused_before_the_run(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    for density in (0.0, 1.5, 1e-9):
        with pytest.raises(UserError, match="density"):
            allo.locate(
                model, [], args=arguments(tmp_path / "out"), processing_class=TOKENIZER, density=density
            )


def test_an_own_criterion_gets_each_weight_before_and_after(model: LlamaForCausalLM, tmp_path: Path) -> None:
    before = bits(model)
    seen = []

    def lowered(theta: Tensor, tuned: Tensor) -> Tensor:
        seen.append(theta)
        return (theta - tuned).clamp(min=0)

    mask = allo.locate(
        model, PAIRS, args=arguments(tmp_path), processing_class=TOKENIZER, density=0.01, criterion=lowered
    )
    assert mask.metadata["criterion"] == "lowered"
    assert all(any(torch.equal(theta, weights) for weights in before.values()) for theta in seen)
    same = allo.locate(model, PAIRS, args=arguments(tmp_path), processing_class=TOKENIZER, density=0.01)
    assert 0 < same.overlap(mask) < 1


def test_patterns_are_refused_before_the_run(model: LlamaForCausalLM, tmp_path: Path) -> None:
    before = bits(model)
    for own, says in (
        ({"include": ["q_proj"]}, r"include: 'q_proj' names none .* '\*q_proj\*' names"),
        ({"exclude": ["linear", "*embed*"]}, r"exclude: [\d,]+ of the model's .* asks for"),
        ({"include": "linear"}, "give a list"),
    ):
        with pytest.raises(UserError, match=says):
            allo.locate(
                model, PAIRS, args=arguments(tmp_path), processing_class=TOKENIZER, density=0.1, **own
            )
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())


def test_a_marked_function_gets_the_statistic_that_it_needs(model: LlamaForCausalLM, tmp_path: Path) -> None:
    @criterion(needs="gradients")
    def steep(theta: Tensor, gradients: Tensor) -> Tensor:
        return gradients.float().abs()

    args = arguments(tmp_path)
    given = {"args": args, "processing_class": TOKENIZER, "density": 0.02}
    found = allo.locate(model, PAIRS, criterion=steep, **given)
    expected = allo.locate(model, PAIRS, criterion="gradient", **given)
    assert found.overlap(expected) == 1.0 and found.metadata["criterion"] == "steep"


def test_a_model_by_its_name_needs_no_arguments_and_no_tokenizer(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    short = allo.locate(str(LAB), PAIRS, density=0.02, criterion="gradient")
    known = allo.locate(
        model, PAIRS, density=0.02, criterion="gradient", args=arguments(tmp_path), processing_class=TOKENIZER
    )
    assert short.overlap(known) == 1.0
    assert allo.locate(LAB, density=0.01, criterion="magnitude").density == pytest.approx(0.01, abs=1e-5)
    with pytest.raises(UserError, match=r"^data: the criterion warmup_fused sees pairs: give rows"):
        allo.locate(LAB, criterion="warmup_fused")
    with pytest.raises(UserError, match=r"^criterion: 'warm_up' is not one of warmup, "):
        allo.locate(model, PAIRS, criterion="warm_up", processing_class=TOKENIZER)


def test_the_fused_warm_up_puts_the_model_back_after_an_error(
    model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bits(model)
    monkeypatch.setattr("allo.training.dpo_passes.check_finite", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        allo.locate(
            model, PAIRS, criterion="warmup_fused", args=arguments(tmp_path), processing_class=TOKENIZER
        )
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())
