"""Digests of tensors' bits, and one fingerprint of a whole model."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# Entries hashed at a time if a tensor must first be copied from an accelerator.
_PIECE = 1 << 20

# Names of the dtypes in safetensors.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_bits(tensor: Tensor) -> Tensor:
    """Return the same memory as integers: -0.0 differs from 0.0, and NaNs compare by their payload."""
    return tensor.view(_INTEGERS[tensor.dtype.itemsize])


class Digest:
    """A sha256 over a tensor's dtype, shape and row-major little-endian bytes, fed piece by piece."""

    def __init__(self, dtype: torch.dtype, shape: Iterable[int]) -> None:
        self._state = hashlib.sha256(f"{CODES[dtype]} {list(shape)}\n".encode())

    def update(self, piece: Tensor) -> None:
        """Hash the next entries (CPU, contiguous, one-dimensional)."""
        self._state.update(as_bits(piece).numpy().data)

    def hexdigest(self) -> str:
        return self._state.hexdigest()


def digests(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Return the digest of each tensor in memory, equal to that of the tensor saved with safetensors."""
    result = {}
    for name, tensor in tensors:
        state = Digest(tensor.dtype, tensor.shape)
        for piece in tensor.detach().reshape(-1).split(_PIECE):
            state.update(piece.cpu())
        result[name] = state.hexdigest()
    return result


def combine(tensor_digests: Mapping[str, str]) -> str:
    """Combine the tensors' digests, in any order, into one fingerprint of the model."""
    lines = "".join(f"{name} {tensor_digests[name]}\n" for name in sorted(tensor_digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def fingerprint_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the fingerprint that `checkpoints.fingerprint` gives once the tensors are saved."""
    return combine(digests(tensors))
