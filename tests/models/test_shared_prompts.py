"""Rows that share a prompt see exactly what they would see alone."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from allo.models.shared_prompts import ATTENTION, SharedPrompts, can_share, shared_attention

VOCABULARY = 50
ROUNDING = 1e-5  # of logits of about 1: the models are fp64, but norms and rotations are fp32 in any model


def model_of(kind: str) -> PreTrainedModel:
    """A random fp64 model: grouped keys, learned positions, or a window shorter than the prompts."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model: PreTrainedModel
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    elif kind == "sliding":
        model = MistralForCausalLM(MistralConfig(**sizes, **layers, num_key_value_heads=2, sliding_window=5))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes, **layers, num_key_value_heads=2))
    return model.double().eval()


def ids(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


class Beside:
    """The same rows in two ways: together with shared prompts, and each alone in a plain forward pass."""

    def __init__(self, model: PreTrainedModel, *, num_generations: int) -> None:
        self.model, self.num_generations = model, num_generations
        self.shared = SharedPrompts(model, num_generations=num_generations, max_new_tokens=30)
        self.rows: list[list[int]] = []
        self.num_compared = 0
        self.step_number = 0

    def admit(self, lengths: list[int]) -> None:
        prompts = [ids(n, seed=n).tolist() for n in lengths]
        logits = self.shared.admit(prompts)
        self.rows += [prompt for prompt in prompts for _ in range(self.num_generations)]
        self.compare(
            logits.repeat_interleave(self.num_generations, 0),
            self.rows[-len(logits) * self.num_generations :],
        )

    def step(self, times: int) -> None:
        for _ in range(times):
            self.step_number += 1
            token_ids = ids(len(self.rows), seed=1000 + self.step_number)
            self.rows = [[*row, token] for row, token in zip(self.rows, token_ids.tolist(), strict=True)]
            self.compare(self.shared.step(token_ids), self.rows)

    def keep(self, indices: list[int]) -> None:
        self.shared.keep(torch.tensor(indices, dtype=torch.int64))
        self.rows = [self.rows[index] for index in indices]

    def compare(self, logits: torch.Tensor, rows: list[list[int]]) -> None:
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        expected = torch.stack([self.model(torch.tensor([row])).logits[0, -1] for row in rows])
        self.model.set_attn_implementation(before)
        torch.testing.assert_close(logits, expected, rtol=0, atol=ROUNDING)
        self.num_compared += len(rows)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "sliding"])
def test_logits_are_those_of_each_row_alone_whoever_comes_and_goes(kind: str) -> None:
    model = model_of(kind)
    with torch.inference_mode(), shared_attention(model):
        beside = Beside(model, num_generations=3)
        beside.admit([12, 7, 9])
        beside.step(6)
        beside.keep([1, 2, 5, 8])  # of the first prompt two, of the others one each
        beside.step(2)
        beside.admit([14, 3])  # a prompt longer than all before, and a short one
        beside.step(3)
        beside.keep([2, 3, 9])  # the longest prompts leave, and with them their padding
        beside.step(1)
        beside.keep([])
        beside.admit([4])
        beside.step(2)
    assert beside.num_compared == 9 + 6 * 9 + 2 * 4 + 6 + 3 * 10 + 3 + 3 + 2 * 3


def test_a_rows_own_states_outgrow_their_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("allo.models.shared_prompts.SPARE_POSITIONS", 2)
    model = model_of("llama")
    with torch.inference_mode(), shared_attention(model):
        beside = Beside(model, num_generations=2)
        beside.admit([5])
        beside.step(3)
        beside.admit([6])
        beside.step(4)
    assert beside.num_compared == 2 + 3 * 2 + 2 + 4 * 4


def test_prompts_are_read_in_groups_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("allo.models.shared_prompts.PREFILL_TOKENS", 20)
    model = model_of("llama")
    sizes = []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with torch.inference_mode(), shared_attention(model):
        shared = SharedPrompts(model, num_generations=1, max_new_tokens=4)
        shared.admit([ids(n, seed=n).tolist() for n in (25, 10, 9, 8, 3)])
    assert sizes == [(1, 25), (2, 10), (2, 8)]


def test_nothing_of_a_prompt_is_copied_for_its_completions() -> None:
    """Keys and values held for a prompt of 40 tokens do not grow with the number of its completions."""
    model = model_of("llama")

    def num_values(num_generations: int) -> int:
        with torch.inference_mode(), shared_attention(model):
            shared = SharedPrompts(model, num_generations=num_generations, max_new_tokens=4)
            shared.admit([ids(40, seed=0).tolist()])
            return sum(states.numel() for layer in shared.prompt_states for states in layer)

    layers, keys_and_values, heads, size = 2, 2, 2, 8
    assert num_values(1) == num_values(50) == layers * keys_and_values * heads * 40 * size


def test_the_models_attention_is_put_back_also_after_an_exception() -> None:
    model = model_of("llama")
    seen = []

    def interrupted() -> None:
        with shared_attention(model):
            seen.append(model.config._attn_implementation)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == [ATTENTION]
    assert model.config._attn_implementation == "sdpa"


def test_attention_that_is_not_plain_sdpa_is_not_exchanged() -> None:
    model = model_of("llama")
    assert can_share(model)
    model.config.attention_chunk_size = 8
    assert not can_share(model)
    model = model_of("llama")
    model.set_attn_implementation("eager")
    assert not can_share(model)
