"""Sampling: greedy as transformers does it, the exact nucleus, and batches that can be resumed."""

from dataclasses import replace
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    TopPLogitsWarper,
)

from allo.models import shared_prompts
from allo.models.load import load_model, load_tokenizer
from allo.models.tokenization import prompt_ids
from allo.sampling import decode as decoding
from allo.sampling.decode import decode
from allo.sampling.draw import draw, take_most_probable
from allo.sampling.generate import WAVES, Batch, generate, num_batches, read

LAB = str(files("allo") / "lab")
TOKENIZER = load_tokenizer(LAB)
VOCABULARY = len(TOKENIZER)
SETTINGS: dict[str, Any] = {
    "num_generations": 3,
    "temperature": 1.0,
    "top_p": 0.95,
    "max_new_tokens": 24,
    "stop": [],
    "seed": 0,
    "batch_size": 6,
}
TOTAL_VARIATION = 0.02  # 20000 draws of 64 outcomes differ from their distribution by .013 on average


@pytest.fixture(scope="module")
def lab() -> PreTrainedModel:
    return load_model(LAB, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Seven prompts of seven lengths, the shortest first."""
    text = (
        "Ann has 12 red apples and Ben has 7 green apples. Ben gives Ann 5 apples. How many apples has Ann?"
    )
    words = text.split(" ")
    return [prompt_ids(TOKENIZER, " ".join(words[-n:])) for n in range(6, 20, 2)]


def tiny_model(kind: str, *, vocab_size: int = VOCABULARY) -> PreTrainedModel:
    """A random model of a kind: grouped keys, learned positions, or a window shorter than the prompts."""
    torch.manual_seed(0)
    sizes = {"vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model: PreTrainedModel
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=4, n_positions=128))
    elif kind == "sliding":
        model = MistralForCausalLM(MistralConfig(**sizes, **layers, num_key_value_heads=2, sliding_window=8))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes, **layers, num_key_value_heads=2))
    # Many ids that end a row, so that rows end at different steps.
    model.generation_config.eos_token_id = list(range(2, vocab_size, 9))
    return model.eval()


def samples(batches: list[Batch]) -> list[Any]:
    return sorted((s for batch in batches for s in batch.samples), key=lambda s: (s.prompt, s.index))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", ["lab", "llama", "gpt2", "sliding"])
def test_greedy_equals_plain_generate_on_each_prompt_alone(
    kind: str, shared: bool, lab: PreTrainedModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        monkeypatch.setattr(decoding, "can_share", lambda model: False)
    model = lab if kind == "lab" else tiny_model(kind)
    greedy = SETTINGS | {"temperature": 0.0, "num_generations": 1, "batch_size": 4}
    ours = samples(list(generate(model, TOKENIZER, prompts, **greedy)))
    lengths = set()
    for sample, prompt in zip(ours, prompts, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            top_k=None,
            temperature=None,
            max_new_tokens=greedy["max_new_tokens"],
            pad_token_id=0,
        )[0, len(prompt) :]
        assert sample.token_ids == out.tolist()
        assert sample.text == TOKENIZER.decode(out[:-1] if sample.finished else out)
        ends = model.generation_config.eos_token_id
        assert sample.finished == (int(out[-1]) in (ends if isinstance(ends, list) else [ends]))
        lengths.add(len(out))
    assert len(lengths) > 1  # rows ended at different steps, or the test shows little


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_draws_follow_the_exact_nucleus(top_p: float, spread: float) -> None:
    """Evenly spaced uniforms visit each token in exact proportion, up to one draw at each of its two ends.

    With spread 0.1 the nucleus outgrows the candidates that are looked at first, with 3.0 it does not.
    """
    vocab_size, num_draws, temperature = 300, 20_000, 0.7
    logits = spread * torch.randn(vocab_size, generator=torch.Generator().manual_seed(1))
    uniforms = (torch.arange(num_draws) + 0.5) / num_draws
    ids = draw(logits.expand(num_draws, -1), uniforms, temperature=temperature, top_p=top_p)

    scaled = logits.double().numpy() / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs)
    size = int(np.searchsorted(np.cumsum(probs[order]), top_p)) + 1 if top_p < 1 else vocab_size
    expected = np.zeros(vocab_size)
    expected[order[:size]] = probs[order[:size]] / probs[order[:size]].sum()
    counts = np.bincount(ids.numpy(), minlength=vocab_size)
    assert np.abs(counts - num_draws * expected).max() <= 1.5
    kept = LogitsProcessorList([TopPLogitsWarper(top_p)])(None, logits[None] / temperature)[0] > -torch.inf
    assert kept.sum() == size or top_p == 1
    assert (counts[~kept.numpy()] == 0).all()


def test_the_largest_uniform_draws_no_impossible_token() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 0.5, -torch.inf]]).repeat(2, 1)
    uniforms = torch.tensor([0.0, 1 - 2**-24])
    for top_p in (0.5, 0.999, 1.0):
        for seed in range(20):
            noise = torch.rand(1, 5, generator=torch.Generator().manual_seed(seed))
            ids = draw(logits + noise, uniforms, temperature=1.0, top_p=top_p)
            assert not torch.isin(ids, torch.tensor([2, 4])).any()


def test_sampled_sequences_follow_the_models_distribution() -> None:
    vocab_size, num_rows, prompt = 8, 20_000, [1, 5, 3]
    model = tiny_model("llama", vocab_size=vocab_size)
    with torch.inference_mode():
        first = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
        after = torch.tensor([[*prompt, token] for token in range(vocab_size)])
        second = model(after).logits[:, -1].softmax(-1)
        rows = decode(
            model,
            [prompt, [1, 4]],
            torch.rand(2 * num_rows, 2, generator=torch.Generator().manual_seed(0)),
            max_rows=2 * num_rows,
            choose=partial(draw, temperature=1.0, top_p=1.0),
            eos=[0],
            has_stopped=None,
        )
    expected = first[:, None] * second
    expected[0] = torch.nn.functional.one_hot(torch.tensor(0), vocab_size) * first[0]  # 0 ends the row
    drawn = torch.tensor([[*ids, 0][:2] for ids in rows[:num_rows]])
    joint = torch.bincount(drawn[:, 0] * vocab_size + drawn[:, 1], minlength=vocab_size**2) / num_rows
    assert (joint - expected.flatten()).abs().sum() / 2 < TOTAL_VARIATION


def test_a_resumed_run_yields_what_an_uninterrupted_one_does(
    lab: PreTrainedModel, prompts: list[list[int]]
) -> None:
    settings = SETTINGS | {"batch_size": 3}
    whole = list(generate(lab, TOKENIZER, prompts, **settings))
    assert [len(batch.samples) for batch in whole] == [3 * WAVES, 3 * (7 - WAVES)]
    assert [batch.number for batch in whole] == [0, 1]
    assert num_batches(len(prompts), num_generations=3, batch_size=3) == 2
    assert list(generate(lab, TOKENIZER, prompts, **settings, numbers=[1])) == whole[1:2]
    assert [(s.prompt, s.index) for s in samples(whole)] == [(p, i) for p in range(7) for i in range(3)]


@pytest.mark.invariant("A sample does not depend on what is decoded beside it.")
@pytest.mark.parametrize("kind", ["lab", "llama", "gpt2", "sliding"])
@pytest.mark.parametrize(("shared", "batch_size"), [(True, 1), (True, 9), (False, 6), (False, 21)])
def test_a_sample_does_not_depend_on_what_is_decoded_beside_it(
    kind: str,
    shared: bool,
    batch_size: int,
    lab: PreTrainedModel,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Alone, all at once, in the places of others, with prompts shared or repeated: the same in fp32."""
    model = lab if kind == "lab" else tiny_model(kind)
    settings = SETTINGS | {"stop": [" so", "."], "max_new_tokens": 40}
    expected = samples(list(generate(model, TOKENIZER, prompts, **settings)))
    monkeypatch.setattr(decoding, "can_share", lambda model: shared)
    ours = samples(list(generate(model, TOKENIZER, prompts, **(settings | {"batch_size": batch_size}))))
    assert ours == expected
    last = samples(list(generate(model, TOKENIZER, prompts[:1], **settings)))
    assert last == expected[:3]


def test_seeds_prompts_and_generations_differ_and_global_random_state_does_not_matter(
    lab: PreTrainedModel, prompts: list[list[int]]
) -> None:
    state = torch.get_rng_state()
    one = samples(list(generate(lab, TOKENIZER, prompts, **SETTINGS)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert samples(list(generate(lab, TOKENIZER, prompts, **SETTINGS))) == one
    other = samples(list(generate(lab, TOKENIZER, prompts, **(SETTINGS | {"seed": 1}))))
    assert sum(a.text != b.text for a, b in zip(one, other, strict=True)) > len(one) // 2
    twins = samples(list(generate(lab, TOKENIZER, [prompts[-1]] * 4, **SETTINGS)))
    assert len({s.text for s in twins}) > len(twins) // 2


@pytest.mark.parametrize(
    ("check_every", "leaving_share", "spare"), [(1, 0.0, 1), (1, 0.25, 64), (7, 0.0, 3), (24, 1.0, 64)]
)
def test_when_rows_leave_the_batch_and_how_the_cache_grows_changes_no_sample(
    lab: PreTrainedModel,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    check_every: int,
    leaving_share: float,
    spare: int,
) -> None:
    settings = SETTINGS | {"stop": [" so", "."], "max_new_tokens": 40}
    expected = list(generate(lab, TOKENIZER, prompts, **settings))
    monkeypatch.setattr(decoding, "CHECK_EVERY", check_every)
    monkeypatch.setattr(decoding, "LEAVING_SHARE", leaving_share)
    monkeypatch.setattr(shared_prompts, "SPARE_POSITIONS", spare)
    monkeypatch.setattr(shared_prompts, "PREFILL_TOKENS", spare)
    assert list(generate(lab, TOKENIZER, prompts, **settings)) == expected


@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        (True, [4] * 5 + [3] + [4] * 4 + [3] * 4 + [2] * 4),  # three begin beside row 3
        (False, [4] * 5 + [1] * 4 + [3] * 9 + [2] * 4),  # they wait until row 3 has left
    ],
)
def test_rows_that_ended_leave_and_waiting_prompts_take_their_place(
    shared: bool,
    expected: list[int],
    lab: PreTrainedModel,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row r draws EOS after 2 * r tokens; four rows at most; rows leave at the next look, which comes every fourth step."""
    widths = []

    def choose(logits: Tensor, uniforms: Tensor) -> Tensor:
        widths.append(len(logits))
        return torch.where(uniforms > 0, 2, 20)

    uniforms = torch.zeros(7, 40)
    uniforms[range(7), [2 * row for row in range(7)]] = 1.0
    monkeypatch.setattr(decoding, "can_share", lambda model: shared)
    rows = decode(lab, prompts, uniforms, max_rows=4, choose=choose, eos=[2], has_stopped=None)
    assert rows == [[20] * (2 * row) + [2] for row in range(7)]
    assert widths == expected


def test_a_stop_string_ends_a_completion_before_it(lab: PreTrainedModel, prompts: list[list[int]]) -> None:
    free = samples(list(generate(lab, TOKENIZER, prompts, **SETTINGS)))
    stopped = samples(list(generate(lab, TOKENIZER, prompts, **(SETTINGS | {"stop": ["=", "never"]}))))
    for one, two in zip(free, stopped, strict=True):
        if "=" in one.text:
            assert two == replace(
                one, text=one.text.split("=")[0], finished=True, token_ids=one.token_ids[: two.num_tokens]
            )
        else:
            assert two == one
    assert any("=" in sample.text for sample in free)


def test_a_completion_cut_by_the_token_limit_is_not_finished(
    lab: PreTrainedModel, prompts: list[list[int]]
) -> None:
    cut = samples(list(generate(lab, TOKENIZER, prompts, **(SETTINGS | {"max_new_tokens": 3}))))
    assert {(sample.num_tokens, sample.finished) for sample in cut} == {(3, False)}


def test_tokens_after_a_stop_string_count_for_nothing() -> None:
    plus, equals, seven = (
        TOKENIZER(text, add_special_tokens=False).input_ids[0] for text in (" +", " =", " 7")
    )
    reading = partial(read, TOKENIZER, eos=[2], stop=[" = 7 = 7", "="])
    assert reading([seven, plus, seven, equals, seven, equals, seven]) == (
        " 7 + 7 ",
        True,
        [seven, plus, seven, equals],
    )
    assert reading([seven, equals, 2]) == (" 7 ", True, [seven, equals])
    assert reading([seven, plus, 2]) == (" 7 +", True, [seven, plus, 2])
    assert reading([seven, plus, seven]) == (" 7 + 7", False, [seven, plus, seven])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "gpt2", "sliding"])
def test_cuda_draws_what_the_cpu_draws(kind: str, prompts: list[list[int]]) -> None:
    model = tiny_model(kind).double()
    on_cpu = list(generate(model, TOKENIZER, prompts, **SETTINGS))
    assert list(generate(model.to("cuda"), TOKENIZER, prompts, **SETTINGS)) == on_cpu


def test_greedy_takes_the_first_of_equals() -> None:
    assert take_most_probable(torch.tensor([[1.0, 3.0, 3.0]]), torch.zeros(1)).tolist() == [1]
