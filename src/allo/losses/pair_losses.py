"""Losses of preference pairs, each a plain function: PairSums [B], beta and settings of its own -> losses [B].

`@pair_loss(...)` says what a loss needs (`losses/needs.py`).
"""

from dataclasses import dataclass

from torch import Tensor, sigmoid
from torch.nn.functional import logsigmoid

from allo.errors import UserError
from allo.losses import token_losses as losses
from allo.losses.needs import pair_loss


@dataclass(frozen=True)
class PairLogps:
    """Sums over B pairs under the policy: log-probs, fp32 [B], and numbers of completion tokens with EOS, int64 [B]."""

    chosen_logps: Tensor
    rejected_logps: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    def mean_rewards(self, *, beta: float) -> tuple[Tensor, Tensor]:
        """Return beta times each completion's mean log-prob (SimPO, eq. 4)."""
        chosen, rejected = (
            self.chosen_logps / self.chosen_lengths,
            self.rejected_logps / self.rejected_lengths,
        )
        return beta * chosen, beta * rejected


@dataclass(frozen=True)
class PairSums(PairLogps):
    """The same sums, and summed log-ratios Delta to the reference, fp32 [B].

    Rejected log-ratios are summed over the tokens that the filter keeps (method.md 1.3); log-probs and lengths are
    those of whole completions.
    """

    chosen_logratios: Tensor
    rejected_logratios: Tensor

    def rewards(self, *, beta: float) -> tuple[Tensor, Tensor]:
        """Return beta Delta of each completion (DPO, eq. 5)."""
        return beta * self.chosen_logratios, beta * self.rejected_logratios


def dpo(pairs: PairSums, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return DPO of each pair (arXiv 2305.18290, eq. 7)."""
    if not 0 <= label_smoothing < 0.5:
        raise UserError(f"label_smoothing is {label_smoothing}: it must be at least 0 and below 0.5.")
    return losses.dpo_of_logratios(
        pairs.chosen_logratios, pairs.rejected_logratios, beta=beta, label_smoothing=label_smoothing
    )


def ipo(pairs: PairSums, *, beta: float, length_average: bool = True) -> Tensor:
    """Return IPO of each pair, (h - 1 / (2 beta))^2 (arXiv 2310.12036, eq. 17; beta is its tau).

    h is the difference of the completions' mean log-ratios, as the authors ran it. Without `length_average` it is the
    difference of the sums, as the paper writes it.
    """
    chosen, rejected = pairs.chosen_logratios, pairs.rejected_logratios
    if length_average:
        chosen, rejected = chosen / pairs.chosen_lengths, rejected / pairs.rejected_lengths
    return (chosen - rejected - 1 / (2 * beta)).square()


@pair_loss(needs_reward_mean=True)
def bco(pairs: PairSums, *, beta: float, delta: float) -> Tensor:
    """Return BCO of each pair (arXiv 2404.04656), which classifies single completions by their reward r = beta Delta.

        -log sigmoid(r_c - delta) - log sigmoid(-(r_r - delta))

    `delta` is the mean of all rewards so far, so that chosen and rejected rewards lie on different sides of it.
    """
    chosen, rejected = pairs.rewards(beta=beta)
    return -logsigmoid(chosen - delta) - logsigmoid(delta - rejected)


def apo_zero(pairs: PairSums, *, beta: float) -> Tensor:
    """Return APO-zero of each pair (arXiv 2408.06266, eq. 7), for chosen answers better than the model's own.

        1 - sigmoid(beta Delta_c) + sigmoid(beta Delta_r)

    Each side has a slope of its own, which vanishes once its answer has moved far from the reference.
    """
    chosen, rejected = pairs.rewards(beta=beta)
    return sigmoid(-chosen) + sigmoid(rejected)


@pair_loss(needs_reference=False)
def simpo(pairs: PairLogps, *, beta: float, gamma: float = 1.0) -> Tensor:
    """Return SimPO of each pair (arXiv 2405.14734, eq. 6): mean log-probs and a target margin gamma, no reference.

        -log sigmoid(beta / length_c log pi(c) - beta / length_r log pi(r) - gamma)

    The paper takes beta 2.0 to 2.5 and gamma 0.3 to 1.6.
    """
    chosen, rejected = pairs.mean_rewards(beta=beta)
    return -logsigmoid(chosen - rejected - gamma)


@dataclass
class RunningMean:
    """The mean of all values that were added; 0 before the first."""

    total: float = 0.0
    count: float = 0.0

    def add(self, total: float, count: float) -> None:
        self.total, self.count = self.total + total, self.count + count

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0
