"""Forgetting losses: their formulas, functions of the user's own, and what is refused of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from allo.errors import UserError
from allo.losses.forgetting_losses import TokenLogps, TokenLogratios, sequence_npo, simnpo, token_npo
from allo.losses.needs import forgetting_loss, needs_of
from allo.stages.settings import check_settings
from allo.training.chosen_losses import chosen_forgetting_loss
from allo.training.trainer import ForgetTrainer
from tiny import logged, trained, weights, wrongs
from tiny_run import tiny

ALONE = ("sft=null", "locate=null", "score.scorer=edit", "forget.density=1.0", "improve=null")
ROWS = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, 0.0]])
WEIGHTS = torch.tensor([[1.0, 0.0, 0.5], [1.0, 0.0, 0.0]])


def test_the_loss_of_a_completion_is_that_of_its_weighted_sum() -> None:
    tokens = TokenLogratios(-ROWS.abs(), WEIGHTS, ROWS)
    expected = (2 / 0.1) * torch.nn.functional.softplus(0.1 * torch.tensor([0.5 + 1.0, 1.0]))
    torch.testing.assert_close(sequence_npo(tokens, beta=0.1), expected)


def test_the_loss_of_a_token_knows_no_weight() -> None:
    tokens = TokenLogratios(-ROWS.abs(), WEIGHTS, ROWS)
    torch.testing.assert_close(token_npo(tokens, beta=0.1), torch.nn.functional.softplus(0.1 * ROWS))


def test_simnpo_reads_the_mean_log_prob_of_weighted_tokens() -> None:
    """A row of a half weight, one whose length differs, and one without a weight; FP64 throughout."""
    logps = torch.tensor([[-0.5, -9.0, -2.0], [-1.0, -3.0, 0.0], [-4.0, -4.0, -4.0]], dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    logps.requires_grad_()
    found = simnpo(TokenLogps(logps, weights), beta=2.5)
    means = torch.tensor([-0.75, -2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found.detach(), (2 / 2.5) * torch.log1p(torch.exp(2.5 * means)))
    (slope,) = torch.autograd.grad(found.sum(), logps)
    each = 2 * torch.sigmoid(2.5 * means) / torch.tensor([2.0, 2.0, 1.0])
    torch.testing.assert_close(
        slope, each[:, None] * weights
    )  # a likely answer is pressed harder, a long one less


def test_simnpo_trains_without_a_reference_and_forgets(tmp_path: Path) -> None:
    trainer = trained(
        ForgetTrainer, wrongs(), tmp_path, own={"loss": "simnpo", "beta": 2.5}, num_train_epochs=4
    )
    believed = logged(trainer, "probabilities/forgotten")
    assert believed[-1] < believed[0] and not trainer.needs_reference


# A user's own.


def ascent(tokens: TokenLogratios, *, beta: float) -> Tensor:
    return beta * tokens.logratios


@forgetting_loss(needs_reference=False)
def bare(tokens: TokenLogps, *, beta: float) -> Tensor:
    assert not isinstance(tokens, TokenLogratios)
    return tokens.logps.exp()


@forgetting_loss(gives_completions=True)
def whole(tokens: TokenLogratios, *, beta: float) -> Tensor:
    return (tokens.weights * tokens.logratios).sum(-1).exp()


@pytest.mark.parametrize("loss", [ascent, bare, whole])
def test_a_function_trains_and_its_tokens_are_forgotten(loss: Callable[..., Tensor], tmp_path: Path) -> None:
    trainer = trained(ForgetTrainer, wrongs(), tmp_path, own={"loss": loss}, num_train_epochs=4)
    believed = logged(trainer, "probabilities/forgotten")
    assert believed[-1] < believed[0]
    assert trainer.needs_reference == needs_of(loss).reference


def test_a_function_that_is_npo_trains_as_npo_does(tmp_path: Path) -> None:
    def mine(tokens: TokenLogratios, *, beta: float) -> Tensor:
        return -torch.nn.functional.logsigmoid(-beta * tokens.logratios)

    ours, own = (trained(ForgetTrainer, wrongs(), tmp_path, own={"loss": loss}) for loss in ("token", mine))
    assert logged(ours) == logged(own)
    assert all(torch.equal(param, weights(own.model)[name]) for name, param in weights(ours.model).items())


def mean(tokens: TokenLogratios, *, beta: float) -> Tensor:
    return tokens.logratios.mean()


def broken(tokens: TokenLogratios, *, beta: float) -> Tensor:
    return tokens.logratio


def cut_off(tokens: TokenLogratios, *, beta: float) -> Tensor:
    return tokens.logratios.detach()


def root(tokens: TokenLogratios, *, beta: float) -> Tensor:
    return tokens.logratios.abs().sqrt()


def quotient(tokens: TokenLogratios, *, beta: float) -> Tensor:
    return tokens.logratios / tokens.logratios


def needy(tokens: TokenLogratios, *, beta: float, width: float) -> Tensor:
    return width * tokens.logratios


@forgetting_loss(needs_reference=False)
def unfed(tokens: TokenLogps, *, beta: float) -> Tensor:
    return tokens.logratios  # type: ignore[attr-defined]


@forgetting_loss(gives_completions=True)
def of_tokens(tokens: TokenLogratios, *, beta: float) -> Tensor:
    return tokens.logratios


REFUSED: list[tuple[Any, str]] = [
    ("npo", "^loss: 'npo' is not one of token, sequence, simnpo, unlikelihood"),
    (3, "^loss: 3 is neither a name nor a function"),
    (
        mean,
        r"^loss: .*:mean must return one loss per token, \[B, T\]: of 2 x 4 tokens it returned .* shape \[\]",
    ),
    (
        of_tokens,
        r"^loss: .*:of_tokens must return one loss per completion, \[B\]: of 2 completions it returned",
    ),
    (broken, "^loss: .*:broken fails: AttributeError: .*logratio"),
    (needy, "^loss: .*:needy fails: TypeError: .*'width'"),
    (unfed, "^loss: .*:unfed fails: AttributeError"),
    (cut_off, "^loss: .*:cut_off has no gradient: compute it from the tensors of `tokens`"),
    (root, "^loss: .*:root has a gradient that is not finite"),
    (quotient, "^loss: .*:quotient gives .*nan.* when policy and reference are equal"),
]


@pytest.mark.parametrize(("loss", "words"), REFUSED)
def test_what_cannot_be_forgotten_by_is_refused(loss: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        chosen_forgetting_loss(loss)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such file"),
        ("def other(tokens, *, beta): return 1", "has no function 'mine'; it has other"),
        ("def mine(tokens, *, beta): return 1", r"mine\.py:mine must return one loss per token"),
        ("def mine(tokens, *, beta): return tokens.logits", "mine fails in line 1: AttributeError"),
        ("1 / 0", "fails to load in line 1: ZeroDivisionError"),
    ],
)
def test_a_recipes_own_is_tried_before_anything_runs(text: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text + "\n")
    with pytest.raises(UserError, match=rf"^forget\.loss.*{words}"):
        check_settings(tiny(tmp_path, *ALONE, f"forget.loss={file}:mine"))


@pytest.mark.parametrize("name", ["tokens", "dpo", "mine.py", "mine:f", ""])
def test_any_other_name_is_refused_with_those_that_there_are(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"forget\.loss: .*'token', 'sequence', 'simnpo' or 'unlikelihood'.*your own"
    ):
        tiny(tmp_path, *ALONE, f"forget.loss='{name}'")
