"""R-DPO, DPO with a penalty of length: `improve: {loss: experiments/r_dpo.py:r_dpo}`."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from allo.losses import PairSums


def r_dpo(pairs: PairSums, *, beta: float, alpha: float = 0.05) -> Tensor:
    """Return DPO under a reward that costs alpha a token (R-DPO, arXiv 2403.19159).

        -log sigmoid(beta (Delta_c - Delta_r) + alpha (length_c - length_r))

    The best policy for reward - alpha * length has reward = beta * log-ratio + alpha * length + const. So a longer
    chosen answer has less left to win. The paper's alpha depends on the data; 0.05 is the smallest that the SimPO paper
    tries.
    """
    margin = beta * (pairs.chosen_logratios - pairs.rejected_logratios)
    return -logsigmoid(margin + alpha * (pairs.chosen_lengths - pairs.rejected_lengths))
