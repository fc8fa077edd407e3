"""Peak memory of this process or of its GPU, over what is held already."""

from collections.abc import Callable
from pathlib import Path

import torch


def peak_over_present(device: torch.device) -> Callable[[], int]:
    """Starts the measurement; the returned function gives the peak since, over what is held now, in bytes."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device) - before
    # Writing 5 resets the high-water mark of this process; getrusage's would still be its parent's.
    Path("/proc/self/clear_refs").write_text("5")
    resident = status_bytes("VmRSS")
    return lambda: status_bytes("VmHWM") - resident


def status_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process. ru_maxrss would begin with the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
