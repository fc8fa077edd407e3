"""Unlikelihood of wrong tokens, and the choice of a completion's first."""

import pytest
import torch

from allo.losses.token_losses import npo, unlikelihood
from allo.tokens.token_credit import first_marked

CLOSE = 1e-6
LOGITS = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0], dtype=torch.float64)


def test_it_is_what_it_says() -> None:
    logps = torch.tensor([0.1, 0.5, 0.9]).log()
    assert torch.allclose(unlikelihood(logps), -torch.log(torch.tensor([0.9, 0.5, 0.1])), atol=CLOSE)


@pytest.mark.invariant("Unlikelihood's slope on a token's logit is the token's probability.")
def test_its_slope_on_the_logit_is_the_probability() -> None:
    """With two tokens, NPO's slope is largest if the token is unlikely, and this one's if it is likely."""
    logits = LOGITS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(unlikelihood(torch.nn.functional.logsigmoid(logits)).sum(), logits)
    assert torch.allclose(slope, torch.sigmoid(LOGITS), atol=CLOSE)
    (npos,) = torch.autograd.grad(npo(torch.nn.functional.logsigmoid(logits), beta=1e-6).sum(), logits)
    assert (npos.diff() < 0).all() and (slope.diff() > 0).all()


def test_certainty_gives_a_finite_loss_and_no_slope() -> None:
    logps = torch.zeros(3, requires_grad=True)
    loss = unlikelihood(logps).sum()
    loss.backward()
    assert loss.isfinite() and torch.equal(logps.grad, torch.zeros(3))


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        ([0.0, 0.3, 0.0, 0.7], [0.0, 0.3, 0.0, 0.0]),
        ([0.5, 0.5], [0.5, 0.0]),
        ([0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_the_first_marked_token_keeps_its_weight(weights: list[float], kept: list[float]) -> None:
    assert first_marked(torch.tensor(weights)).tolist() == pytest.approx(kept)
