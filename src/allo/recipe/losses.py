"""The losses that a recipe may name: of pairs, labelled or right completions (`improve`), and of wrong ones (`forget`)."""

import math
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from allo.recipe.choice import OneOf
from allo.recipe.kinds import PAIRS, RIGHT, SOLUTIONS


@dataclass(frozen=True)
class PairLoss:
    """A loss of pairs. Its function (`module:function`) says what it needs: `allo.losses.needs`.

    `trl`: TRL's `loss_type` of the same formula. `sees`: kinds of training data that it learns from.
    """

    name: str
    function: str
    trl: str = ""
    sees: frozenset[str] = PAIRS


@dataclass(frozen=True)
class FeedbackLoss:
    """A loss of labelled completions (`data.feedback`). Its function says what it needs: `allo.losses.needs`.

    `trl`: the `loss_type` of TRL's `KTOTrainer` with the same formula.
    """

    name: str
    function: str
    trl: str = ""
    sees: frozenset[str] = PAIRS


@dataclass(frozen=True)
class AnswerLoss:
    """The likelihood of single answers, which its function gives: (recipe, run) -> rows."""

    name: str
    function: str
    sees: frozenset[str]


@dataclass(frozen=True)
class ForgettingLoss:
    """A loss of wrong completions. Its function says what it needs: `allo.losses.needs`."""

    name: str
    function: str


PAIR_LOSSES = {
    loss.name: loss
    for loss in (
        PairLoss("dpo", "allo.losses.pair_losses:dpo", trl="sigmoid"),
        PairLoss("ipo", "allo.losses.pair_losses:ipo", trl="ipo"),
        PairLoss("bco", "allo.losses.pair_losses:bco"),
        PairLoss("apo_zero", "allo.losses.pair_losses:apo_zero", trl="apo_zero"),
        PairLoss("simpo", "allo.losses.pair_losses:simpo"),
    )
}
FEEDBACK_LOSSES = {
    loss.name: loss
    for loss in (
        FeedbackLoss("kto", "allo.losses.feedback_losses:kto", trl="kto"),
        FeedbackLoss("bco", "allo.losses.feedback_losses:bco"),
    )
}
ANSWER_LOSSES = {
    loss.name: loss
    for loss in (
        AnswerLoss("sft", "allo.stages.right_answers:gold_solutions", sees=frozenset({SOLUTIONS})),
        AnswerLoss("rft", "allo.stages.right_answers:right_samples", sees=frozenset({RIGHT})),
    )
}
FORGETTING_LOSSES = {
    loss.name: loss
    for loss in (
        ForgettingLoss("token", "allo.losses.forgetting_losses:token_npo"),
        ForgettingLoss("sequence", "allo.losses.forgetting_losses:sequence_npo"),
        ForgettingLoss("simnpo", "allo.losses.forgetting_losses:simnpo"),
        ForgettingLoss("unlikelihood", "allo.losses.forgetting_losses:token_unlikelihood"),
    )
}
# Maps of a chain come in reverse: losses of pairs first.
_LOSSES: Mapping[str, PairLoss | FeedbackLoss | AnswerLoss] = ChainMap[str, Any](
    ANSWER_LOSSES, FEEDBACK_LOSSES, PAIR_LOSSES
)


def _number_or_flag(value: Any) -> Any:
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise ValueError("a loss's setting is a number, true or false")
    return value


LossName = Annotated[str, OneOf(_LOSSES, or_own=True)]
ForgettingLossName = Annotated[str, OneOf(FORGETTING_LOSSES, or_own=True)]
LossSettings = dict[str, Annotated[bool | float, BeforeValidator(_number_or_flag)]]
Filter = Literal["lowest", "highest", "random"]


def kinds_seen_by(loss: str) -> frozenset[str]:
    """Return the kinds of training data that `improve.loss` learns from; a user's own learns from pairs."""
    return _LOSSES[loss].sees if loss in _LOSSES else PAIRS


def check_answer_loss(loss: str, settings: Mapping[str, float | bool], *, keep: float, anchor: float) -> None:
    """Raise a `ValueError` for settings that a loss of single answers would ignore."""
    if loss not in ANSWER_LOSSES:
        return
    if settings:
        raise ValueError(f"loss {loss} has no settings: remove loss_settings.{min(settings)}")
    if keep < 1:
        raise ValueError(f"loss {loss} has no rejected answer to filter: set keep to 1.0")
    if anchor:
        raise ValueError(f"loss {loss} is a likelihood already: set anchor to 0")
