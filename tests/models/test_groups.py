"""A prompt with all its completions in one row gives the numbers and gradients of a row for each."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import tiny_families
from allo.models.collate import Batch, Collator, CompletionCollator, PairCollator, grouped
from allo.models.policy import hidden_states, measured_token_logps, per_token_logps, shares_prefix
from tiny_families import family_model, ids

CLOSE = {"rtol": 0, "atol": 1e-5}
SHARING = ["llama", "gpt_neox", "mixtral", "opt", "phi3", "deepseek_v3"]
# ALiBi without positions, windows, states.
APART = ["falcon", "olmo3", "lfm2"]


def pair_rows() -> list[dict[str, Any]]:
    """Three prompts' pairs, mixed: answers in several pairs, one pair, answers good and bad, lengths from 1 to 11."""
    long, short, middle = ids(9, seed=1), ids(1, seed=2), ids(4, seed=3)
    good, bad = [ids(n, seed=10 + n) for n in (5, 2)], [ids(n, seed=30 + n) for n in (11, 1, 3)]
    rows = [
        (long, good[0], bad[0]),
        (short, good[0], bad[1]),
        (long, good[0], bad[1]),
        (middle, bad[2], good[1]),
    ]
    rows += [(long, good[1], bad[0]), (middle, good[0], bad[2])]
    return [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for prompt, chosen, rejected in rows
    ]


def wrong_rows() -> list[dict[str, Any]]:
    return [{"prompt_ids": row["prompt_ids"], "completion_ids": row["rejected_ids"]} for row in pair_rows()]


@pytest.fixture
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    monkeypatch.setitem(tiny_families.FAMILIES, "gpt_neox", {})
    return family_model(request.param)


def gradients(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probs, and the gradient of their sum with a weight of its own for each token, some of them zero."""
    logps = per_token_logps(model, batch)
    weights = torch.arange(logps.numel()).view(logps.shape) % 5 - 1.0
    weights[0] = 0
    return logps.detach(), list(
        torch.autograd.grad((logps * weights).sum(), list(model.parameters()), allow_unused=True)
    )


@pytest.mark.parametrize("model", [*SHARING, *APART], indirect=True)
@pytest.mark.parametrize("kind", [PairCollator, CompletionCollator])
def test_groups_have_the_log_probs_and_gradients_of_single_rows(
    kind: type[Collator], model: PreTrainedModel, request: pytest.FixtureRequest
) -> None:
    shared = shares_prefix(model)
    assert shared == (request.node.callspec.params["model"] in SHARING)
    rows = pair_rows() if kind is PairCollator else wrong_rows()
    together, apart = kind(0, shared)(grouped(rows)), kind(0).apart(rows)
    if not shared:
        assert "segments" not in together and "distinct" in together
    (ours, own), (theirs, expected) = gradients(model, together), gradients(model, apart)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    for grad, other in zip(own, expected, strict=True):
        if other is not None:
            scale = other.abs().max().clamp(min=1)
            torch.testing.assert_close(grad / scale, other / scale, **CLOSE)


def test_measures_are_those_of_single_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = family_model("llama"), pair_rows()
    ours = measured_token_logps(model, PairCollator(0, shared_prefix=True)(grouped(rows)))
    for found, expected in zip(ours, measured_token_logps(model, PairCollator(0).apart(rows)), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("shared", [True, False])
def test_each_prompt_and_each_distinct_completion_is_read_once(shared: bool) -> None:
    rows = grouped(pair_rows())
    collate = PairCollator(0, shared_prefix=shared)
    batch = collate(rows)
    of_prompt: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for row in rows:
        own = of_prompt.setdefault(tuple(row["prompt_ids"]), set())
        own |= {tuple(row["chosen_ids"]), tuple(row["rejected_ids"])}
    expected = sum(
        len(prompt) * (1 if shared else len(own)) + sum(map(len, own)) for prompt, own in of_prompt.items()
    )
    assert int(batch["attention_mask"].sum()) == collate.num_read(rows) == expected
    assert batch["input_ids"].numel() == collate.num_tokens(rows)
    assert len(batch["distinct"]) == sum(map(len, of_prompt.values()))
    assert batch["targets"].shape[0] == 2 * len(rows)


def test_a_completion_does_not_see_the_others() -> None:
    """Other tokens in one completion change no state of the prompt or of another completion."""
    model = family_model("llama")
    rows = [{"prompt_ids": ids(5, seed=1), "completion_ids": ids(4, seed=n)} for n in (2, 3, 4)]
    collate = CompletionCollator(0, shared_prefix=True)
    batch = collate(grouped(rows))
    changed = collate(grouped([rows[0], rows[1] | {"completion_ids": ids(4, seed=9)}, rows[2]]))
    with torch.no_grad():
        before, after = (hidden_states(model, one)[0] for one in (batch, changed))
    own = batch["segments"][0] == 2
    assert own.sum() == 4
    assert torch.equal(before[~own], after[~own])
    assert not torch.equal(before[own], after[own])
