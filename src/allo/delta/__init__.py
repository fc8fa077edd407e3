"""What alignment changed, and nothing else: written, read, extracted, applied."""

from allo.delta.file import Delta, DeltaInfo, info, read_delta, write_delta
from allo.delta.patch import apply, apply_to_model, extract

__all__ = [
    "Delta",
    "DeltaInfo",
    "apply",
    "apply_to_model",
    "extract",
    "info",
    "read_delta",
    "write_delta",
]
