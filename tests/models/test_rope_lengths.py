"""Rows on both sides of a rotary length never share a forward pass; rows beyond a model's positions are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel

from allo.errors import UserError
from allo.models.collate import pad
from allo.models.model_checks import rope_length
from allo.models.policy import per_token_logps, shares_prefix
from allo.training.dpo_passes import DpoPasses
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from tiny import TOKENIZER, arguments, full_mask, model, text

ORIGINAL = 16
FACTORS = [1.0, 2.0, 4.0, 8.0]  # of a head of 8 entries
ROPES: dict[str, dict[str, Any]] = {
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 4,
        "long_factor": FACTORS,
        "original_max_position_embeddings": ORIGINAL,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
}
POSITIONS = {"longrope": 64, "dynamic": ORIGINAL}
FP32 = {"rtol": 0.0, "atol": 2e-5}


def rotary(kind: str) -> PreTrainedModel:
    return model(
        hidden_size=16, rope_parameters=dict(ROPES[kind]), max_position_embeddings=POSITIONS[kind]
    ).eval()


def rows(*lengths: int) -> list[tuple[list[int], list[int]]]:
    """A prompt of 4 tokens and as many more as a row of that length has."""
    ids = [5 + 7 * place % 60 for place in range(100)]
    return [(ids[:4], ids[4:length]) for length in lengths]


def logps(policy: PreTrainedModel, *lengths: int) -> list[Tensor]:
    batch = pad(rows(*lengths), pad_id=0)
    with torch.no_grad():
        found = per_token_logps(policy, batch)
    return [row[mask] for row, mask in zip(found, batch["completion_mask"], strict=True)]


@pytest.mark.parametrize("kind", ROPES)
def test_within_the_original_length_a_row_alone_is_that_row_in_any_batch(kind: str) -> None:
    policy = rotary(kind)
    assert rope_length(policy.config) == ORIGINAL
    lengths = (6, 9, ORIGINAL)
    alone = [logps(policy, length)[0] for length in lengths]
    logps(policy, ORIGINAL, 5)  # a batch before leaves nothing behind
    for batch in (lengths, lengths[::-1], (ORIGINAL, 7)):
        found = dict(zip(batch, logps(policy, *batch), strict=True))
        for length, expected in zip(lengths, alone, strict=True):
            if length in found:
                torch.testing.assert_close(found[length], expected, **FP32)


def plain(policy: PreTrainedModel, length: int) -> Tensor:
    """The log-probs of a row alone, from the model's own logits."""
    ((prompt, completion),) = rows(length)
    with torch.no_grad():
        logits = policy(torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("lengths", [(9, 36), (36, 9), (ORIGINAL, ORIGINAL + 1, 6, 40), (20, 40)])
def test_rows_on_both_sides_of_it_are_those_rows_alone(lengths: tuple[int, ...], train: bool) -> None:
    policy = rotary("longrope").train(train)
    for length, found in zip(lengths, logps(policy, *lengths), strict=True):
        torch.testing.assert_close(found, plain(policy, length), **FP32)


def test_gradients_of_both_sides_are_those_of_each_row_alone() -> None:
    policy = rotary("longrope")
    batch = pad(rows(9, 36), pad_id=0)
    together = torch.autograd.grad(per_token_logps(policy, batch).sum(), list(policy.parameters()))
    apart = [torch.zeros_like(param) for param in policy.parameters()]
    for length in (9, 36):
        alone = per_token_logps(policy, pad(rows(length), pad_id=0)).sum()
        for total, grad in zip(apart, torch.autograd.grad(alone, list(policy.parameters())), strict=True):
            total += grad
    for ours, theirs in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_in_one_pass_a_longer_row_would_change_the_others() -> None:
    """The reason for two passes; they may go once transformers computes angles row by row."""
    policy = rotary("longrope")
    batch = pad(rows(9, ORIGINAL + 20), pad_id=0)
    with torch.no_grad():
        logits = policy(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        alone = policy(batch["input_ids"][:1, :9], use_cache=False).logits
    assert (logits[0, :9] - alone[0]).abs().max() > 1e-3


def test_a_prefix_is_not_shared_where_the_two_completions_may_end_on_both_sides() -> None:
    for positions, shares in ((256, False), (128, True)):  # beyond what is tried on a few tokens
        rope = ROPES["longrope"] | {"original_max_position_embeddings": 128}
        policy = model(hidden_size=16, rope_parameters=rope, max_position_embeddings=positions)
        assert shares_prefix(policy.eval()) == shares


def words(length: int) -> str:
    return text(3, length)


@pytest.mark.parametrize("trainer", [ImproveTrainer, ForgetTrainer, SftTrainer])
def test_a_trainer_refuses_rows_beyond_dynamic_angles_and_says_what_to_set(
    trainer: type[SelectedTrainer], tmp_path: Path
) -> None:
    policy = rotary("dynamic")
    long, short = words(ORIGINAL), words(5)
    sides = {"chosen": short, "rejected": long} if trainer is ImproveTrainer else {"completion": long}
    given = (policy, arguments(tmp_path), [{"prompt": "Problem:", **sides}], TOKENIZER)
    with pytest.raises(
        UserError,
        match=r"^train_dataset: the longest row has \d+ tokens, but LlamaForCausalLM has 16 positions beyond which its "
        r"rotary angles depend on how many tokens follow: set max_length to 16 or less \(it is 1200\)",
    ):
        trainer(*given, mask=full_mask(policy))
    kept = {name: words(number) for number, name in enumerate(sides, start=4)}
    trainer(*given[:2], [{"prompt": "Problem:", **kept}], TOKENIZER, mask=full_mask(policy))
    shorter = [{"prompt": text(1, 30), **kept}]  # cut to what was asked for
    found = trainer(*given[:2], shorter, TOKENIZER, mask=full_mask(policy), max_length=ORIGINAL)
    assert found.num_dropped == 0


@pytest.mark.parametrize("trainer", [ImproveTrainer, ForgetTrainer, SftTrainer])
def test_a_trainer_takes_longrope_rows_up_to_the_last_position(
    trainer: type[SelectedTrainer], tmp_path: Path
) -> None:
    policy = rotary("longrope")
    names = ("chosen", "rejected") if trainer is ImproveTrainer else ("completion",)
    sides = {name: words(length) for name, length in zip(names, (30, 5), strict=False)}
    given = (policy, arguments(tmp_path), [{"prompt": "Problem:", **sides}] * 2, TOKENIZER)
    assert trainer(*given, mask=full_mask(policy)).num_dropped == 0
    sides = {name: words(length) for length, name in enumerate(names, start=70)}
    with pytest.raises(UserError, match=r"has 64 positions for prompt and completion together"):
        trainer(*given[:2], [{"prompt": "Problem:", **sides}], TOKENIZER, mask=full_mask(policy))


@pytest.mark.parametrize("evaluated", [False, True])
def test_rows_fit_the_positions_of_a_learned_table(evaluated: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(TOKENIZER), n_embd=16, n_layer=1, n_head=2, n_positions=32)
    )
    fits = [{"prompt": text(1, 4), "chosen": words(20), "rejected": words(25)}]  # with BOS and EOS 31 at most
    beyond = [{"prompt": text(1, 4), "chosen": words(20), "rejected": words(40)}]
    train, evaluate = (fits, beyond) if evaluated else (beyond, fits)
    with pytest.raises(
        UserError,
        match=rf"^{'eval' if evaluated else 'train'}_dataset: the longest row has 46 tokens, but GPT2LMHeadModel has "
        r"32 positions for prompt and completion together: set max_length to 32 or less",
    ):
        ImproveTrainer(
            policy, arguments(tmp_path), train, TOKENIZER, mask=full_mask(policy), eval_dataset=evaluate
        )


def test_locating_refuses_them_too(tmp_path: Path) -> None:
    policy = rotary("dynamic")
    ids = list(range(5, 5 + ORIGINAL))
    row = {"prompt_ids": [1, 2, 3], "chosen_ids": ids[:4], "rejected_ids": ids}
    with pytest.raises(UserError, match=r"^locate: the longest row has 19 tokens"):
        DpoPasses(policy, [row], arguments(tmp_path), beta=0.1, pad_id=0)


def test_a_length_is_known_of_every_form_of_a_configuration() -> None:
    def of(rope: Any, positions: int = 64) -> int | None:
        config = PreTrainedConfig()
        config.rope_parameters, config.max_position_embeddings = rope, positions
        return rope_length(config)

    long = ROPES["longrope"]
    assert of(None) is None and of({"rope_type": "default"}) is None and of({"rope_type": "yarn"}) is None
    assert of({"rope_type": "linear", "factor": 2.0}) is None and of({"rope_type": "llama3"}) is None
    assert of(long) == 16 and of(ROPES["dynamic"]) == 64
    assert of(ROPES["dynamic"] | {"original_max_position_embeddings": 8}) == 8
    assert of({"full_attention": long, "sliding_attention": {"rope_type": "default"}}) == 16
