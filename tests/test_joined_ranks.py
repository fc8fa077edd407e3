"""Several processes of one command: what rank 0 decides and raises is so for all, and work can go on after an error."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "joined_ranks.py"


def started(script: Path, num_ranks: int) -> list["subprocess.Popen[str]"]:
    """The processes as a launcher starts them, without its imports."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    return [
        subprocess.Popen(
            [sys.executable, script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(num_ranks)
    ]


@pytest.mark.parametrize("num_ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_an_error_of_any_rank_is_raised_by_rank_0_and_the_ranks_stay_in_step(num_ranks: int) -> None:
    processes = started(SCRIPT, num_ranks)
    (out, err), *others = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [3] * num_ranks, err
    assert others == [("", "")] * (num_ranks - 1), "only rank 0 speaks"
    fine = "nobody -> True [{'rank': 0, 'place': None}, 1]"
    assert out.splitlines() == [
        fine,
        "all -> DivergedError all fail",
        "last -> UserError last fails",
        "first decides -> UserError rank 0 refuses: é",
        "{}",
        fine,
        "first -> UserError first fails",
        "nobody -> UserError first fails",  # the others wait in vain, so no work is shared any more
    ]
