"""Two processes are one with twice the batch: they send the flat gradient, once a step, and little else."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

SCRIPT = Path(__file__).resolve().parents[1] / "two_ranks.py"
LOSSES = {"rtol": 0, "atol": 1e-5}
WEIGHTS = {"rtol": 0, "atol": 1e-6}
LOGS = {"rtol": 1e-4, "atol": 1e-4}
# Losses and metrics: a few numbers a step beside the gradient.
OVERHEAD_BYTES_A_STEP = 128


def run(folder: Path, kind: str, *, num_ranks: int, size: int, reference: str = "swap") -> dict[str, Tensor]:
    folder.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    launch = torchrun if num_ranks > 1 else []
    subprocess.run(
        [sys.executable, *launch, str(SCRIPT), kind, str(folder), str(size), reference],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return load_file(folder / "found.safetensors")


@pytest.mark.invariant("Two processes are one with twice the batch, and send the flat gradient once a step.")
@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("improve", "swap"),
        ("forget", "swap"),
        pytest.param("improve", "precomputed", marks=pytest.mark.slow),
        pytest.param("bco", "swap", marks=pytest.mark.slow),
        pytest.param("kto", "swap", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_are_one_process_with_twice_the_batch(kind: str, reference: str, tmp_path: Path) -> None:
    two = run(tmp_path / "two", kind, num_ranks=2, size=2, reference=reference)
    one = run(tmp_path / "one", kind, num_ranks=1, size=4, reference=reference)
    assert two.keys() == one.keys()
    torch.testing.assert_close(two["log.loss"], one["log.loss"], **LOSSES)
    for name in one:
        if name.startswith("weight."):
            torch.testing.assert_close(two[name], one[name], **WEIGHTS, msg=name)
        if name.startswith("log."):
            torch.testing.assert_close(two[name], one[name], **LOGS, msg=name)
    assert one["sent"] == 0
    num_steps = len(two["log.loss"])
    if reference == "swap":
        assert 0 <= two["sent"] - two["gradient"] <= OVERHEAD_BYTES_A_STEP * num_steps
        # DDP would send every gradient of the model.
        assert two["sent"] < 0.5 * two["dense"]
