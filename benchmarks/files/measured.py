"""What the benchmarks of this folder share: memory and caches as the kernel counts them."""

import os
from pathlib import Path


def status_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process. ru_maxrss would begin with the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def forget(folder: Path) -> None:
    """Drop the folder's files from the page cache, so that the next read comes from the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
