"""Losses of wrong completions: TokenLogratios [B, T] and beta -> losses of tokens [B, T] or of completions [B].

`@forgetting_loss(...)` says what a loss needs (`losses/needs.py`). The trainer weighs the losses of tokens by
`token_weights`, and divides by the number of tokens with a weight; of completions it takes the mean.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from allo.losses import token_losses as losses
from allo.losses.needs import forgetting_loss


@dataclass(frozen=True)
class TokenLogps:
    """The policy's log-probs of each token, fp32 [B, T], and the tokens' weights [B, T]; 0 outside the completion."""

    logps: Tensor
    weights: Tensor


@dataclass(frozen=True)
class TokenLogratios(TokenLogps):
    """The same, and log-ratios to the reference: rho_t, fp32 [B, T], 0 outside the completion."""

    logratios: Tensor


def token_npo(tokens: TokenLogratios, *, beta: float) -> Tensor:
    """Return NPO of each token."""
    return losses.npo(tokens.logratios, beta=beta)


@forgetting_loss(gives_completions=True)
def sequence_npo(tokens: TokenLogratios, *, beta: float) -> Tensor:
    """Return NPO of each completion, from the weighted sum of its log-ratios."""
    weights = tokens.weights
    sums = torch.where(weights != 0, weights * tokens.logratios, 0.0).sum(-1)
    return losses.npo_sequence(sums, beta=beta)


@forgetting_loss(needs_reference=False, gives_completions=True)
def simnpo(tokens: TokenLogps, *, beta: float) -> Tensor:
    """Return SimNPO of each completion (arXiv 2410.07163), its margin gamma at 0.

        -(2 / beta) log sigmoid(-beta m), with m = sum_t w_t log pi(y_t) / sum_t 1[w_t != 0]

    m is the weighted tokens' mean log-prob. If no token has a weight, the loss is constant.
    As beta vanishes, its gradient tends to that of gradient ascent on this mean.
    """
    weights = tokens.weights
    sums = torch.where(weights != 0, weights * tokens.logps, 0.0).sum(-1)
    return losses.npo_sequence(sums / (weights != 0).sum(-1).clamp(min=1), beta=beta)


@forgetting_loss(needs_reference=False)
def token_unlikelihood(tokens: TokenLogps, *, beta: float) -> Tensor:
    """Return the unlikelihood of each token, which has no beta."""
    return losses.unlikelihood(tokens.logps)
