"""The source, packages, machine and memory behind a result."""

import contextlib
import functools
import importlib.metadata
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The checkout, if the package runs from one.
ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("allo-align", "torch", "transformers", "accelerate", "datasets", "safetensors", "numpy")


def provenance() -> dict[str, Any]:
    """Return the source's commit, the packages' versions and the hardware as they are now.

    If a GPU is in use, also return its peak memory since `reset_peak_memory`.
    """
    gpu = _gpu()
    return {
        **commit_of(ROOT),
        "versions": dict(_versions()),
        "hardware": _hardware(),
        **({} if gpu is None else {"peak_gpu_memory_bytes": int(gpu.max_memory_allocated())}),
    }


@functools.cache  # every stage asks, and each version is looked up on the disk
def _versions() -> dict[str, str]:
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **versions}


def commit_of(root: Path, *, ignored: Sequence[str] = ()) -> dict[str, Any]:
    """Return the commit of the repository at `root`, and whether it has uncommitted changes, except those to `ignored`.

    Both are None if `root` is not a repository's own folder, such as that of a package installed inside another one.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        if Path(git("rev-parse", "--show-toplevel")) == root:
            changes = git("status", "--porcelain", "--", ".", *(f":!{path}" for path in ignored))
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    return {"commit": None, "dirty": None}


def _hardware() -> str:
    torch, gpu = sys.modules.get("torch"), _gpu()
    threads = torch.get_num_threads() if torch is not None else 1
    cpu = f"{platform.machine()} CPU, {threads} threads"
    return cpu if gpu is None else f"{gpu.get_device_name()}, {cpu}"


def _gpu() -> Any:
    """Return `torch.cuda` if this process uses it, otherwise None: an unused GPU does not affect a result."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def reset_peak_memory() -> None:
    """Reset the peaks that the kernel (Linux) and the GPU's allocator keep, so that they cover this stage alone."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if (gpu := _gpu()) is not None:
        gpu.reset_peak_memory_stats()


def peak_memory() -> int:
    """Return the peak of resident bytes since `reset_peak_memory`."""
    try:
        return resident_bytes("VmHWM")
    except (OSError, IndexError):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_bytes(field: str = "VmRSS") -> int:
    """Return VmRSS, or VmHWM for the peak, of this process; Linux only."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])
