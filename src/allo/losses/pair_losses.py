"""Losses of preference pairs, each a plain function: PairSums [B], beta and settings of its own -> losses [B].

`@pair_loss(...)` says what a loss needs. Without it a loss gets a reference, and every keyword but `beta` is a
setting, whatever its name.
"""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from allo.errors import UserError
from allo.losses import token_losses as losses

Settings = Mapping[str, float | bool]
PairLoss = Callable[..., Tensor]
Loss = TypeVar("Loss", bound=PairLoss)


@dataclass(frozen=True)
class Needs:
    """Inputs of a loss beside the policy's log-probs.

    `reference`: the log-ratios to the reference; without it the loss gets `PairLogps`, and no reference is computed.
    `reward_mean`: the mean of all rewards of the steps before, chosen and rejected alike, as the keyword `delta`.
    """

    reference: bool = True
    reward_mean: bool = False


def pair_loss(*, needs_reference: bool = True, needs_reward_mean: bool = False) -> Callable[[Loss], Loss]:
    """Mark a function as a loss of pairs with these needs."""

    def mark(loss: Loss) -> Loss:
        vars(loss)["needs"] = Needs(needs_reference, needs_reward_mean)
        return loss

    return mark


def needs(loss: PairLoss) -> Needs:
    """Return what a loss says it needs; a plain function needs a reference alone."""
    found = getattr(loss, "needs", None)
    return found if isinstance(found, Needs) else Needs()


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


@pair_loss(needs_reward_mean=True)
def bco(pairs: PairSums, *, beta: float, delta: float) -> Tensor:
    """BCO (arXiv 2404.04656): a classifier of single completions by their reward r = beta Delta.

        -log sigmoid(r_c - delta) - log sigmoid(-(r_r - delta))

    `delta` is the mean of the two mean rewards, so that neither side's classes are all on one side.
    """
    chosen, rejected = pairs.rewards(beta=beta)
    return -logsigmoid(chosen - delta) - logsigmoid(delta - rejected)


@pair_loss(needs_reference=False)
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


def chosen_loss(loss: str | PairLoss, settings: Settings, *, keep: float) -> PairLoss:
    """Return the loss of that name, or the function itself, tried on a few pairs.

    Raises `UserError` beginning with `loss`, `loss_settings` or `keep` for an unknown name, for settings that
    it does not take, for a share of tokens to keep where there is no log-ratio to keep them by, and where it
    does not give each pair a finite loss with a gradient.
    """
    if isinstance(loss, str):
        if loss not in PAIR_LOSSES:
            raise UserError(f"loss: {loss!r} is none of {', '.join(PAIR_LOSSES)}.")
        loss = PAIR_LOSSES[loss]
    if not callable(loss):
        raise UserError(f"loss: {loss!r} is neither a name nor a function.")
    _check_settings(loss, settings)
    if keep < 1 and not needs(loss).reference:
        raise UserError(
            f"keep: {loss_name(loss)} has no reference, and tokens are kept by their log-ratios: set keep to 1.0."
        )
    for num_pairs in (2, 1, 3):
        _try(loss, settings, keep=keep, num_pairs=num_pairs)
    return loss


def losses_of(
    loss: PairLoss, pairs: PairLogps, *, beta: float, reward_mean: float, settings: Settings
) -> Tensor:
    """Return the loss of each pair, [B].

    Raises `UserError` naming the function where it raises, or gives anything but one number a pair.
    """
    given = {"delta": reward_mean, **settings} if needs(loss).reward_mean else settings
    num_pairs = len(pairs.chosen_logps)
    try:
        found = loss(pairs, beta=beta, **given)
    except UserError as error:
        raise UserError(f"loss_settings.{error}") from error
    except Exception as error:
        raise UserError(f"loss: {loss_name(loss)} fails: {type(error).__name__}: {error}") from error
    if not isinstance(found, Tensor) or found.shape != (num_pairs,) or not found.is_floating_point():
        count = {1: "one pair", 2: "two pairs"}.get(num_pairs, f"{num_pairs} pairs")
        kind = (
            f"a tensor of shape {list(found.shape)} and {found.dtype}"
            if isinstance(found, Tensor)
            else repr(found)
        )
        raise UserError(f"loss: {loss_name(loss)} must give one loss a pair, [B]: of {count} it gave {kind}.")
    return found


def _check_settings(loss: PairLoss, settings: Settings) -> None:
    given = ("beta", "delta") if needs(loss).reward_mean else ("beta",)
    try:
        parameters = list(inspect.signature(loss).parameters.values())
    except ValueError as error:
        raise UserError(f"loss: {loss_name(loss)} has no signature to read its settings from.") from error
    own = {
        each.name: each.default
        for each in parameters[1:]
        if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD) and each.name not in given
    }
    for name, value in settings.items():
        if name not in own:
            allowed = f"its settings are {', '.join(own)}" if own else "it has no settings: remove the key"
            raise UserError(f"loss_settings.{name}: {loss_name(loss)} takes no such setting; {allowed}.")
        is_flag = isinstance(own[name], bool)
        if isinstance(own[name], bool | int | float) and is_flag != isinstance(value, bool):
            wanted = "true or false" if is_flag else "a number"
            raise UserError(f"loss_settings.{name}: must be {wanted}; found {json.dumps(value)}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"loss_settings.{name}: must be a finite number; found {value}.")
    missing = [name for name, default in own.items() if default is Parameter.empty and name not in settings]
    if missing:
        raise UserError(f"loss_settings.{missing[0]}: {loss_name(loss)} has no default for it: set it.")


def _try(loss: PairLoss, settings: Settings, *, keep: float, num_pairs: int) -> None:
    """Hold a loss to its promises at the start of training, where all log-ratios are 0."""
    logps, lengths = torch.tensor([-3.0, -5.0, -4.0]), torch.tensor([2, 4, 3])
    columns = {
        "chosen_logps": logps,
        "rejected_logps": logps.flip(0),
        "chosen_logratios": torch.zeros(3),
        "rejected_logratios": torch.zeros(3),
    }
    columns = {name: column[:num_pairs].clone().requires_grad_() for name, column in columns.items()}
    logratios = [columns.pop(name) for name in ("chosen_logratios", "rejected_logratios")]
    alone = PairLogps(
        **columns, chosen_lengths=lengths[:num_pairs], rejected_lengths=lengths.flip(0)[:num_pairs]
    )
    pairs = PairSums(
        **vars(alone), **dict(zip(("chosen_logratios", "rejected_logratios"), logratios, strict=True))
    )
    given = pairs if needs(loss).reference else alone
    with torch.enable_grad():
        found = losses_of(loss, given, beta=0.1, reward_mean=0.0, settings=settings)
    if not found.isfinite().all():
        raise UserError(
            f"loss: {loss_name(loss)} gives {found.tolist()} where policy and reference are equal, as they are "
            "at the first step: make it finite there."
        )
    inputs = [*columns.values(), *logratios]
    grads = torch.autograd.grad(found.sum(), inputs, allow_unused=True) if found.requires_grad else ()
    if all(grad is None for grad in grads):
        raise UserError(
            f"loss: {loss_name(loss)} has no gradient: compute it from the tensors of `pairs`, without detach(), "
            "item() or numpy()."
        )
    if not all(grad.isfinite().all() for grad in grads if grad is not None):
        raise UserError(
            f"loss: {loss_name(loss)} has a gradient that is not finite where policy and reference are equal, as they "
            "are at the first step."
        )
    if keep < 1 and all(grad is None for grad in grads[len(columns) :]):
        raise UserError(
            f"keep: {loss_name(loss)} reads no log-ratio, so it would ignore the tokens that are kept: set keep to "
            "1.0, and mark the function with @pair_loss(needs_reference=False) to save the reference's passes."
        )


def loss_name(loss: PairLoss) -> str:
    """Return the name of one of ours, and `file.py:function` of a user's."""
    name = getattr(loss, "__name__", repr(loss))
    code = getattr(inspect.unwrap(loss), "__code__", None)
    if loss in PAIR_LOSSES.values() or code is None:
        return name
    return f"{Path(code.co_filename).name}:{name}"
