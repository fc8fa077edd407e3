"""The processes that train together, and sums over them. A single process is its own total."""

import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if _together() else 0


def num_ranks() -> int:
    return dist.get_world_size() if _together() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Replace each rank's `tensor` by the sum over ranks and return it. Every rank must call it."""
    if num_ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
