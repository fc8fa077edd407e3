"""Every kind of family decodes as `generate` does on each prompt alone, whoever is decoded beside it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from allo.errors import UserError
from allo.models import repeated_prompts
from allo.models.probe import cache_argument
from allo.models.repeated_prompts import FASTEST, RepeatedPrompts, Way, way_of
from allo.models.shared_prompts import SharedPrompts, can_share, shared_attention
from allo.sampling.decode import decode
from allo.sampling.draw import take_most_probable
from tiny_families import FAMILIES, LIMIT, VOCABULARY, family_model, generated, greedy, ids

WITHOUT_CACHE = {"rwkv", "xlstm", "openai-gpt"}
SAMPLED = sorted(FAMILIES.keys() - WITHOUT_CACHE)
SHARED = {"olmo3", "opt", "mixtral", "phimoe", "phi3", "phi3+longrope", "phimoe+longrope", "llama"}
LENGTHS = (6, 3, 13, 3, 19)
PROMPTS = [ids(length, seed=number) for number, length in enumerate(LENGTHS)]
NEW = 6


def decoded(
    model: PreTrainedModel, prompts: list[list[int]], *, max_rows: int = 4, eos: int = VOCABULARY
) -> list[list[int]]:
    """Two greedy rows of each prompt."""
    uniforms = torch.zeros(2 * len(prompts), NEW)
    return decode(
        model, prompts, uniforms, max_rows=max_rows, choose=take_most_probable, eos=[eos], has_stopped=None
    )


@pytest.mark.invariant("Every family decodes greedily as `generate` does on each prompt alone.")
@pytest.mark.parametrize("family", SAMPLED)
@torch.inference_mode()
def test_greedy_rows_are_those_of_generate(family: str) -> None:
    model = family_model(family)
    alone = [generated(model, prompt, NEW) for prompt in PROMPTS]
    assert decoded(model, PROMPTS) == [row for row in alone for _ in range(2)]
    assert can_share(model) == (family in SHARED)
    assert way_of(model) == (FASTEST if family != "recurrent_gemma" else Way(pads=False, moves=False))
    assert alone == [greedy(model, prompt, NEW) for prompt in PROMPTS]


@pytest.mark.parametrize("family", ["recurrent_gemma", "mamba2", "qwen3_5_text", "phi3+longrope", "gemma2"])
@torch.inference_mode()
def test_rows_that_end_leave_the_others_as_they_were(family: str) -> None:
    model = family_model(family)
    prompts = [*PROMPTS, ids(1, seed=9), ids(6, seed=10), ids(6, seed=11)]  # a single token, too
    whole = [greedy(model, prompt, NEW) for prompt in prompts]
    for eos in (whole[0][2], whole[-1][0]):
        expected = [row[: row.index(eos) + 1] if eos in row else row for row in whole]
        for max_rows in (4, 16):
            assert decoded(model, prompts, max_rows=max_rows, eos=eos) == [
                row for row in expected for _ in range(2)
            ]


LEAKS = {
    "lfm2": {"conv_bias": True},
    "bamba": {"mamba_proj_bias": True},
    "mamba2": {"use_bias": True},
    "jamba": {"mamba_proj_bias": True},
}


@pytest.mark.parametrize("family", LEAKS)
@torch.inference_mode()
def test_padding_that_would_reach_the_states_is_avoided(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A biased projection turns masked padding into something; then only prompts of equal length run together."""
    model = family_model(family, **LEAKS[family])
    assert way_of(model) == way_of(model) == Way(pads=False)
    said = " ".join(capsys.readouterr().err.split())
    assert (
        said.count("only prompts of equal length are decoded together") == 1 and type(model).__name__ in said
    )
    alone = [greedy(model, prompt, NEW) for prompt in PROMPTS]
    assert decoded(model, PROMPTS) == [row for row in alone for _ in range(2)]
    padded = RepeatedPrompts(model, num_generations=1, way=FASTEST).admit(PROMPTS)
    first = torch.cat([model(torch.tensor([prompt]), use_cache=False).logits[:, -1] for prompt in PROMPTS])
    assert (padded - first).abs().max() > 0.01  # the reason


@torch.inference_mode()
def test_states_outside_the_cache_keep_their_rows(capsys: pytest.CaptureFixture[str]) -> None:
    model = family_model("recurrent_gemma")
    assert way_of(model) == Way(pads=False, moves=False)
    assert "some of its states are not in its cache" in " ".join(capsys.readouterr().err.split())


@torch.inference_mode()
def test_states_outside_the_cache_do_not_reach_the_next_prompt() -> None:
    """A prompt of one token looks like a step of the rows before."""
    model = family_model("recurrent_gemma")
    rows = RepeatedPrompts(model, num_generations=2, way=way_of(model))
    prompts = ([5, 6, 7], [9], [9, 8])
    alone = [model(torch.tensor([prompt]), use_cache=False).logits[:, -1] for prompt in prompts]
    for prompt, whole in zip(prompts, alone, strict=True):
        torch.testing.assert_close(rows.admit([prompt]), whole, rtol=0, atol=1e-4)
        rows.step(torch.tensor([3, 4]))


@pytest.mark.parametrize("family", ["phi3+longrope", "phimoe+longrope"])
@torch.inference_mode()
def test_rows_cross_the_rotary_limit_as_generate_does(family: str) -> None:
    model = family_model(family)
    prompts = [ids(length, seed=length) for length in range(LIMIT - NEW, LIMIT + 3)]
    alone = [generated(model, prompt, NEW) for prompt in prompts]
    assert alone == [greedy(model, prompt, NEW) for prompt in prompts]
    for max_rows in (2, 8):
        assert decoded(model, prompts, max_rows=max_rows) == [row for row in alone for _ in range(2)]


@torch.inference_mode()
def test_a_limit_that_no_row_reaches_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model("phi3+longrope")
    monkeypatch.setattr(repeated_prompts.RepeatedPrompts, "admit", None)
    prompts = [prompt for prompt in PROMPTS if len(prompt) + NEW <= LIMIT]
    assert decoded(model, prompts) == [row for p in prompts for row in [generated(model, p, NEW)] * 2]


@pytest.mark.parametrize("family", sorted(WITHOUT_CACHE))
def test_a_family_without_transformers_cache_is_refused(family: str) -> None:
    model = family_model(family)
    with pytest.raises(
        UserError, match=rf"^{type(model).__name__} does not decode with .* Use a model that does"
    ):
        cache_argument(type(model))
    with pytest.raises(UserError, match="does not decode"):
        decoded(model, PROMPTS)


@torch.inference_mode()
def test_a_model_whose_cache_gives_other_logits_is_refused() -> None:
    model = family_model("llama")
    forward = model.model.forward

    def forgetful(**inputs: Any) -> Any:
        return forward(**inputs | {"past_key_values": None})

    model.model.forward = forgetful
    with pytest.raises(UserError, match=r"decoding with a cache (gives other logits|fails)"):
        way_of(model)


def stepped(model: PreTrainedModel, spoil: Callable[[], object]) -> None:
    """Take a step with shared prompts, of a model that is spoiled after it has read them."""
    with torch.inference_mode(), shared_attention(model):
        shared = SharedPrompts(model, num_generations=2, max_new_tokens=4)
        shared.admit([[5, 6, 7]])
        spoil()
        shared.step(torch.tensor([3, 4]))


@pytest.mark.parametrize("family", ["llama", "nemotron"])
def test_an_attention_that_does_not_get_the_shared_prompts_raises(family: str) -> None:
    """Nemotron's layers never hand them on."""
    model = family_model(family)
    forward = model.model.forward

    def spoil() -> None:
        model.model.forward = lambda **inputs: forward(**inputs | {"shared_prompts": None})

    with pytest.raises(ValueError, match="did not pass on `shared_prompts`"):
        stepped(model, spoil)


def test_a_layer_that_does_not_read_the_shared_prompts_raises() -> None:
    """Its attention is of its own, or it has none."""
    model = family_model("llama")

    def spoil() -> None:
        model.model.layers[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)

    with pytest.raises(ValueError, match="not every layer's attention read the prompts"):
        stepped(model, spoil)


def test_a_layer_that_reads_the_keys_of_another_raises() -> None:
    model = family_model("llama")

    def spoil() -> None:
        model.model.layers[1].self_attn.layer_idx = 0

    with pytest.raises(ValueError, match="not every layer's"):
        stepped(model, spoil)


def test_layers_that_read_each_others_keys_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer's keys are read once, as it must be, but by the other."""
    update = SharedPrompts.update

    def exchanged(shared: SharedPrompts, keys: torch.Tensor, values: torch.Tensor, layer: int) -> object:
        return update(shared, keys, values, 1 - layer)

    monkeypatch.setattr(SharedPrompts, "update", exchanged)
    with pytest.raises(ValueError, match=r"layers \[0\] read the keys of layers \[1\]"):
        stepped(family_model("llama"), lambda: None)
