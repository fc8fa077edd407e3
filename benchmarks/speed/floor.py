"""The arithmetic floor of a training step: its products of matrices alone, at the rate that this machine reaches."""

import time
from collections import Counter
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ROUNDS = 5


def products_seconds(
    policy: PreTrainedModel, *, num_tokens: int, num_targets: int, reference: bool, backward: bool = True
) -> float:
    """Return the seconds of a step's products for `num_tokens` that are read and `num_targets` with logits.

    A forward pass of the policy and, with `reference`, one of the reference; a backward pass with the products for
    states and for weights. Every layer's weights and the head are products of random matrices of their sizes. Scores of
    attention and all that is no product are left out.
    """
    head = policy.get_output_embeddings()
    layers = Counter(
        tuple(module.weight.shape)
        for module in policy.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    every = [(shape, num_tokens, count) for shape, count in layers.items()]
    seconds = 0.0
    for shape, num_rows, count in [*every, (tuple(head.weight.shape), num_targets, 1)]:
        # Many logits at once would take more memory than the step has.
        rows = min(num_rows, max(256, (1 << 24) // shape[0]))
        forward, back = _of_one(shape, rows, policy.dtype)
        seconds += count * num_rows / max(rows, 1) * ((1 + reference) * forward + backward * back)
    return seconds


@cache
def _of_one(shape: tuple[int, ...], rows: int, dtype: torch.dtype) -> tuple[float, float]:
    """Return the seconds of one product's forward and backward pass; the same ones for every system."""
    num_out, num_in = shape
    weight = torch.randn(num_out, num_in, dtype=dtype)
    states, slope = (torch.randn(rows, size, dtype=dtype) for size in (num_in, num_out))
    backward = _fastest(lambda: slope @ weight) + _fastest(lambda: slope.T @ states)
    return _fastest(lambda: states @ weight.T), backward


def _fastest(product: Callable[[], Tensor]) -> float:
    """Return the least of several times: a floor is not to rise with what else the machine does."""
    product()
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        product()
        found.append(time.perf_counter() - begin)
    return min(found)
