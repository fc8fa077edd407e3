"""Preference losses, unreduced, and the one reduction that every stage uses.

`logratios` are rho_t = log pi(y_t) - log pi_ref(y_t), fp32, 0 outside the completion.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def nll(logps: Tensor) -> Tensor:
    """Return the negative log-likelihood of each token: [...] -> [...]."""
    return -logps


def npo(logratios: Tensor, *, beta: float) -> Tensor:
    """Return NPO of each token, -log sigmoid(-beta * rho_t): [B, T] -> [B, T].

    See method.md 1.2, and arXiv 2404.05868, eq. 3. As beta vanishes, its gradient tends to beta/2 times that of gradient
    ascent on the negative log-likelihood.
    """
    return -logsigmoid(-beta * logratios)


def unlikelihood(logps: Tensor) -> Tensor:
    """Return -log(1 - pi(y_t)) of each token (arXiv 1908.04319, eq. 4): [...] -> [...]. It needs no reference.

    Its slope on the token's logit is pi(y_t), so it presses only on tokens that the model believes. NPO presses hardest
    on tokens that are unlikely already. Tokens within 1e-6 of certainty have no slope.
    """
    return -torch.log(-torch.expm1(logps.clamp(max=-_CERTAIN)))


def npo_sequence(logratios: Tensor, *, beta: float) -> Tensor:
    """Return NPO of whole completions from summed log-ratios (arXiv 2404.05868, eq. 3): [B] -> [B].

    As beta vanishes, its gradient tends to that of gradient ascent on the negative log-likelihood.
    """
    return (2 / beta) * npo(logratios, beta=beta)


def dpo_of_logratios(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """Return DPO of each pair from summed log-ratios (arXiv 2305.18290, eq. 7): [B], [B] -> [B].

    `label_smoothing` is the share of pairs whose labels are assumed to be the wrong way round.
    """
    margin = beta * (chosen_logratios - rejected_logratios)
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def keep_lowest(logratios: Tensor, completion_mask: Tensor, *, keep: float) -> Tensor:
    """Return ALLO's filter m_t: the ceil(keep * length) completion tokens of lowest log-ratio (method.md 1.3).

    `logratios` [B, T] fp32 and `completion_mask` [B, T] bool -> [B, T] bool, without gradient. Tokens that tie with the
    last one kept are kept too, so all are kept while policy and reference are equal.
    """
    logratios = logratios.detach().masked_fill(~completion_mask, torch.inf)
    lengths = completion_mask.sum(-1)
    kept = torch.ceil(keep * lengths.double() - _ROUNDING).long().clamp(min=1)
    last = logratios.sort(-1).values.gather(-1, (kept - 1).unsqueeze(-1))
    return (logratios <= last) & completion_mask


def reduce(losses: Tensor, weights: Tensor, *, denominator: Tensor | float) -> Tensor:
    """Return the weighted sum over a given denominator, a scalar.

    The denominator counts the whole optimizer step (all micro-batches and ranks), so neither accumulation nor padding
    changes the loss. Entries of zero weight have zero gradient, whatever their loss.
    """
    return torch.where(weights != 0, losses * weights, 0.0).sum() / denominator


_CERTAIN = 1e-6
# 55% of 100 tokens are 55, although 0.55 * 100 is 55.00000000000001 in floating point.
_ROUNDING = 1e-9
