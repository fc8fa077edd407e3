"""A sharded model trains like a whole one, to rounding: each rank has its rows, and the selected entries in them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from allo.delta import apply
from allo.models.load import load_model
from allo.training.locating import locate
from allo.training.trainer import ImproveTrainer
from allo.weights.param_mask import ParamMask
from sharded_cases import CASES, CRITERIA, every_third, found, locating, run, save_models
from tiny import TOKENIZER, arguments, pairs

SCRIPT = Path(__file__).resolve().parents[1] / "sharded_ranks.py"
# Measured 6e-8 to 2e-7. AdamW divides gradients near zero by themselves; 8-bit moments and bf16 gradients round more.
LOSS, WEIGHTS = {"lean": 1e-4}, {"improve": 5e-6, "lean": 2e-3}
EXACT = 1e-6
JOBS = ("locate", "reads", "ties", "resume")


def torchrun(num: int, *arguments: str | Path, shards: int = 0) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num)]
    return subprocess.run(
        [sys.executable, *launch, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=os.environ | {"SHARDS": str(shards)},
    )


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    save_models(folder)
    done = torchrun(2, SCRIPT, folder, *CASES, *JOBS)
    (folder / "said").write_text(done.stderr[-6000:])
    return folder


def check(folder: Path, name: str) -> None:
    assert (folder / name).exists(), (folder / "said").read_text()


def compare(name: str, folder: Path, own: Path, *, parts: int = 4) -> None:
    """Repeat a case in this process and compare its logs and weights with those that the ranks wrote."""
    check(folder, f"{name}.safetensors")
    case = CASES[name]
    whole = load_model(folder / case.model, dtype=torch.float32, device="cpu")
    trainer = run(case, whole, own, num_ranks=1, parts=parts)
    one = found(trainer, {each: param.detach() for each, param in whole.named_parameters()})
    two = load_file(folder / f"{name}.safetensors")
    assert one.keys() == two.keys()
    for key in one:
        if key.endswith("loss"):
            bound = LOSS.get(name, EXACT)
        elif key.startswith("log"):
            bound = max(1e-4, LOSS.get(name, EXACT) * 100)
        else:
            bound = WEIGHTS.get(name, EXACT)
        torch.testing.assert_close(
            two[key], one[key], rtol=bound, atol=bound, msg=f"{key}: {two[key]} {one[key]}"
        )


@pytest.mark.invariant("A sharded model trains like a whole one, to rounding.")
@pytest.mark.parametrize("name", CASES)
def test_a_sharded_model_ends_like_a_whole_one(name: str, sharded: Path, tmp_path: Path) -> None:
    compare(name, sharded, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("num", "shards"), [(3, 3), (4, 4), (4, 2)])
def test_so_it_does_on_more_processes_and_in_two_copies(num: int, shards: int, tmp_path: Path) -> None:
    save_models(tmp_path)
    names = ["improve everything", "forget rows", "kto", "evaluated"]
    done = torchrun(num, SCRIPT, tmp_path, *names, *JOBS, shards=shards)
    (tmp_path / "said").write_text(done.stderr[-6000:])
    for name in names:
        compare(name, tmp_path, tmp_path / f"{name} alone", parts=3 if num == 3 else 4)
    for job in JOBS:
        check(tmp_path, job)


@pytest.mark.invariant("The delta and the model of a sharded run have its weights, bit for bit.")
def test_the_written_model_and_delta_have_the_trained_weights(sharded: Path, tmp_path: Path) -> None:
    check(sharded, "run/07-improve/delta.safetensors")
    weights = {
        key.removeprefix("weight "): tensor
        for key, tensor in load_file(sharded / "improve.safetensors").items()
        if key.startswith("weight ")
    }
    apply(sharded / "tied", sharded / "run/07-improve/delta.safetensors", tmp_path / "applied")
    for folder in (sharded / "saved", sharded / "run/07-improve/model", tmp_path / "applied"):
        stored = load_file(folder / "model.safetensors")
        assert stored.keys() == weights.keys()
        assert all(torch.equal(stored[name], weights[name]) for name in weights), folder
    assert (sharded / "saved" / "tokenizer.json").exists()


@pytest.mark.invariant("Locating on a sharded model selects what locating on a whole one does.")
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_same_weights_are_located(criterion: str, sharded: Path, tmp_path: Path) -> None:
    check(sharded, f"{criterion}-mask.safetensors")
    whole = load_model(sharded / "untied", dtype=torch.float32, device="cpu")
    mask = locate(whole, pairs()[:13], **locating(criterion, tmp_path))
    other = ParamMask.load(sharded / f"{criterion}-mask.safetensors")
    assert other.num_selected == mask.num_selected and other.shapes == mask.shapes
    assert other.overlap(mask) >= CRITERIA[criterion]


@pytest.mark.parametrize("job", JOBS)
def test_the_ranks_agree(job: str, sharded: Path) -> None:
    """The checks are in `sharded_ranks.py`: reading, ties in every bit, and resuming after a kill and after damage."""
    check(sharded, job)
    if job == "resume":
        ends_alike_in_one_process(sharded)


def ends_alike_in_one_process(folder: Path) -> None:
    """Go on from a checkpoint of two shards with the whole model, to the shards' own end."""
    policy = load_model(folder / "tied", dtype=torch.float32, device="cpu")
    args = arguments(folder / "whole", per_device_train_batch_size=4, gradient_accumulation_steps=1)
    trainer = ImproveTrainer(policy, args, pairs()[:13], TOKENIZER, mask=every_third(policy))
    trainer.train(resume_from_checkpoint=str(folder / "alone" / "checkpoint-2"))
    expected = load_file(folder / "alone" / "expected.safetensors")
    for name, param in policy.named_parameters():
        torch.testing.assert_close(param.detach(), expected[name], rtol=0, atol=5e-6)
