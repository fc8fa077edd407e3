"""Preference losses, unreduced, and the one reduction that every stage uses.

`logratios` are rho_t = log pi(y_t) - log pi_ref(y_t), fp32, 0 outside the completion.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def nll(logps: Tensor) -> Tensor:
    """Negative log-likelihood of each token: [...] -> [...]."""
    return -logps


def npo(logratios: Tensor, *, beta: float) -> Tensor:
    """Token-level NPO: -log sigmoid(-beta * rho_t) (method.md 1.2; NPO, arXiv 2404.05868, eq. 3).

    [B, T] -> [B, T]. As beta vanishes its gradient tends to beta/2 times that of gradient ascent on
    the negative log-likelihood.
    """
    return -logsigmoid(-beta * logratios)


def unlikelihood(logps: Tensor) -> Tensor:
    """-log(1 - pi(y_t)) of each token (arXiv 1908.04319, eq. 4): [...] -> [...]. It needs no reference.

    On the token's logit its slope is pi(y_t): it takes away what the model believes, and nothing more, where NPO's
    presses hardest on what is unlikely already. Tokens within 1e-6 of certainty have no slope.
    """
    return -torch.log(-torch.expm1(logps.clamp(max=-_CERTAIN)))


def npo_sequence(logratios: Tensor, *, beta: float) -> Tensor:
    """NPO of whole completions from summed log-ratios (arXiv 2404.05868, eq. 3): [B] -> [B].

    As beta vanishes its gradient tends to that of gradient ascent on the negative log-likelihood.
    """
    return (2 / beta) * npo(logratios, beta=beta)


def dpo_of_logratios(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """DPO of each pair from summed log-ratios (arXiv 2305.18290, eq. 7): [B], [B] -> [B].

    `label_smoothing` is the share of pairs taken to be labelled the wrong way round.
    """
    margin = beta * (chosen_logratios - rejected_logratios)
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def keep_lowest(logratios: Tensor, completion_mask: Tensor, *, keep: float) -> Tensor:
    """ALLO's filter m_t: the ceil(keep * length) completion tokens of lowest log-ratio (method.md 1.3).

    `logratios` [B, T] fp32 and `completion_mask` [B, T] bool -> [B, T] bool, without gradient. Tokens
    that tie with the last one kept are kept, so all are while policy and reference are equal.
    """
    logratios = logratios.detach().masked_fill(~completion_mask, torch.inf)
    lengths = completion_mask.sum(-1)
    kept = torch.ceil(keep * lengths.double() - _ROUNDING).long().clamp(min=1)
    last = logratios.sort(-1).values.gather(-1, (kept - 1).unsqueeze(-1))
    return (logratios <= last) & completion_mask


def reduce(losses: Tensor, weights: Tensor, *, denominator: Tensor | float) -> Tensor:
    """Weighted sum over a given denominator -> scalar.

    The denominator is that of the whole optimizer step (all micro-batches and ranks), so that neither
    accumulation nor padding changes the loss. Entries of zero weight have zero gradient, whatever
    their loss.
    """
    return torch.where(weights != 0, losses * weights, 0.0).sum() / denominator


_CERTAIN = 1e-6
# 55% of 100 tokens are 55, although 0.55 * 100 is 55.00000000000001 in floating point.
_ROUNDING = 1e-9
