"""What a result is made with: source, packages and machine; and how much memory it took."""

import contextlib
import importlib.metadata
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("allo-align", "torch", "transformers", "accelerate", "datasets", "safetensors", "numpy")


def provenance() -> dict[str, Any]:
    """The source's commit, the packages' versions and the hardware, as they are now."""
    return {
        **_commit(),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
        "hardware": _hardware(),
    }


def _commit() -> dict[str, Any]:
    """The commit of the source tree that runs, and whether it has uncommitted changes."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _hardware() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    threads = torch.get_num_threads() if torch is not None else 1
    return f"{platform.machine()} CPU, {threads} threads"


def reset_peak_memory() -> None:
    """Let the kernel measure this stage's peak alone (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Peak resident bytes since `reset_peak_memory`; of the GPU's allocator where there is one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
