"""Momentum between rounds of alignment: Nesterov's extrapolation, in weight space."""

import torch
from torch import Tensor

from allo.weights.fingerprints import as_bits


def extrapolated(latest: Tensor, earlier: Tensor, *, momentum: float) -> Tensor:
    """theta_t + a (theta_t - theta_(t-1)) where the bits of the two differ; elsewhere `latest`, bit for bit.

    Both of one shape and dtype, which the result has too; computed in fp32 and rounded once
    (accelerated preference optimization, arXiv 2410.06293, which extrapolates policies' log-probs).
    """
    differs = as_bits(latest) != as_bits(earlier)
    new, old = latest[differs].float(), earlier[differs].float()
    result = latest.clone()
    result[differs] = torch.add(new, new - old, alpha=momentum).to(latest.dtype)
    return result
