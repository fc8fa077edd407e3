"""What the benchmarks of this folder share: one record, and memory and caches as the kernel counts them."""

import datetime
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def record(table: str, columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    """As benchmarks/README.md lays it down."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
        return run.stdout.strip()

    return {
        "schema": 1,
        "table": table,
        "date": datetime.date.today().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain")),
        "machine": f"{os.cpu_count()} CPU cores",
        "command": shlex.join(["python", *sys.argv]),
        "columns": columns,
        "rows": rows,
    }


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
