"""Sums over the processes that train together. A single process is its own total."""

import torch.distributed as dist
from torch import Tensor

from allo.ranks import num_ranks


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Replace each rank's `tensor` by the sum over ranks and return it. Every rank must call it."""
    if num_ranks() > 1:
        dist.all_reduce(tensor)
    return tensor
