"""Evaluation: what goes in and comes out of the model, what is kept apart, and what it says of the cost."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from allo.artifacts import RunFolder
from allo.core.fingerprints import as_bits
from allo.delta import write_delta
from allo.hf.models import Model, Tokenizer, load_model, load_tokenizer
from allo.hf.tokenization import cut_left
from allo.records import Completion, Prompt
from allo.sources import prompts_of
from allo.stages import evaluate
from allo.stages.sample import ids_of
from tiny_run import LAB, tiny


@pytest.fixture(scope="module")
def policy() -> tuple[Model, Tokenizer]:
    return load_model(LAB, dtype=torch.float32, device="cpu"), load_tokenizer(str(LAB))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def bits(model: Model) -> dict[str, Tensor]:
    return {name: as_bits(param.detach().reshape(-1)).clone() for name, param in model.named_parameters()}


@pytest.mark.parametrize("failing", [1, 2])  # under the aligned model, under the start
def test_a_failing_measure_leaves_the_start_as_it_was(
    policy: tuple[Model, Tokenizer], run: RunFolder, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    model, tokenizer = policy
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    name = next(iter(shapes))
    write_delta(
        run.path / "delta.safetensors",
        indices={name: torch.tensor([0, 5], dtype=torch.int32)},
        values={name: torch.tensor([1.5, -2.5])},
        shapes=shapes,
        base_hashes=dict.fromkeys(shapes, ""),
        metadata={},
    )
    before, calls = bits(model), 0

    def fails(model: Model, batch: dict[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        assert torch.equal(before[name], bits(model)[name]) == (calls == 2)
        if calls == failing:
            raise MemoryError
        return torch.zeros(1, 2)

    monkeypatch.setattr(evaluate, "completion_distributions", fails)
    patch = evaluate._Patch(model, run.path)
    continued = [(Prompt("p", "Tom has 7 pens.\n"), Completion("p", 0, "First 7", False, 3))]
    with pytest.raises(MemoryError), patch.exchanged():
        evaluate._kl(continued, patch, tiny(run.path), model, tokenizer)
    assert calls == failing
    assert all(torch.equal(before[name], now) for name, now in bits(model).items())


def test_the_distance_is_measured_after_the_prompt_that_was_sampled_from(
    policy: tuple[Model, Tokenizer], run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = policy
    read: list[list[int]] = []

    def seen(model: Model, batch: dict[str, Tensor]) -> Tensor:
        read.append(batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist())
        return torch.zeros(1, 2)

    monkeypatch.setattr(evaluate, "completion_distributions", seen)
    recipe, prompt = tiny(run.path, "max_length=48"), Prompt("p", "Tom has 7 pens. " * 20)
    ids = tokenizer(" First 7", add_special_tokens=False).input_ids[:1]
    continued = [(prompt, Completion("p", 0, " First", False, 1, ids))]
    patch = evaluate._Patch(model, None)
    evaluate._kl(continued, patch, recipe, model, tokenizer)
    assert read[0] == read[1] == [*cut_left(tokenizer, ids_of(tokenizer, prompt), 48), *ids]


def test_a_set_named_kl_and_the_texts_of_the_distance_are_kept_apart(
    policy: tuple[Model, Tokenizer], run: RunFolder
) -> None:
    sets = "evaluate.sets={kl: {task: planted_flaws, split: test, limit: 3}}"
    recipe = tiny(run.path, sets, "evaluate.max_new_tokens=4")
    assert recipe.evaluate.kl is not None
    subject = evaluate._Subject("aligned", recipe, run, *policy)
    subject.answers("kl", prompts_of(recipe, recipe.evaluate.sets["kl"]))
    continued = subject.continued(recipe.evaluate.kl)
    assert [completion.prompt_id for _, completion in continued] == [prompt.id for prompt, _ in continued]
    assert len({lines.path for lines in subject.parts}) == len(subject.parts) == 3


def test_the_largest_training_state_is_the_warm_ups(run: RunFolder) -> None:
    """It trains all weights, but none of those are the model's: they are no `trained_weights`."""
    counts = {
        "sft": {"training_state_bytes": 9000},  # the start's own
        "locate": {"training_state_bytes": 800},
        "score": {},
        "forget": {"trained_weights": 5, "density": 0.05, "training_state_bytes": 40},
        "improve": {"trained_weights": 10, "density": 0.1, "training_state_bytes": 80},
    }
    made = {"hash": "", "outputs": {}, "seconds": 2.0}
    stages = {name: made | {"counts": count} for name, count in counts.items()}
    run.manifest.write_text(json.dumps({"identity": {}, "stages": stages}))
    aligned = {"trained_weights": 10, "density": 0.1, "training_state_bytes": 800, "seconds": 8.0}
    assert evaluate._cost(run, "aligned") == aligned
    assert evaluate._cost(run, "forgotten")["trained_weights"] == 5
    assert evaluate._cost(run, "start")["training_state_bytes"] == 0
