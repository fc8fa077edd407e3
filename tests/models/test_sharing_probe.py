"""Prompts are shared only by models that are seen to give the same numbers; the others sample as plain transformers."""

import inspect
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DiffLlamaConfig,
    LlamaConfig,
    NemotronConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from allo.models import shared_prompts
from allo.models.collate import pad
from allo.models.load import load_model
from allo.models.policy import per_token_logps, shares_prefix
from allo.models.shared_prompts import ATTENTION, can_share
from allo.sampling.decode import decode
from allo.sampling.draw import take_most_probable
from tiny import LABORATORY, in_one_row

hrm = pytest.importorskip("transformers.models.hrm_text.configuration_hrm_text")

VOCABULARY = 64
# Their attention does not reach the shared prompts: it is of their own, has two halves, or runs several times a layer.
OTHERS: dict[str, type[PreTrainedConfig]] = {
    "nemotron": NemotronConfig,
    "diffllama": DiffLlamaConfig,
    "hrm_text": hrm.HrmTextConfig,
}
FP32 = {"rtol": 0.0, "atol": 1e-5}
PROMPTS = [[5, 9, 33, 12, 40, 21], [50, 3, 7], [11, 60, 31, 8, 17, 29, 44, 6]]


def build(
    kind: type[PreTrainedConfig], dtype: torch.dtype = torch.float32, **settings: float
) -> PreTrainedModel:
    torch.manual_seed(0)
    config = kind(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        | settings
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype).eval()


def greedy(model: PreTrainedModel, prompt: list[int], length: int) -> list[int]:
    """The most probable continuation by whole forward passes of the row alone, without a cache."""
    ids = list(prompt)
    for _ in range(length):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", OTHERS)
@torch.inference_mode()
def test_samples_are_those_of_whole_forward_passes(kind: str) -> None:
    model = build(OTHERS[kind])
    uniforms = torch.zeros(2 * len(PROMPTS), 6)
    rows = decode(
        model, PROMPTS, uniforms, max_rows=6, choose=take_most_probable, eos=[VOCABULARY], has_stopped=None
    )
    expected = [greedy(model, prompt, 6) for prompt in PROMPTS]
    assert rows == [row for row in expected for _ in range(2)]
    generated = model.generate(
        torch.tensor(PROMPTS[:1]), max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    assert generated[0, len(PROMPTS[0]) :].tolist() == expected[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spread", [0.02, 0.2])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_that_differs_does_not_share(
    kind: str, spread: float, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(OTHERS[kind], dtype, initializer_range=spread)
    assert not can_share(model) and not can_share(model)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("each completion keeps a copy of its prompt") == 1 and type(model).__name__ in said
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", OTHERS)
def test_log_probs_are_those_of_plain_forward_passes(kind: str) -> None:
    """Also in one row for both answers, where the model shares its prefix in training."""
    model = build(OTHERS[kind])
    prompt, *sides = [5, 9, 33], [12, 40, 21, 2], [8, 2]
    layouts = [pad([(prompt, side) for side in sides], pad_id=0)]
    if shares_prefix(model):
        layouts.append(in_one_row([(prompt, *sides)]))
    for batch in layouts:
        logps = per_token_logps(model, batch)
        for side, found in zip(sides, logps, strict=True):
            logits = model(torch.tensor([prompt + side])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(side)[:, None]).squeeze(-1)
            torch.testing.assert_close(found[: len(side)], expected, **FP32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_laboratorys_model_shares_and_global_random_state_stays(dtype: torch.dtype) -> None:
    model = load_model(LABORATORY, dtype=dtype, device="cpu")
    before = torch.get_rng_state()
    start = time.perf_counter()
    assert can_share(model) and shares_prefix(model)
    assert time.perf_counter() - start < 5
    assert torch.equal(torch.get_rng_state(), before)


def off_by(change: Callable[[Tensor], Tensor]) -> Callable[..., object]:
    attend = shared_prompts.SharedPrompts.attend
    return lambda self, *args, **kwargs: change(attend(self, *args, **kwargs))


def raises(_: Tensor) -> Tensor:
    raise RuntimeError("an op that this device lacks")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "change", [raises, lambda out: out * 1.5, lambda out: out.roll(1, 0), lambda out: out * torch.nan]
)
def test_any_other_number_or_error_means_not_shared(
    change: Callable[[Tensor], Tensor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_prompts.SharedPrompts, "attend", off_by(change))
    model = build(LlamaConfig, dtype)
    assert not can_share(model)
    assert model.config._attn_implementation != ATTENTION


@pytest.mark.parametrize("error", [RuntimeError, TypeError, KeyError])
def test_a_model_that_fails_on_a_shared_prefix_does_not_share_it(error: type[Exception]) -> None:
    model = build(LlamaConfig)
    forward = model.model.forward

    def strict(**inputs: Tensor) -> object:
        if inputs["attention_mask"].dim() == 4:
            raise error("a mask of four dimensions")
        return forward(**inputs)

    assert shares_prefix(model)
    strict.__signature__ = inspect.signature(forward)
    model.model.forward = strict
    assert not shares_prefix(model)


def test_a_prefix_is_shared_only_to_rounding() -> None:
    """A difference of a twentieth, once within the tolerance, is no rounding in fp32."""
    model = build(LlamaConfig)
    forward = model.model.forward

    def shifted(**inputs: Tensor) -> object:
        outputs = forward(**inputs)
        if inputs["attention_mask"].dim() == 4:
            outputs.last_hidden_state = outputs.last_hidden_state * 1.05
        return outputs

    shifted.__signature__ = inspect.signature(forward)
    model.model.forward = shifted
    assert not shares_prefix(model)
