"""AdamW in two bytes an entry: torch's trajectory, the same bits whatever the chunks, and after a reload."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from allo.training.checkpointing import load_tree, save_tree
from allo.weights.eight_bit import BLOCK
from allo.weights.lean_adamw import LeanAdamW, adamw_
from allo.weights.split_master import join, split

ENTRIES = 10 * BLOCK + 37
STEPS = 300
SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-12, "weight_decay": 0.1}
# Least cosine to the way of torch's AdamW, and largest relative difference of its length.
COSINE, LENGTH = 0.995, 0.02
# No step of AdamW is longer than this, in learning rates, with these betas and gradients: 1.2 was seen.
LONGEST_UPDATE = 2.0
STATE_BYTES = 2.04  # an entry, in whole blocks


def gradients(steps: int = STEPS) -> Iterator[Tensor]:
    """Noise and a drift whose size differs by six orders of magnitude between the entries of a block."""
    generator = torch.Generator().manual_seed(0)
    size = (torch.randn(ENTRIES, generator=generator) * 2.3 - 12).exp()
    drift = 0.3 * torch.randn(ENTRIES, generator=generator)
    for _ in range(steps):
        yield ((torch.randn(ENTRIES, generator=generator) + drift) * size).bfloat16()


def start() -> Tensor:
    return torch.randn(ENTRIES, generator=torch.Generator().manual_seed(1))


class Chunks:
    """Masters in one fp32 vector, given out in ranges of `chunk` entries."""

    def __init__(self, *, chunk: int = ENTRIES) -> None:
        self.masters = start()
        self.flat = nn.Parameter(torch.zeros(ENTRIES, dtype=torch.bfloat16))
        self.chunk = chunk

    def walk(self, flat: nn.Parameter) -> Iterator[tuple[slice, Tensor]]:
        assert flat is self.flat
        for begin in range(0, ENTRIES, self.chunk):
            entries = slice(begin, min(begin + self.chunk, ENTRIES))
            yield entries, self.masters[entries]

    def optimizer(self) -> LeanAdamW:
        return LeanAdamW([{"params": [self.flat]}], self.walk, **SETTINGS)

    def train(self, optimizer: LeanAdamW, grads: Iterator[Tensor]) -> None:
        for grad in grads:
            self.flat.grad = grad
            optimizer.step()


def test_the_step_is_torchs_adamw_bit_for_bit() -> None:
    theirs = nn.Parameter(start())
    optimizer = torch.optim.AdamW([theirs], foreach=False, **SETTINGS)
    ours, exp_avg, exp_avg_sq = start(), torch.zeros(ENTRIES), torch.zeros(ENTRIES)
    for step, grad in enumerate(gradients(20), start=1):
        theirs.grad = grad.float()
        optimizer.step()
        adamw_(ours, grad.float(), exp_avg, exp_avg_sq, step=step, **SETTINGS)
        assert torch.equal(ours, theirs)


def test_split_masters_with_exact_moments_are_fp32_masters_bit_for_bit() -> None:
    whole, live, residual = start(), *split(start())
    moments = [[torch.zeros(ENTRIES) for _ in range(2)] for _ in range(2)]
    for step, grad in enumerate(gradients(50), start=1):
        adamw_(whole, grad.float(), *moments[0], step=step, **SETTINGS)
        master = join(live, residual)
        adamw_(master, grad.float(), *moments[1], step=step, **SETTINGS)
        live, residual = split(master)
        assert torch.equal(join(live, residual), whole)
        assert torch.equal(live, split(whole)[0])


def test_the_way_is_torchs_adamws() -> None:
    lean = Chunks()
    optimizer = lean.optimizer()
    exact, exp_avg, exp_avg_sq = start(), torch.zeros(ENTRIES), torch.zeros(ENTRIES)
    for step, grad in enumerate(gradients(), start=1):
        before = lean.masters.clone()
        lean.flat.grad = grad
        optimizer.step()
        adamw_(exact, grad.float(), exp_avg, exp_avg_sq, step=step, **SETTINGS)
        update = lean.masters - before * (1 - SETTINGS["lr"] * SETTINGS["weight_decay"])
        assert update.abs().max() <= LONGEST_UPDATE * SETTINGS["lr"], f"step {step}"
    ours, theirs = lean.masters - start(), exact - start()
    assert torch.cosine_similarity(ours, theirs, dim=0) >= COSINE
    assert (ours.norm() / theirs.norm()).item() == pytest.approx(1, abs=LENGTH)


def test_an_entry_without_a_gradient_only_decays() -> None:
    lean = Chunks()
    silent = torch.arange(ENTRIES) % 5 == 0
    lean.train(lean.optimizer(), (grad.masked_fill(silent, 0.0) for grad in gradients(20)))
    decayed = start()
    for _ in range(20):
        decayed.mul_(1 - SETTINGS["lr"] * SETTINGS["weight_decay"])
    assert torch.equal(lean.masters[silent], decayed[silent])
    assert (lean.masters - decayed)[~silent].abs().median() > SETTINGS["lr"]


@pytest.mark.parametrize("chunk", [BLOCK, 3 * BLOCK])
def test_the_chunks_size_changes_no_bit(chunk: int) -> None:
    whole, chunked = Chunks(), Chunks(chunk=chunk)
    for lean in (whole, chunked):
        lean.train(lean.optimizer(), gradients(20))
    assert torch.equal(whole.masters, chunked.masters)


def test_the_state_is_two_bytes_an_entry() -> None:
    lean = Chunks()
    optimizer = lean.optimizer()
    lean.train(optimizer, gradients(1))
    (state,) = optimizer.state.values()
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) <= STATE_BYTES * ENTRIES


def test_saved_and_loaded_it_goes_on_identically(tmp_path: Path) -> None:
    lean = Chunks()
    optimizer = lean.optimizer()
    grads = list(gradients(20))
    lean.train(optimizer, iter(grads[:10]))
    save_tree(tmp_path / "optimizer.safetensors", optimizer.state_dict())
    resumed = Chunks()
    resumed.masters = lean.masters.clone()
    lean.train(optimizer, iter(grads[10:]))

    resumed_optimizer = resumed.optimizer()
    resumed_optimizer.load_state_dict(load_tree(tmp_path / "optimizer.safetensors"))
    resumed.train(resumed_optimizer, iter(grads[10:]))
    assert torch.equal(lean.masters, resumed.masters)


def test_what_was_loaded_is_not_shared() -> None:
    lean = Chunks()
    optimizer = lean.optimizer()
    lean.train(optimizer, gradients(2))
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    other = Chunks()
    other_optimizer = other.optimizer()
    other_optimizer.load_state_dict(state)
    other.train(other_optimizer, gradients(2))
    for name, value in kept["state"][0].items():
        assert torch.equal(torch.as_tensor(state["state"][0][name]), torch.as_tensor(value)), name
