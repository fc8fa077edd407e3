"""Log-probs and losses as plain functions, with one reduction. The names here are those that an own loss is written with."""

from typing import TYPE_CHECKING

from allo.lazy import names_of

if TYPE_CHECKING:
    from allo.losses.forgetting_losses import TokenLogps
    from allo.losses.needs import LossFunction, forgetting_loss, pair_loss
    from allo.losses.pair_losses import PairLogps, PairSums

__all__ = ["LossFunction", "PairLogps", "PairSums", "TokenLogps", "forgetting_loss", "pair_loss"]

__getattr__, __dir__ = names_of(
    __name__,
    {
        "LossFunction": "allo.losses.needs:LossFunction",
        "PairLogps": "allo.losses.pair_losses:PairLogps",
        "PairSums": "allo.losses.pair_losses:PairSums",
        "TokenLogps": "allo.losses.forgetting_losses:TokenLogps",
        "forgetting_loss": "allo.losses.needs:forgetting_loss",
        "pair_loss": "allo.losses.needs:pair_loss",
    },
)
