"""Deltas, the entries that alignment changed: written, applied, merged, exported and shared."""

from allo.delta.file import Delta, DeltaInfo, info, noted_dtypes, read_delta, write_delta
from allo.delta.hub import fetch, push, push_files
from allo.delta.merging import MergeInfo, merge
from allo.delta.patch import apply, apply_to_model, extract, patch_of
from allo.delta.serving import export_patch
from allo.delta.shira import ShiraInfo, export_shira

__all__ = [
    "Delta",
    "DeltaInfo",
    "MergeInfo",
    "ShiraInfo",
    "apply",
    "apply_to_model",
    "export_patch",
    "export_shira",
    "extract",
    "fetch",
    "info",
    "merge",
    "noted_dtypes",
    "patch_of",
    "push",
    "push_files",
    "read_delta",
    "write_delta",
]
