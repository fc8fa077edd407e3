"""Decorators by which a loss declares the inputs that it needs and the form of its losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

LossFunction = Callable[..., Tensor]
Loss = TypeVar("Loss", bound=LossFunction)


@dataclass(frozen=True)
class Needs:
    """The declaration of a loss. A function without a decorator has these defaults.

    `reference`: it gets log-ratios beside log-probs; otherwise no reference is computed.
    `reward_mean`: a loss of pairs or of labelled completions gets the keyword `delta`. It lies midway between the mean
    rewards of good and of bad completions over the steps before.
    `kl`: a loss of labelled completions gets the keyword `kl`. It is the mean log-ratio of the step's completions, each
    after the prompt of another row, and at least 0.
    `completions`: a forgetting loss gives one number a completion, [B], not one a token.
    """

    reference: bool = True
    reward_mean: bool = False
    kl: bool = False
    completions: bool = False


def pair_loss(*, needs_reference: bool = True, needs_reward_mean: bool = False) -> Callable[[Loss], Loss]:
    """Mark a function as a loss of pairs with these needs."""
    return _marker(Needs(needs_reference, needs_reward_mean))


def feedback_loss(*, needs_kl: bool = False, needs_reward_mean: bool = False) -> Callable[[Loss], Loss]:
    """Mark a function as a loss of labelled completions with these needs."""
    return _marker(Needs(kl=needs_kl, reward_mean=needs_reward_mean))


def forgetting_loss(
    *, needs_reference: bool = True, gives_completions: bool = False
) -> Callable[[Loss], Loss]:
    """Mark a function as a forgetting loss with these needs."""
    return _marker(Needs(needs_reference, completions=gives_completions))


def needs_of(loss: LossFunction) -> Needs:
    """Return what a loss says that it needs."""
    found = getattr(loss, "needs", None)
    return found if isinstance(found, Needs) else Needs()


def _marker(needs: Needs) -> Callable[[Loss], Loss]:
    def mark(loss: Loss) -> Loss:
        vars(loss)["needs"] = needs
        return loss

    return mark
