"""Peak memory of this process or of its GPU, beyond what is already allocated."""

from collections.abc import Callable
from pathlib import Path

import torch


def peak_over_present(device: torch.device) -> Callable[[], int]:
    """Start the measurement; the returned function gives the peak since, beyond the current memory, in bytes."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device) - before
    # Writing 5 resets this process's high-water mark; getrusage's would still be its parent's.
    Path("/proc/self/clear_refs").write_text("5")
    resident = status_bytes("VmRSS")
    return lambda: status_bytes("VmHWM") - resident


def status_bytes(field: str) -> int:
    """Return VmRSS or VmHWM of this process. ru_maxrss would begin with the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
