"""Evaluation: what goes in and comes out of the model, what is kept apart, and what it says of the cost."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from allo.delta import write_delta
from allo.files.artifacts import RunFolder
from allo.files.records import Completion, Prompt
from allo.models.load import Model, Tokenizer, load_model, load_tokenizer
from allo.models.tokenization import cut_left
from allo.sampling.completions import ids_of
from allo.stages import evaluate
from allo.tasks.sources import prompts_of
from allo.weights.fingerprints import as_bits
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
    patch = evaluate._patch(model, run.path)
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
    patch = evaluate._patch(model, None)
    evaluate._kl(continued, patch, recipe, model, tokenizer)
    assert read[0] == read[1] == [*cut_left(tokenizer, ids_of(tokenizer, prompt), 48), *ids]


def test_the_distance_is_of_the_aligned_model_to_the_start_over_the_aligned_models_choices(
    policy: tuple[Model, Tokenizer], run: RunFolder
) -> None:
    """The aligned model has no final norm, so every token is as likely: KL(aligned || start) = -log V - mean log q."""
    model, tokenizer = policy
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    norm, num = "model.norm.weight", shapes["model.norm.weight"][0]
    write_delta(
        run.path / "delta.safetensors",
        indices={norm: torch.arange(num, dtype=torch.int32)},
        values={norm: torch.zeros(num)},
        shapes=shapes,
        base_hashes=dict.fromkeys(shapes, ""),
        metadata={},
    )
    prompt, texts = Prompt("p", "Tom has 7 pens.\n"), ["First", "First 7 + 2 = 9."]
    answers = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    continued = [
        (prompt, Completion("p", 0, text, False, len(ids), ids))
        for text, ids in zip(texts, answers, strict=True)
    ]
    of_tokens, reversed_ = [], []
    for ids in answers:
        before = ids_of(tokenizer, prompt)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([before + ids])).logits[0, len(before) - 1 : -1]
        start = logits.double().log_softmax(-1)
        of_tokens += (-math.log(start.shape[-1]) - start.mean(-1)).tolist()
        reversed_ += (math.log(start.shape[-1]) + (start.exp() * start).sum(-1)).tolist()
    patch = evaluate._patch(model, run.path)
    with patch.exchanged():
        found = evaluate._kl(continued, patch, tiny(run.path), model, tokenizer)
    assert found["num_tokens"] == len(of_tokens) == sum(map(len, answers))
    assert found["value"] == pytest.approx(sum(of_tokens) / len(of_tokens), rel=1e-4), "a mean over tokens"
    assert sum(reversed_) / len(reversed_) < found["value"] / 1.5, "the other direction is another number"


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
