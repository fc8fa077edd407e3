"""Momentum between rounds of alignment: Nesterov's extrapolation in weight space."""

import torch
from torch import Tensor

from allo.weights.fingerprints import as_bits


def extrapolated(latest: Tensor, earlier: Tensor, *, momentum: float) -> Tensor:
    """Return theta_t + a (theta_t - theta_(t-1)) if the bits of the two differ; otherwise `latest`, bit for bit.

    Inputs and result share one shape and dtype; the computation is in fp32 and rounds once. Follows accelerated
    preference optimization (arXiv 2410.06293), which extrapolates the policies' log-probs.
    """
    differs = as_bits(latest) != as_bits(earlier)
    new, old = latest[differs].float(), earlier[differs].float()
    result = latest.clone()
    result[differs] = torch.add(new, new - old, alpha=momentum).to(latest.dtype)
    return result
