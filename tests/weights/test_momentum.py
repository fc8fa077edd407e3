"""Momentum between rounds is its formula, entry by entry, and moves nothing else."""

import pytest
import torch

from allo.weights.fingerprints import as_bits
from allo.weights.momentum import extrapolated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_formula_in_fp32_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    earlier = torch.randn(4096, generator=generator).to(dtype)
    latest = (earlier.float() + 0.01 * torch.randn(4096, generator=generator)).to(dtype)
    found = extrapolated(latest, earlier, momentum=0.5)
    # At one half both products are exact: what the CPU makes of a fused multiply-add is the same.
    expected = (latest.float() + 0.5 * (latest.float() - earlier.float())).to(dtype)
    assert found.dtype == dtype
    assert torch.equal(as_bits(found), as_bits(expected))
    assert (found != latest).float().mean() > 0.5


def test_a_worked_value() -> None:
    assert extrapolated(torch.tensor([3.0]), torch.tensor([1.0]), momentum=0.25).item() == 3.5


def test_equal_weights_keep_their_bits_and_the_inputs_theirs() -> None:
    odd = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45, 2.0])
    latest, earlier = torch.cat([odd, torch.tensor([1.0])]), torch.cat([odd, torch.tensor([0.5])])
    before = latest.clone()
    found = extrapolated(latest, earlier, momentum=0.9)
    assert torch.equal(as_bits(found)[:-1], as_bits(odd))
    assert found[-1] == torch.tensor(1.0) + 0.9 * 0.5
    assert torch.equal(as_bits(latest), as_bits(before))
