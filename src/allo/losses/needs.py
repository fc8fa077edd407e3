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
    `reward_mean`: a loss of pairs gets the keyword `delta`, the mean of all rewards of the steps before, chosen and
    rejected alike.
    `completions`: a forgetting loss gives one number a completion, [B], not one a token.
    """

    reference: bool = True
    reward_mean: bool = False
    completions: bool = False


def pair_loss(*, needs_reference: bool = True, needs_reward_mean: bool = False) -> Callable[[Loss], Loss]:
    """Mark a function as a loss of pairs with these needs."""
    return _marker(Needs(needs_reference, needs_reward_mean))


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
