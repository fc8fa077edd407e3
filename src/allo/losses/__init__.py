"""Log-probs and losses as plain functions, with one reduction. The names here are those that an own loss is written with."""

from typing import TYPE_CHECKING

from allo.lazy import names_of

if TYPE_CHECKING:
    from allo.losses.feedback_losses import AnswerSums
    from allo.losses.forgetting_losses import TokenLogps
    from allo.losses.needs import LossFunction, feedback_loss, forgetting_loss, pair_loss
    from allo.losses.pair_losses import PairLogps, PairSums

__all__ = [
    "AnswerSums",
    "LossFunction",
    "PairLogps",
    "PairSums",
    "TokenLogps",
    "feedback_loss",
    "forgetting_loss",
    "pair_loss",
]

__getattr__, __dir__ = names_of(
    __name__,
    {
        "AnswerSums": "allo.losses.feedback_losses:AnswerSums",
        "LossFunction": "allo.losses.needs:LossFunction",
        "PairLogps": "allo.losses.pair_losses:PairLogps",
        "PairSums": "allo.losses.pair_losses:PairSums",
        "TokenLogps": "allo.losses.forgetting_losses:TokenLogps",
        "feedback_loss": "allo.losses.needs:feedback_loss",
        "forgetting_loss": "allo.losses.needs:forgetting_loss",
        "pair_loss": "allo.losses.needs:pair_loss",
    },
)
