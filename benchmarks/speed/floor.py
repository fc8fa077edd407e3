"""The arithmetic floor of a training step: its products of matrices alone, at the rate that this machine reaches."""

import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ROUNDS = 3


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
    passes = (1 + reference, int(backward))
    seconds = sum(
        count * _of_one(shape, num_tokens, policy.dtype, *passes) for shape, count in layers.items()
    )
    return seconds + _of_one(tuple(head.weight.shape), num_targets, policy.dtype, *passes)


def _of_one(shape: tuple[int, ...], num_rows: int, dtype: torch.dtype, forward: int, backward: int) -> float:
    num_out, num_in = shape
    weight = torch.randn(num_out, num_in, dtype=dtype)
    # Many logits at once would take more memory than the step has.
    rows = min(num_rows, max(256, (1 << 24) // num_out))
    states, slope = (torch.randn(rows, size, dtype=dtype) for size in (num_in, num_out))
    once = forward * _median(lambda: states @ weight.T)
    if backward:
        once += backward * (_median(lambda: slope @ weight) + _median(lambda: slope.T @ states))
    return once * num_rows / rows


def _median(product: Callable[[], Tensor]) -> float:
    product()
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        product()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)
