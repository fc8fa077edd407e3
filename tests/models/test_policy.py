"""A policy's log-probs equal those of the model's own logits, whatever its family does to them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from allo.errors import UserError
from allo.models.collate import pad
from allo.models.policy import check_head, completion_distributions, head_of, per_token_logps, shares_prefix
from refusals import refusal
from tiny import in_one_row

VOCABULARY = 32
FP32 = {"rtol": 1e-5, "atol": 1e-6}
# Share of a tensor's largest gradient: the orders of summation differ through the whole network.
GRADIENT = {"rtol": 0, "atol": 1e-5}
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    # Wide weights, so that a missing scale or cap shows.
    "initializer_range": 0.5,
}

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama untied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=1,
            initializer_range=0.5,
        )
    ),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0, attn_implementation="eager")
    ),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**SIZES)),  # its head has a bias
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
}
ROWS = [([2, 3, 4], [5, 6, 7, 1]), ([8], [9, 1]), ([10, 11, 12, 13, 14], [15])]
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def build(family: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = family().eval()
    for name, param in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(param)  # a new model's biases are zero
    return model


def through_logits(model: PreTrainedModel, rows: list[tuple[list[int], list[int]]]) -> Tensor:
    """The textbook: each row alone, log-softmax of all logits, shifted, gathered."""
    logps = torch.zeros(len(rows), max(len(completion) for _, completion in rows))
    for row, (prompt, completion) in enumerate(rows):
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
        distributions = logits[len(prompt) - 1 : -1].log_softmax(-1)
        logps[row, : len(completion)] = distributions[range(len(completion)), completion]
    return logps


@families
def test_log_probs_and_gradients_are_those_of_the_models_logits(
    family: Callable[[], PreTrainedModel],
) -> None:
    model = build(family)
    ours, theirs = per_token_logps(model, pad(ROWS, pad_id=0)), through_logits(model, ROWS)
    torch.testing.assert_close(ours, theirs, **FP32)
    parameters = list(model.parameters())
    grads = torch.autograd.grad(ours.sum(), parameters)
    expected = torch.autograd.grad(theirs.sum(), parameters)
    for ours_grad, grad in zip(grads, expected, strict=True):
        scale = grad.abs().max().clamp(min=1)
        torch.testing.assert_close(ours_grad / scale, grad / scale, **GRADIENT)


@families
def test_padding_to_the_right_changes_no_row(family: Callable[[], PreTrainedModel]) -> None:
    model = build(family)
    together = per_token_logps(model, pad(ROWS, pad_id=0))
    for row, logps in zip(ROWS, together, strict=True):
        alone = per_token_logps(model, pad([row], pad_id=0))[0]
        torch.testing.assert_close(logps[: len(alone)], alone, **FP32)
        assert not logps[len(alone) :].any()


@families
def test_the_families_heads_are_known(family: Callable[[], PreTrainedModel]) -> None:
    assert refusal(lambda: check_head(build(family))) is None


def test_the_families_differ_in_scale_and_cap() -> None:
    """Otherwise the tests above would hold for a head that ignores both."""
    found = {name: head_of(build(family)) for name, family in FAMILIES.items()}
    assert found["gemma2"].softcap == 2 and found["llama tied"].softcap == 0
    assert (found["granite"].scale, found["cohere"].scale, found["gpt2"].scale) == (1 / 4, 0.25, 1)


@pytest.mark.parametrize("factor", [0.5, 3.0, float("nan")])
def test_a_head_that_does_something_else_is_refused(factor: float) -> None:
    class Unknown(LlamaForCausalLM):
        def forward(self, *args: object, **kwargs: object) -> object:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * factor
            return output

    torch.manual_seed(0)
    with pytest.raises(UserError, match=r"Unknown: its logits differ by .* from head\(hidden states\)"):
        check_head(Unknown(LlamaConfig(**SIZES)).eval())


def test_distributions_hold_the_log_probs_of_the_tokens() -> None:
    model, batch = build(FAMILIES["gemma2"]), pad(ROWS, pad_id=0)
    distributions = completion_distributions(model, batch)
    mask = batch["completion_mask"]
    assert distributions.shape == (mask.sum(), VOCABULARY)
    torch.testing.assert_close(distributions.exp().sum(-1), torch.ones(len(distributions)), **FP32)
    tokens = batch["targets"][mask]
    torch.testing.assert_close(
        distributions.gather(-1, tokens[:, None]).squeeze(-1), per_token_logps(model, batch)[mask], **FP32
    )


PAIRS = [([2, 3, 4], [5, 6, 7, 1], [8, 1]), ([9], [1], [10, 11, 12, 13, 1]), ([14, 15], [16, 1], [17, 1])]


@pytest.mark.invariant(
    "A shared prefix, a token budget, a precomputed reference and activation checkpointing change no loss."
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma2"])
def test_a_shared_prefix_changes_no_log_prob_and_no_gradient(family: str, attention: str) -> None:
    model = build(FAMILIES[family])
    model.set_attn_implementation(attention)
    assert shares_prefix(model)
    apart = pad([(p, side[n]) for n in (0, 1) for p, *side in PAIRS], pad_id=0)
    ours, theirs = per_token_logps(model, in_one_row(PAIRS)), per_token_logps(model, apart)
    torch.testing.assert_close(ours, theirs, **FP32)
    parameters = list(model.parameters())
    # One side of one pair at a time, so that a leak between the two would show.
    for completion in range(2 * len(PAIRS)):
        grads = torch.autograd.grad(ours[completion].sum(), parameters, retain_graph=True)
        expected = torch.autograd.grad(theirs[completion].sum(), parameters, retain_graph=True)
        for ours_grad, grad in zip(grads, expected, strict=True):
            scale = grad.abs().max().clamp(min=1)
            torch.testing.assert_close(ours_grad / scale, grad / scale, **GRADIENT)


def test_a_models_own_reading_of_masks_and_positions_is_found_out() -> None:
    """Windows, flash kernels and masks that are not looked at would give other log-probs, so they fall back."""

    class Deaf(LlamaModel):
        def forward(self, *args: object, **kwargs: Any) -> object:
            kwargs["attention_mask"] = None
            return super().forward(*args, **kwargs)

    def llama() -> PreTrainedModel:
        return build(FAMILIES["llama tied"])

    assert shares_prefix(llama())
    deaf = llama()
    deaf.model.__class__ = Deaf
    flash = llama()
    flash.config._attn_implementation = "flash_attention_2"
    windowed = llama()
    windowed.config.sliding_window = 4
    gemma2 = build(FAMILIES["gemma2"])  # every second layer has a window
    assert not any(map(shares_prefix, (deaf, flash, windowed, gemma2)))
