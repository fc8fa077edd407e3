"""Peak memory of this process or of its GPU, beyond what is already allocated."""

from collections.abc import Callable

import torch

from allo.files.provenance import peak_memory, reset_peak_memory, resident_bytes


def peak_over_present(device: torch.device) -> Callable[[], int]:
    """Start the measurement; the returned function gives the peak since, beyond the current memory, in bytes."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device) - before
    reset_peak_memory()
    resident = resident_bytes()
    return lambda: peak_memory() - resident
