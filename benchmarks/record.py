"""A benchmark's record: its measurements, commit, versions, machine and command."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from allo.files.artifacts import written_aside
from allo.files.provenance import commit_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers", "trl", "peft")

Row = dict[str, Any]


class Record:
    """One table's rows, rewritten as a whole whenever they grow. Commit and command are those at the beginning."""

    def __init__(self, path: Path, table: str, *, device: str) -> None:
        self.path = path
        self._head = {
            "schema": 1,
            "table": table,
            "date": datetime.date.today().isoformat(),
            # Earlier records and plots are not sources of this one.
            **commit_of(ROOT, ignored=("benchmarks/results", "docs/plots")),
            "machine": machine(device),
            "command": shlex.join(["python", "-m", *_portable(sys.argv)]),
        }

    def write(self, rows: list[Row], *, commits: Iterable[str] = ()) -> None:
        """Write all rows; each has the same columns. `commits`: those that they are of, if not this one."""
        columns = list(rows[0])
        assert all(list(row) == columns for row in rows)
        commit = {"commit": " ".join(commits)} if commits else {}
        record = self._head | commit | {"columns": columns, "rows": [list(row.values()) for row in rows]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(self.path) as part:
            part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> list[Row]:
    """Read the rows of a record."""
    record = json.loads(path.read_text(encoding="utf-8"))
    return [dict(zip(record["columns"], row, strict=True)) for row in record["rows"]]


def machine(device: str) -> str:
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    hardware = f"{os.cpu_count()} CPU cores ({platform.machine()}), OMP_NUM_THREADS={threads}"
    if device == "cuda":
        hardware = f"{torch.cuda.get_device_name()}, {hardware}"
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    return f"{hardware}; {versions}"


def _portable(arguments: list[str]) -> list[str]:
    """Return the command without this machine's folders, since records are read elsewhere."""
    own = [str(Path(part).name) if os.path.isabs(part) else part for part in arguments[1:]]
    module = Path(os.path.relpath(Path(arguments[0]).resolve(), ROOT)).with_suffix("")
    return [".".join(module.parts), *own]
