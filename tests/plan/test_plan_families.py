"""Sampling is rehearsed in the way in which a family decodes: what a cache holds is what it will hold."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import converted
import locate_setup
from allo.models.collate import pad
from allo.models.load import model_of_config
from allo.models.policy import per_token_logps
from allo.models.rehearsal import rehearse_sampling, rehearsed_model
from allo.models.repeated_prompts import RepeatedPrompts
from allo.plan.rehearsal import Rehearsal
from tiny_families import config_of, family_model

PROMPTS, GENERATIONS, LENGTH, NEW = 3, 2, 20, 12
REPEATED = [
    *(
        "gemma2",
        "gpt_oss",
        "qwen3_5_text",
        "qwen3_next",
        "falcon_h1",
        "mamba2",
        "recurrent_gemma",
        "nemotron_h",
    ),
    *("deepseek_v3", "gemma4_text", "nemotron", "llama4_text"),
]


@pytest.mark.parametrize("family", REPEATED)
def test_a_rehearsed_cache_has_the_bytes_of_the_live_one(family: str) -> None:
    with torch.inference_mode():
        rows = RepeatedPrompts(family_model(family), num_generations=GENERATIONS)
        rows.admit([[2] * (LENGTH - number % 2) for number in range(PROMPTS)])
        for _ in range(NEW - 1):
            rows.step(torch.full((PROMPTS * GENERATIONS,), 2))
        live = sum(states.nbytes for states in rows.states)
        with Rehearsal():
            logits, cache = rehearse_sampling(
                model_of_config(config_of(family), dtype=torch.float32),
                prompts=PROMPTS,
                length=LENGTH,
                num_generations=GENERATIONS,
                max_new_tokens=NEW,
            )
    assert sum(states.nbytes for states in cache) == live
    assert len(logits) == PROMPTS * GENERATIONS


def test_eager_attention_is_planned_with_its_square() -> None:
    """Twice the length takes four times the scores, which SDPA does not keep."""

    def peak(attention: str, length: int) -> int:
        with Rehearsal() as rehearsal:
            model = model_of_config(
                config_of("gemma2" if attention == "eager" else "llama"), dtype=torch.float32
            )
            row = ([2] * (length // 2), [2] * (length // 2))
            before = rehearsal.peak
            per_token_logps(model, pad([row, row], pad_id=0)).sum().backward()
            return rehearsal.peak - before

    eager, fused = ((peak(kind, 512), peak(kind, 1024)) for kind in ("eager", "sdpa"))
    assert eager[1] > 3 * eager[0]
    assert fused[1] < 2.5 * fused[0]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_next"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_mixture_of_experts_is_rehearsed_in_any_dtype(family: str, dtype: torch.dtype) -> None:
    with Rehearsal() as rehearsal:
        model = model_of_config(config_of(family), dtype=dtype)
        per_token_logps(model, pad([([2] * 5, [2] * 7)], pad_id=0)).sum().backward()
    assert rehearsal.peak > 2 * sum(param.nbytes for param in model.parameters())


@pytest.mark.parametrize("family", converted.WRAPPERS)
def test_a_rehearsed_model_draws_no_weights_and_ties_them(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SigLIP draws a weight until it lies within bounds; without values, that never ends."""

    def draws(*_: object) -> None:
        raise AssertionError("a weight is drawn")

    folder = converted.saved(family, tmp_path / "model")
    live = converted.plain(family, folder)
    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", draws)
    monkeypatch.setattr(torch.nn.init, "_no_grad_trunc_normal_", draws)
    with Rehearsal():
        model = rehearsed_model(locate_setup.recipe(model=str(folder)))
    tied, wanted = (
        each.get_output_embeddings().weight is each.get_input_embeddings().weight for each in (model, live)
    )
    assert tied == wanted
