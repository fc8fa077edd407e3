"""Losses of preference pairs, each a plain function: PairSums [B], beta and settings of its own -> losses [B].

What a loss takes says what it needs: one of `PairLogps` is trained without a reference. A keyword `delta` is no
setting: the trainer gives it the mean of all rewards of the steps before, chosen and rejected alike.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from allo.core import losses
from allo.errors import UserError

Settings = Mapping[str, float | bool]
PairLoss = Callable[..., Tensor]


@dataclass(frozen=True)
class PairLogps:
    """What the policy says of B pairs: summed log-probs, fp32 [B], and completion tokens (EOS too), int64 [B]."""

    chosen_logps: Tensor
    rejected_logps: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    def mean_rewards(self, *, beta: float) -> tuple[Tensor, Tensor]:
        """beta times each completion's mean log-prob (SimPO, eq. 4)."""
        chosen, rejected = (
            self.chosen_logps / self.chosen_lengths,
            self.rejected_logps / self.rejected_lengths,
        )
        return beta * chosen, beta * rejected


@dataclass(frozen=True)
class PairSums(PairLogps):
    """And beside the reference: summed log-ratios Delta, fp32 [B].

    The rejected ones are over the tokens that the filter keeps (method.md 1.3); log-probs and lengths are
    those of whole completions.
    """

    chosen_logratios: Tensor
    rejected_logratios: Tensor

    def rewards(self, *, beta: float) -> tuple[Tensor, Tensor]:
        """beta Delta of each completion (DPO, eq. 5)."""
        return beta * self.chosen_logratios, beta * self.rejected_logratios


def dpo(pairs: PairSums, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO (arXiv 2305.18290, eq. 7), as `losses.dpo`."""
    if not 0 <= label_smoothing < 0.5:
        raise UserError(f"label_smoothing is {label_smoothing}: it must be at least 0 and below 0.5.")
    return losses.dpo(
        pairs.chosen_logratios, pairs.rejected_logratios, beta=beta, label_smoothing=label_smoothing
    )


def r_dpo(pairs: PairSums, *, beta: float, alpha: float = 0.05) -> Tensor:
    """DPO of a reward that costs alpha a token (R-DPO, arXiv 2403.19159).

        -log sigmoid(beta (Delta_c - Delta_r) + alpha (length_c - length_r))

    The best policy for reward - alpha * length has reward = beta * log-ratio + alpha * length + const: of a
    chosen answer, length explains a part already. The paper's alpha depends on the data; 0.05 is the least of
    those that the SimPO paper tries.
    """
    margin = beta * (pairs.chosen_logratios - pairs.rejected_logratios)
    return -logsigmoid(margin + alpha * (pairs.chosen_lengths - pairs.rejected_lengths))


def ipo(pairs: PairSums, *, beta: float, length_average: bool = True) -> Tensor:
    """IPO (arXiv 2310.12036, eq. 17; beta is its tau): (h - 1 / (2 beta))^2.

    h is the difference of the log-ratios' means over the completions' tokens, as its authors ran it, or of
    their sums, as the paper writes it.
    """
    chosen, rejected = pairs.chosen_logratios, pairs.rejected_logratios
    if length_average:
        chosen, rejected = chosen / pairs.chosen_lengths, rejected / pairs.rejected_lengths
    return (chosen - rejected - 1 / (2 * beta)).square()


def bco(pairs: PairSums, *, beta: float, delta: float) -> Tensor:
    """BCO (arXiv 2404.04656): a classifier of single completions by their reward r = beta Delta.

        -log sigmoid(r_c - delta) - log sigmoid(-(r_r - delta))

    `delta` is the mean of the two mean rewards, so that neither side's classes are all on one side.
    """
    chosen, rejected = pairs.rewards(beta=beta)
    return -logsigmoid(chosen - delta) - logsigmoid(delta - rejected)


def simpo(pairs: PairLogps, *, beta: float, gamma: float = 1.0) -> Tensor:
    """SimPO (arXiv 2405.14734, eq. 6): mean log-probs, a target margin gamma, no reference.

        -log sigmoid(beta / length_c log pi(c) - beta / length_r log pi(r) - gamma)

    The paper takes beta 2.0 to 2.5 and gamma 0.3 to 1.6.
    """
    chosen, rejected = pairs.mean_rewards(beta=beta)
    return -logsigmoid(chosen - rejected - gamma)


PAIR_LOSSES: dict[str, PairLoss] = {"dpo": dpo, "r_dpo": r_dpo, "ipo": ipo, "bco": bco, "simpo": simpo}


@dataclass
class RunningMean:
    """The mean of all that was added; 0 before."""

    total: float = 0.0
    count: float = 0.0

    def add(self, total: float, count: float) -> None:
        self.total, self.count = self.total + total, self.count + count

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0


def compares(loss: PairLoss) -> bool:
    """Whether a loss needs a reference."""
    first = next(iter(inspect.signature(loss).parameters.values()), None)
    return first is None or first.annotation not in (PairLogps, PairLogps.__name__)


def takes_delta(loss: PairLoss) -> bool:
    """Whether a loss reads the mean of the rewards so far."""
    return "delta" in inspect.signature(loss).parameters


def chosen_loss(loss: str | PairLoss, settings: Settings, *, keep: float) -> PairLoss:
    """The loss of that name, or the function itself, tried on two pairs.

    Raises `UserError` beginning with `loss`, `loss_settings` or `keep` for an unknown name, for settings that
    it does not take, for a share of tokens to keep where there is no log-ratio to keep them by, and where it
    does not give one loss a pair.
    """
    if isinstance(loss, str):
        if loss not in PAIR_LOSSES:
            raise UserError(f"loss: {loss!r} is none of {', '.join(PAIR_LOSSES)}.")
        loss = PAIR_LOSSES[loss]
    _check_settings(loss, settings)
    if keep < 1 and not compares(loss):
        raise UserError(
            f"keep: {_name(loss)} has no reference, and tokens are kept by their log-ratios: set keep to 1.0."
        )
    _try(loss, settings)
    return loss


def _check_settings(loss: PairLoss, settings: Settings) -> None:
    own = {
        each.name: each.default
        for each in list(inspect.signature(loss).parameters.values())[1:]
        if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD) and each.name not in ("beta", "delta")
    }
    for name, value in settings.items():
        if name not in own:
            allowed = f"its settings are {', '.join(own)}" if own else "it has no settings: remove the key"
            raise UserError(f"loss_settings.{name}: {_name(loss)} takes no such setting; {allowed}.")
        is_flag = isinstance(own[name], bool)
        if isinstance(own[name], bool | int | float) and is_flag != isinstance(value, bool):
            wanted = "true or false" if is_flag else "a number"
            raise UserError(f"loss_settings.{name}: must be {wanted}; found {json.dumps(value)}.")
    missing = [name for name, default in own.items() if default is Parameter.empty and name not in settings]
    if missing:
        raise UserError(f"loss_settings.{missing[0]}: {_name(loss)} has no default for it: set it.")


def _try(loss: PairLoss, settings: Settings) -> None:
    logps, lengths = torch.tensor([-3.0, -5.0]), torch.tensor([2, 4])
    pairs = PairSums(
        chosen_logps=logps,
        rejected_logps=logps.flip(0),
        chosen_lengths=lengths,
        rejected_lengths=lengths.flip(0),
        chosen_logratios=torch.zeros(2),
        rejected_logratios=torch.zeros(2),
    )
    given = {"delta": 0.0, **settings} if takes_delta(loss) else settings
    try:
        found = loss(pairs, beta=0.1, **given)
    except UserError as error:
        raise UserError(f"loss_settings.{error}") from error
    except Exception as error:
        raise UserError(f"loss: {_name(loss)} fails: {type(error).__name__}: {error}") from error
    if not isinstance(found, Tensor) or found.shape != (2,):
        kind = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else f"{found!r}"
        raise UserError(f"loss: {_name(loss)} must give one loss a pair, [B]: of two pairs it gave {kind}.")


def _name(loss: PairLoss) -> str:
    return getattr(loss, "__name__", repr(loss))
