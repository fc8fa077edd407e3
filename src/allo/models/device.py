"""The device that a model is loaded to, and what its arithmetic costs there."""

import time

import torch
from torch.nn.functional import linear

from allo.errors import UserError
from allo.ranks import is_joined, local_rank


def resolve_device(device: str) -> torch.device:
    """Return the device of a recipe; "auto" is the first CUDA device, otherwise the CPU. Raises `UserError` for others.

    Of several processes on a machine, each has the CUDA device of its number there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device {device!r} is unknown to torch; use auto, cpu or cuda.") from error
    if where.type not in ("cpu", "cuda") or (where.type == "cpu" and where.index):
        raise UserError(f"device {device!r}: allo does not train there; use auto, cpu or cuda.")
    if where.type == "cuda" and where.index:
        raise UserError(
            f"device {device!r}: training runs on the first visible GPU; "
            f"set CUDA_VISIBLE_DEVICES={where.index} and device: cuda."
        )
    if where.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r} was asked for, but torch finds no CUDA device; use auto or cpu.")
    return torch.device("cuda", local_rank()) if where == torch.device("cuda") and is_joined() else where


def is_slow_in_bf16(device: str) -> bool:
    """Whether a recipe's device is a CPU that takes over twice as long for a product in bfloat16 as in float32.

    CPUs without instructions for it convert each number. Measured on a small product, in some 20 ms.
    """
    if device not in ("auto", "cpu") or (device == "auto" and torch.cuda.is_available()):
        return False
    return _seconds(torch.bfloat16) > 2 * _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    rows, weights = torch.ones(64, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        linear(rows, weights)
        taken.append(time.perf_counter() - start)
    return min(taken)
