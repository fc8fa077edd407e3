"""Scoring reads a prompt once for all its wrong completions of a batch, and gives the scores of each alone."""

import pytest
import torch
from transformers import PreTrainedModel

import allo
from allo.files.records import Pair
from allo.models.collate import lay_out_together, pad
from allo.models.policy import per_token_logps
from allo.stages.likelihood import likelihood
from allo.tokens import scorers
from tiny import TOKENIZER, model, text
from tiny_families import family_model, ids

PROMPTS = ["Problem:" + text(number, 5 + 4 * number) + "?" for number in range(3)]
ROWS = [
    {"prompt": PROMPTS[number % 3], "completion": text(50 + number // 2, 1 + (5 * number) % 7)}
    for number in range(12)
]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of tokens of the batches that scorers read."""
    sizes: list[int] = []
    original = scorers.per_token_logps

    def counted(policy: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        sizes.append(int(batch["attention_mask"].sum()))
        return original(policy, batch)

    monkeypatch.setattr(scorers, "per_token_logps", counted)
    return sizes


def test_prompts_are_read_once_and_scores_are_those_of_each_row_alone(read: list[int]) -> None:
    policy = model()
    together = allo.score(policy, ROWS, processing_class=TOKENIZER, scorer="confidence")
    (num_together,) = read
    alone = [allo.score(policy, [row], processing_class=TOKENIZER, scorer="confidence")[0] for row in ROWS]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-6)
    assert num_together < 0.7 * sum(read[1:])


@pytest.mark.parametrize("shared", [True, False])
def test_few_tokens_are_read_and_no_row_is_longer_than_its_bound(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allo.models.collate._LONGEST", 24)
    policy = family_model("llama")
    rows = [(ids(6, seed=n % 2), ids(3 + n % 4, seed=100 + n // 4)) for n in range(16)]
    batch = lay_out_together(rows, pad_id=0, shared=shared)
    apart = pad(rows, pad_id=0)
    torch.testing.assert_close(
        per_token_logps(policy, batch), per_token_logps(policy, apart), rtol=0, atol=1e-5
    )
    assert batch["input_ids"].shape[1] <= 24
    assert batch["input_ids"].numel() < (0.6 if shared else 1.01) * apart["input_ids"].numel()


def test_a_long_group_beside_short_rows_is_not_padded_for() -> None:
    """One row with ten completions beside nine with one would be mostly padding."""
    rows = [(ids(2, seed=0), ids(10, seed=n)) for n in range(1, 11)]
    rows += [(ids(2, seed=n), ids(10, seed=n)) for n in range(11, 20)]
    batch = lay_out_together(rows, pad_id=0, shared=True)
    assert batch["input_ids"].numel() <= pad(rows, pad_id=0)["input_ids"].numel()


def test_the_likelihood_of_pairs_of_a_prompt_is_that_of_each_alone() -> None:
    policy = model()
    before = {name: param.detach().clone() for name, param in policy.named_parameters()}
    for param in policy.parameters():
        param.data += 0.05 * torch.randn(param.shape, generator=torch.Generator().manual_seed(0))

    class AtStart:
        def __enter__(self) -> None:
            self.own = {name: param.detach().clone() for name, param in policy.named_parameters()}
            policy.load_state_dict(before, strict=False)

        def __exit__(self, *_: object) -> None:
            policy.load_state_dict(self.own, strict=False)

    pairs = [
        Pair(f"p{n % 2}", PROMPTS[n % 2], text(10 + n // 4, 4), text(20 + n, 1 + n % 5)) for n in range(8)
    ]
    found = [likelihood(pairs, policy, TOKENIZER, AtStart, max_length=64, size=size) for size in (16, 2)]
    for side in ("chosen", "rejected"):
        assert found[0][side] == pytest.approx(found[1][side], abs=1e-5)
        assert abs(found[0][side]) > 1e-3
