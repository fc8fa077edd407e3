"""A master taken apart into a bf16 weight and a 16-bit residual is put together again, bit for bit."""

import pytest
import torch
from torch import Tensor

from allo.weights.split_master import join, split

# Lower halves: both sides of zero, of the tie, and of the wrap to the next live weight.
LOWER = [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
MAX_BF16_ROUNDED = 2.0**128 - 2.0**119  # from here on half away from zero is infinite


def masters(upper: Tensor, lower: Tensor) -> Tensor:
    """fp32 of all pairs of upper and lower 16 bits."""
    bits = (upper.long()[:, None] << 16) + lower.long()
    return bits.view(-1).to(torch.int32).view(torch.float32)  # int32 takes the lower 32 bits


def bits(values: Tensor) -> Tensor:
    return values.view(torch.int32 if values.dtype == torch.float32 else torch.int16)


def every_sign_exponent_and_mantissa_of_bf16() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return masters(
        torch.arange(1 << 16),
        torch.cat([torch.tensor(LOWER), torch.randint(1 << 16, (58,), generator=generator)]),
    )


@pytest.mark.invariant(
    "Lean: a master put together from weight and residual has the bits that were taken apart; with exact moments the masters are fp32 masters bit for bit; at most 9 bytes a selected weight."
)
def test_joining_what_was_split_gives_every_bit_back() -> None:
    """All signs, exponents, subnormals, infinities and NaNs, and ties."""
    before = every_sign_exponent_and_mantissa_of_bf16()
    live, residual = split(before)
    assert (live.dtype, residual.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(bits(join(live, residual)), bits(before))


def test_every_residual_of_a_weight_is_joined_exactly() -> None:
    before = masters(torch.tensor([0x0000, 0x8000, 0x3F7F, 0xBF80, 0x7F7F, 0xFF7F]), torch.arange(1 << 16))
    assert torch.equal(bits(join(*split(before))), bits(before))


def test_the_live_weight_is_the_nearest_and_a_tie_goes_away_from_zero() -> None:
    values = every_sign_exponent_and_mantissa_of_bf16()
    values = values[values.isfinite() & (values.abs() < MAX_BF16_ROUNDED)]
    live, _ = split(values)
    ties = (bits(values) & 0xFFFF) == 0x8000
    assert torch.equal(bits(live[~ties]), bits(values[~ties].bfloat16())), "torch rounds to the nearest, too"
    exact = values[ties].double()
    away = live[ties].double()
    assert bool((away.abs() > exact.abs()).all())
    # As far from the live weight as the bf16 weight on the other side is.
    assert torch.equal(bits(away - exact), bits(exact - (2 * exact - away)))
    assert torch.equal((2 * exact - away).bfloat16().double(), 2 * exact - away)


def test_a_weight_as_loaded_has_no_residual() -> None:
    weights = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    live, residual = split(weights.float())
    finite = ~weights.isnan()  # a signalling NaN comes quiet from `float`
    assert torch.equal(bits(live[finite]), bits(weights[finite]))
    assert not residual.any()


@pytest.mark.parametrize(
    ("master", "live"),
    [
        (0x7F800000, 0x7F80),  # an infinity
        (0xFF800000, 0xFF80),
        (0x7FC00000, 0x7FC0),  # torch's NaN
        (0x7F7F8000, 0x7F80),  # finite, beyond what bf16 rounds to
        (0x7F800001, 0x7F80),  # NaNs whose payload lies in the lower half
        (0x7FFFFFFF, 0x8000),
    ],
)
def test_what_the_live_weight_of_no_finite_bf16_is(master: int, live: int) -> None:
    before = masters(torch.tensor([master >> 16]), torch.tensor([master & 0xFFFF]))
    weight, residual = split(before)
    assert (int(bits(weight)) & 0xFFFF) == live
    assert torch.equal(bits(join(weight, residual)), bits(before))


def test_nothing_is_written_to_what_is_split_or_joined() -> None:
    before = torch.randn(5)
    kept = before.clone()
    live, residual = split(before)
    halves = live.clone(), residual.clone()
    join(live, residual)
    assert torch.equal(before, kept) and torch.equal(live, halves[0]) and torch.equal(residual, halves[1])
