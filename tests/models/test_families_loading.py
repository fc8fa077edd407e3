"""Models without SDPA load with eager attention, which is said once; the others load as ever."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from allo.errors import UserError
from allo.models import load
from allo.models.collate import pad
from allo.models.load import check_folder, load_model, model_of_config
from allo.models.policy import per_token_logps
from allo.models.reward_model import load_reward_model
from allo.recipe import Recipe
from allo.stages.check import _check_trl_lengths, findings
from tiny_families import _LONGROPE as LONGROPE
from tiny_families import LIMIT, config_of, family_model, ids, plain_logps

EAGER = ["gemma2", "bloom", "mpt", "gptj"]
WITHOUT_ATTENTION = ["mamba2", "falcon_mamba"]
SDPA = ["llama", "olmo3", "opt", "gemma4_text"]


@pytest.fixture(autouse=True)
def nothing_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_MENTIONED", set())


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("family", EAGER)
def test_a_model_without_sdpa_loads_and_says_once_what_that_costs(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = family_model(family)
    model.save_pretrained(tmp_path)
    said(capsys)
    check_folder(tmp_path, tmp_path)
    assert not said(capsys)
    loaded = [load_model(tmp_path, dtype=torch.float32, device="cpu") for _ in range(2)]
    found = said(capsys)
    assert found.count("no SDPA attention") == 1
    assert type(model).__name__ in found and "slower" in found and "square of a row's length" in found
    assert all(one.config._attn_implementation == "eager" for one in loaded)
    row = (ids(5, seed=1), ids(7, seed=2))
    with torch.no_grad():
        expected = plain_logps(model, *row)
        for one in loaded:
            logps = per_token_logps(one, pad([row], pad_id=0))[0]
            torch.testing.assert_close(logps, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", [*SDPA, *WITHOUT_ATTENTION])
def test_of_the_others_nothing_is_said(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Persistent buffers and names on disk are no matter here."""
    load._mention_eager(family_model(family))
    assert not said(capsys)


@pytest.mark.parametrize("family", [*EAGER, *WITHOUT_ATTENTION, *SDPA])
@pytest.mark.parametrize("asked", [None, "eager", "flash_attention_2"])
def test_the_model_decides_on_its_attention_whatever_its_configuration_asks(
    family: str, asked: str | None
) -> None:
    config = config_of(family)
    config._attn_implementation_internal = asked
    with torch.device("meta"):
        model = model_of_config(config)
    assert model.config._attn_implementation == ("sdpa" if family in SDPA else "eager")


def test_another_error_of_a_model_is_not_taken_for_a_lack_of_sdpa() -> None:
    attentions = []

    def build(attention: str) -> None:
        attentions.append(attention)
        raise ValueError("a number of heads that does not divide the size")

    with pytest.raises(ValueError, match="number of heads"):
        load.with_attention(build)
    assert attentions == ["sdpa"]


def recipe(model: Path, **blocks: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "here",
        "model": str(model),
        "dtype": "float32",
        "device": "cpu",
        "max_length": 64,
        "data": {"task": "planted_flaws", "limit": 8},
        "sample": {"max_new_tokens": 8},
        "improve": {"density": 1.0},
        "evaluate": {"sets": {"test": {"task": "planted_flaws", "limit": 8}}, "max_new_tokens": 8},
    }
    return Recipe.model_validate(fields | blocks)


@pytest.mark.parametrize("family", ["openai-gpt", "rwkv", "xlstm"])
def test_a_family_that_cannot_decode_is_refused_by_the_check(family: str, tmp_path: Path) -> None:
    size = {"vocab_size": len(tiny.TOKENIZER)}
    family_model(family, **size).save_pretrained(tmp_path)
    tiny.TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"does not decode with transformers' `DynamicCache`.* Use a model that does"
    ):
        findings(recipe(tmp_path))


@pytest.mark.parametrize("trainer", ["lora", "grpo"])
def test_trl_gets_no_rows_on_both_sides_of_a_rotary_limit(trainer: str, tmp_path: Path) -> None:
    asked = recipe(tmp_path, forget=None, improve={"trainer": trainer})
    for limit in (None, 64):
        _check_trl_lengths(asked, limit)
    _check_trl_lengths(recipe(tmp_path), LIMIT)
    with pytest.raises(
        UserError, match=r"max_length is 64, but TRL would batch .* set max_length to 16 or less"
    ):
        _check_trl_lengths(asked, LIMIT)


def test_rewards_of_rows_on_both_sides_of_a_rotary_limit_are_their_own(tmp_path: Path) -> None:
    folder = tiny.reward_model(tmp_path / "reward", hidden_size=32, num_attention_heads=4, **LONGROPE)
    judge = load_reward_model(folder, dtype=torch.float32, device="cpu")
    rows = [ids(length, seed=length) for length in (5, 40, LIMIT, LIMIT + 1, 9)]
    alone = [judge.rewards([row])[0] for row in rows]
    assert judge.rewards(rows) == pytest.approx(alone, abs=1e-5)
    short = torch.tensor([rows[0] + [judge.pad_id] * 35, rows[1]])
    together = judge.model(input_ids=short).logits[0, 0].item()
    assert abs(together - alone[0]) > 1e-3  # the reason
