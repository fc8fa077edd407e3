"""The installation and the machine in words, for a report of a fault: no secrets, and no paths."""

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from allo.files.provenance import PACKAGES, ROOT, commit_of
from allo.models.device import resolve_device

OPTIONAL = ("tokenizers", "trl", "peft", "vllm", "lm_eval", "trackio", "tensorboard")
GB = 1e9


def environment() -> dict[str, str]:
    """Return name -> value, in the order to show them."""
    return {
        "allo": _allo(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        **{name: _version(name) for name in (*PACKAGES[1:], *OPTIONAL)},
        "device: auto": str(resolve_device("auto")),
        **dict(map(_gpu, range(torch.cuda.device_count() if torch.cuda.is_available() else 0))),
        "CPU": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used",
        "memory": _memory(),
    }


def _allo() -> str:
    source = commit_of(ROOT)
    commit = "" if source["commit"] is None else f", commit {source['commit'][:10]}"
    return f"{_version('allo-align')}{commit}{' with uncommitted changes' if source['dirty'] else ''}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpu(number: int) -> tuple[str, str]:
    free, total = torch.cuda.mem_get_info(number)
    return (
        f"GPU {number}",
        f"{torch.cuda.get_device_name(number)}, {free / GB:.1f} of {total / GB:.1f} GB free",
    )


def _memory() -> str:
    """Return the host's memory, and how much of it programs may still take; Linux only."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available, total = (1024 * int(fields[name].split()[0]) / GB for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        return "unknown"
    return f"{available:.1f} of {total:.1f} GB free"
