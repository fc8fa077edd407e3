"""Two processes are one with twice the batch: they send the flat gradient, once a step, and little else."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import two_ranks

LOSSES = {"rtol": 0, "atol": 1e-5}
WEIGHTS = {"rtol": 0, "atol": 1e-6}
LOGS = {"rtol": 1e-4, "atol": 1e-4}
# Losses and metrics: a few numbers a step beside the gradient.
OVERHEAD_BYTES_A_STEP = 128


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the results of two processes, one file a case. Starting them takes longer than all cases."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, two_ranks.__file__, folder],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.invariant("Two processes are one with twice the batch, and send the flat gradient once a step.")
@pytest.mark.parametrize(("kind", "reference"), two_ranks.CASES)
def test_two_ranks_are_one_process_with_twice_the_batch(
    kind: str, reference: str, both: Path, tmp_path: Path
) -> None:
    two = load_file(both / f"{kind}-{reference}.safetensors")
    one = two_ranks.trained_as(kind, reference, tmp_path, size=4)
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
