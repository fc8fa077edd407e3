"""Losses of labelled completions, each a plain function: AnswerSums [B], beta and settings of its own -> losses [B].

`@feedback_loss(...)` says what a loss needs (`losses/needs.py`). No completion needs another of its own prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from allo.losses.needs import feedback_loss


@dataclass(frozen=True)
class AnswerSums:
    """Sums over B completions under the policy.

    `good` bool [B]: the labels. `logps` and `logratios` fp32 [B], `lengths` int64 [B] with EOS. The log-ratio Delta of a
    bad completion is summed over the tokens that the filter keeps; the other sums are those of whole completions.
    """

    good: Tensor
    logps: Tensor
    lengths: Tensor
    logratios: Tensor

    def rewards(self, *, beta: float) -> Tensor:
        """Return beta Delta of each completion (DPO, eq. 5)."""
        return beta * self.logratios


@feedback_loss(needs_kl=True)
def kto(
    answers: AnswerSums,
    *,
    beta: float,
    kl: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Return KTO of each completion (arXiv 2402.01306, eq. 7), without its constant lambda_y.

        lambda_D (1 - sigmoid(beta (Delta - kl)))   if it is good
        lambda_U (1 - sigmoid(beta (kl - Delta)))   if it is bad

    `kl` is the paper's reference point z_0, the same for a whole step.
    """
    distances = beta * (answers.logratios - kl)
    found = torch.sigmoid(torch.where(answers.good, -distances, distances))
    return torch.where(answers.good, desirable_weight * found, undesirable_weight * found)


def classified(answers: AnswerSums, *, beta: float) -> Tensor:
    """Return BCO without its shift. At the start its gradient is DPO's, each completion by itself."""
    return bco(answers, beta=beta, delta=0.0)


@feedback_loss(needs_reward_mean=True)
def bco(answers: AnswerSums, *, beta: float, delta: float) -> Tensor:
    """Return BCO of each completion (arXiv 2404.04656), a classifier of completions by their reward r = beta Delta.

        -log sigmoid(r - delta) if it is good, -log sigmoid(delta - r) if it is bad

    `delta` lies midway between the mean rewards so far of good and of bad completions. docs/method.md compares it with
    TRL's, and says what was checked.
    """
    rewards = answers.rewards(beta=beta)
    return -logsigmoid(torch.where(answers.good, rewards - delta, delta - rewards))
