"""Log-probs, and losses of single tokens and of preference pairs. The names here are those that an own loss is written with."""

from typing import TYPE_CHECKING

from allo.lazy import names_of

if TYPE_CHECKING:
    from allo.losses.pair_losses import PairLogps, PairLoss, PairSums, pair_loss

__all__ = ["PairLogps", "PairLoss", "PairSums", "pair_loss"]

__getattr__, __dir__ = names_of(
    __name__,
    {
        "PairLogps": "allo.losses.pair_losses:PairLogps",
        "PairLoss": "allo.losses.pair_losses:PairLoss",
        "PairSums": "allo.losses.pair_losses:PairSums",
        "pair_loss": "allo.losses.pair_losses:pair_loss",
    },
)
