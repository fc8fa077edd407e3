"""A model of text and images reads text as transformers does, and its weights are those of its folder."""

import json
from pathlib import Path

import pytest
import torch

import converted
import tiny
from allo.models.collate import pad
from allo.models.load import empty_model, load_model, read_config
from allo.models.policy import check_head, per_token_logps, shares_prefix
from allo.recipe import Recipe
from allo.stages.check import findings
from allo.weights.layout import trained_parameters
from tiny import in_one_row

ROWS = [
    ([9, 10, 11, 12, 13, 14], [20, 21, 22, 23]),
    ([15, 16], [24, 25, 26, 27, 28, 29, 30]),
    ([17, 18, 19, 9], [31]),
]


def plain_logps(family: str, folder: Path) -> list[torch.Tensor]:
    """Each completion's log-probs, from a forward pass of its own, without padding."""
    model = converted.plain(family, folder)
    found = []
    for prompt, completion in ROWS:
        ids = torch.tensor([prompt + completion])
        logps = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        places = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
        found.append(logps[places, ids[0, len(prompt) :]].detach())
    return found


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", [*converted.WRAPPERS, "gemma4_text", "gpt_neox", "deepseek_v3", "mixtral"])
def test_log_probs_of_padded_rows_are_those_of_a_plain_pass(
    tmp_path: Path, family: str, training: bool
) -> None:
    expected = plain_logps(family, converted.saved(family, tmp_path))
    model = load_model(tmp_path, dtype=torch.float32, device="cpu").train(training)
    check_head(model)
    found = per_token_logps(model, pad(ROWS, pad_id=0))
    for row, logps in zip(found, expected, strict=True):
        torch.testing.assert_close(row[: len(logps)].detach(), logps, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", converted.WRAPPERS)
def test_log_probs_of_a_shared_prompt_are_those_of_a_plain_pass(tmp_path: Path, family: str) -> None:
    model = load_model(converted.saved(family, tmp_path), dtype=torch.float32, device="cpu")
    if not shares_prefix(model):
        return
    (prompt, first), (_, second) = ROWS[:2]
    batch = pad([(prompt, first), (prompt, second)], pad_id=0)
    together = per_token_logps(model, in_one_row([(prompt, first, second)]))
    torch.testing.assert_close(together, per_token_logps(model, batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", converted.WRAPPERS)
def test_a_wrapper_gives_its_text_model_gradients_and_its_tower_none(tmp_path: Path, family: str) -> None:
    model = load_model(converted.saved(family, tmp_path), dtype=torch.float32, device="cpu")
    per_token_logps(model, pad(ROWS, pad_id=0)).sum().backward()
    text = trained_parameters(model)
    assert all((param.grad is not None) == (name in text) for name, param in model.named_parameters())


def checked(folder: Path) -> Recipe:
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in tiny.pairs()))
    return Recipe.model_validate(
        {
            "name": "tiny",
            "model": str(folder),
            "dtype": "float32",
            "device": "cpu",
            "max_length": 64,
            "out": str(folder / "runs"),
            "data": {"pairs": str(pairs)},
            "evaluate": {"sets": {"none": {"task": "planted_flaws", "limit": 2}}, "max_new_tokens": 8},
        }
    )


def test_weights_that_are_left_out_are_said_before_the_run(tmp_path: Path) -> None:
    folder = converted.saved("gemma3", tmp_path / "model")
    model = empty_model(read_config(folder))
    trained = sum(param.numel() for param in trained_parameters(model).values())
    of_all = sum(param.numel() for param in model.parameters())
    assert trained < of_all
    found = findings(checked(folder))
    assert found.num_weights == trained
    assert [
        word for word in found.unread if f"{trained:,} of {of_all:,} weights are its text model's" in word
    ]
    text = converted.saved("mixtral", tmp_path / "text")
    assert not findings(checked(text)).unread
