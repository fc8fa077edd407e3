"""Criteria of importance: functions of one signature whose scores all go through the same exact selection.

A criterion takes a tensor's weights and one statistic of the same shape (`allo.recipe.criteria.Needs`). It returns
non-negative fp32 scores of that shape; the largest are selected first. Inputs may have any floating dtype.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from allo.errors import UserError
from allo.recipe.criteria import Criterion, Needs
from allo.recipe.own_code import function_of, own_file
from allo.weights.selection import stable_hash

Scoring = Callable[[Tensor, Tensor], Tensor]
Own = TypeVar("Own", bound=Scoring)

_LARGEST = torch.finfo(torch.float32).max
_LARGEST_BITS = 0x7F7FFFFF


def criterion(*, needs: Needs) -> Callable[[Own], Own]:
    """Mark your own function as a criterion of this statistic; an unmarked function gets gradients."""

    def mark(own: Own) -> Own:
        vars(own)["needs"] = needs
        return own

    return mark


def scoring_of(criterion: Criterion) -> Scoring:
    """Return a criterion's function; the user's own is tried on three weights.

    Raises `UserError` for the user's own if its scores are no scores, also when it is called. The selection checks the
    values of all criteria's scores.
    """
    function = function_of(criterion.function, key="locate.criterion")
    if own_file(criterion.function) is None:
        return function

    def checked(theta: Tensor, statistic: Tensor) -> Tensor:
        scores = function(theta, statistic)
        if not isinstance(scores, Tensor) or scores.shape != theta.shape or scores.dtype == torch.bool:
            found = f"shape {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise UserError(
                f"locate.criterion: {criterion.name} must return a tensor of numbers, one per weight "
                f"({list(theta.shape)}); it returned {found}."
            )
        return scores.detach().float()

    tried = checked(*_example(criterion.needs))
    if not bool((tried >= 0).all() & tried.isfinite().all()):
        raise UserError(
            f"locate.criterion: {criterion.name} returned a score that is negative or not finite; return finite "
            "scores from 0 on, larger for weights to select."
        )
    return checked


def _example(needs: Needs) -> tuple[Tensor, Tensor]:
    """Return three weights and their statistic."""
    theta, change = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 0.0, -1.0])
    if needs in ("weights", "layers", "hashes"):
        return theta, statistic_of(needs, "layers.0", theta, torch.arange(3), seed=0)
    return theta, change.square() if needs == "squared gradients" else change


def statistic_of(needs: Needs, name: str, theta: Tensor, indices: Tensor, *, seed: int) -> Tensor:
    """Return the statistic of a criterion that sees no data, for the entries at flat `indices` of tensor `name`."""
    match needs:
        case "layers":
            return torch.tensor(layer_of(name)).expand(theta.shape)
        case "hashes":
            return stable_hash(name, indices, seed=seed)
    assert needs == "weights", needs
    return theta


def delta(theta: Tensor, theta_tuned: Tensor) -> Tensor:
    """Return |theta' - theta| in fp32, largest where a short alignment run changed most (method 1.1)."""
    assert theta.shape == theta_tuned.shape
    return theta_tuned.to(torch.float32, copy=True).sub_(theta.float()).abs_()


def change(theta: Tensor, change: Tensor) -> Tensor:
    """Return |theta' - theta| of a training that keeps the change itself."""
    assert theta.shape == change.shape
    return change.float().abs()


def bottom(theta: Tensor, theta_tuned: Tensor) -> Tensor:
    """Score the least changed weights highest: finite, and strictly decreasing in `delta`.

    The fp32 bit patterns are mirrored: the largest finite one minus that of the delta. Distinct deltas so keep
    distinct scores, which 1 / delta or -delta + c would not do. An infinite delta scores as the largest finite one.
    """
    bits = delta(theta, theta_tuned).clamp_(max=_LARGEST).view(torch.int32)
    return (_LARGEST_BITS - bits).view(torch.float32)


def gradient(theta: Tensor, grad_sum: Tensor) -> Tensor:
    """Return |sum g|, the gradient accumulated over the data."""
    assert theta.shape == grad_sum.shape
    return grad_sum.float().abs()


def fisher(theta: Tensor, grad_square_sum: Tensor) -> Tensor:
    """Return sum g^2 over single pairs, the unnormalised diagonal of the empirical Fisher information."""
    assert theta.shape == grad_square_sum.shape
    return grad_square_sum.float()


def taylor(theta: Tensor, grad_sum: Tensor) -> Tensor:
    """Return |theta * sum g|, the first-order change of the loss if the weight were removed."""
    assert theta.shape == grad_sum.shape
    return (theta.float() * grad_sum.float()).abs_()


def magnitude(theta: Tensor, unused: Tensor) -> Tensor:
    """Return |theta|, a control that looks at no data."""
    return theta.float().abs()


def last(theta: Tensor, layers: Tensor) -> Tensor:
    """Return the place of a weight's layer (`layer_of`), a control that looks at depth alone."""
    assert theta.shape == layers.shape
    return layers.float()


def layer_of(name: str) -> int:
    """Return the first number in a tensor's name plus 1, or 0 outside of layers: 8 for `model.layers.7.mlp.weight`."""
    return next((int(part) + 1 for part in name.split(".") if part.isdecimal()), 0)


def random(theta: Tensor, hashes: Tensor) -> Tensor:
    """Return numbers uniform in [0, 1), a control; `hashes` is `selection.stable_hash` of each entry under a seed.

    The top 24 of the 32 hash bits fit fp32 exactly; the selection itself settles ties.
    """
    assert theta.shape == hashes.shape and hashes.dtype == torch.int64
    return (hashes >> 8).float() / (1 << 24)
