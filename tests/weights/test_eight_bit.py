"""One byte a moment: errors are bounded, no update explodes, and a slow average still moves."""

import pytest
import torch
from torch import Tensor

from allo.weights.eight_bit import (
    BLOCK,
    OCTAVES,
    EightBitMoments,
    dequantize_positive,
    dequantize_signed,
    golden_dither,
    quantize_positive,
    quantize_signed,
)

CPU = torch.device("cpu")
ROUNDING = 1 + 1e-5  # fp32 arithmetic on top of a bound
LEVEL = 2 ** (OCTAVES / 255)  # the factor between two levels
BETAS = (0.9, 0.999)
# Over many steps the logarithm's mean is off by less than this share of a level.
MEAN_ERROR = 0.01
# A dithered average of squares against the exact one: less than two levels of 14%.
AVERAGE_ERROR = 0.25


def of_all_sizes(count: int, *, octaves: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 ** (-octaves * torch.rand(count, generator=generator)) * 1e-3


def signs(count: int) -> Tensor:
    return torch.randint(2, (count,), generator=torch.Generator().manual_seed(1)) * 2 - 1.0


def largest(values: Tensor) -> Tensor:
    """[n] -> the largest magnitude of its block, for each entry [n]."""
    blocks = values.abs().split(BLOCK)
    return torch.cat([block.max().expand(len(block)) for block in blocks])


def nearest(values: Tensor) -> Tensor:
    """As it comes back where each value takes the nearest level."""
    return dequantize_positive(*quantize_positive(values, dither=torch.full_like(values, 0.5)))


@pytest.mark.parametrize("count", [1, BLOCK, 5 * BLOCK + 7])
def test_a_signed_value_is_off_by_less_the_smaller_it_is(count: int) -> None:
    values = of_all_sizes(count, octaves=20) * signs(count)
    codes, scale = quantize_signed(values)
    assert (codes.dtype, len(codes), len(scale)) == (torch.int8, count, -(-count // BLOCK))
    share = values.abs() / largest(values)
    bound = largest(values) * (share.sqrt() / 127 + 1 / 254**2)
    assert bool(((dequantize_signed(codes, scale) - values).abs() <= bound * ROUNDING).all())


@pytest.mark.parametrize("count", [1, BLOCK, 5 * BLOCK + 7])
def test_a_positive_value_is_off_by_half_a_level_at_most(count: int) -> None:
    values = of_all_sizes(count, octaves=OCTAVES - 1)
    codes, scale = quantize_positive(values, dither=torch.full((count,), 0.5))
    assert (codes.dtype, len(codes), len(scale)) == (torch.uint8, count, -(-count // BLOCK))
    factor = dequantize_positive(codes, scale) / values
    assert factor.max() <= LEVEL**0.5 * ROUNDING and factor.min() >= LEVEL**-0.5 / ROUNDING
    assert torch.equal(dequantize_positive(codes, scale)[values == largest(values)], scale)


def test_a_positive_value_far_below_its_neighbours_becomes_larger_never_zero() -> None:
    values = torch.tensor([1.0, 2.0 ** -(OCTAVES + 3), 1e-30, 0.0])
    lowest = 2.0**-OCTAVES
    torch.testing.assert_close(nearest(values), torch.tensor([1.0, lowest, lowest, lowest]))


def test_zeros_stay_zeros() -> None:
    moments = EightBitMoments.zeros(300, device=CPU)
    for _ in range(2):
        exp_avg, exp_avg_sq = moments.unpack()
        assert not exp_avg.any() and not exp_avg_sq.any()
        moments.pack_(exp_avg, exp_avg_sq, dither=golden_dither(0, 300, step=1, device=CPU))


def test_blocks_know_nothing_of_each_other() -> None:
    values = of_all_sizes(3 * BLOCK, octaves=30) * signs(3 * BLOCK)
    dither = golden_dither(0, 3 * BLOCK, step=1, device=CPU)
    whole = EightBitMoments.zeros(3 * BLOCK, device=CPU)
    whole.pack_(values.clone(), values**2 * 3, dither=dither)
    middle = EightBitMoments.zeros(BLOCK, device=CPU)
    here = slice(BLOCK, 2 * BLOCK)
    middle.pack_(values[here].clone(), values[here] ** 2 * 3, dither=dither[here])
    for part, alone in zip(whole.part(BLOCK, 2 * BLOCK), middle, strict=True):
        assert torch.equal(part, alone)


def test_the_dither_fills_the_interval_more_evenly_than_chance() -> None:
    steps = 1000
    drawn = torch.stack([golden_dither(512, 520, step=step, device=CPU) for step in range(1, steps + 1)])
    assert drawn.min() >= 0 and drawn.max() <= 1
    for below in (0.01, 0.3, 0.5, 0.9):
        counts = (drawn < below).sum(0)
        # Random numbers would be off by sqrt(steps * below * (1 - below)), up to 16.
        assert (counts - steps * below).abs().max() <= 4


def test_the_dither_of_a_part_is_the_wholes() -> None:
    whole = golden_dither(0, 2000, step=7, device=CPU)
    assert torch.equal(golden_dither(768, 2000, step=7, device=CPU), whole[768:])
    large = (1 << 33) + 256  # no entry's number may overflow
    assert len(golden_dither(large, large + 2, step=10**6, device=CPU).unique()) == 2


def test_dithered_levels_are_right_on_average() -> None:
    values = of_all_sizes(BLOCK, octaves=OCTAVES - 2)
    steps = 2000
    total = torch.zeros(BLOCK)
    for step in range(steps):
        dither = golden_dither(0, BLOCK, step=step, device=CPU)
        total += dequantize_positive(*quantize_positive(values, dither=dither)).log2()
    off = (total / steps - values.log2()) * 255 / OCTAVES
    assert off.abs().max() <= MEAN_ERROR


def test_an_average_of_squares_follows_gradients_that_become_smaller() -> None:
    """Rounded to the nearest level it would stay where it is: a step moves it by a thirtieth of a level."""
    early = torch.ones(BLOCK)
    late = torch.where(torch.arange(BLOCK) % 2 == 0, 1.0, 0.2)
    exact = torch.zeros(BLOCK)
    dithered, rounded = (EightBitMoments.zeros(BLOCK, device=CPU) for _ in range(2))
    for step in range(1, 2001):
        grad = early if step < 1000 else late
        exact = BETAS[1] * exact + (1 - BETAS[1]) * grad**2
        for moments in (dithered, rounded):
            exp_avg, exp_avg_sq = moments.unpack()
            new = BETAS[1] * exp_avg_sq + (1 - BETAS[1]) * grad**2
            dither = golden_dither(0, BLOCK, step=step, device=CPU)
            moments.pack_(exp_avg, new, dither=dither if moments is dithered else torch.full((BLOCK,), 0.5))
    assert ((dithered.unpack()[1] / exact) - 1).abs().max() <= AVERAGE_ERROR
    assert (rounded.unpack()[1] / exact).max() > 2


def test_an_entrys_error_does_not_grow_with_its_neighbours_gradients() -> None:
    """exp_avg / rms is what an update is made of, and it comes back as well for the smallest gradient."""
    rms = of_all_sizes(BLOCK, octaves=OCTAVES - 2)
    exp_avg = rms * signs(BLOCK) * torch.rand(BLOCK, generator=torch.Generator().manual_seed(2))
    moments = EightBitMoments.zeros(BLOCK, device=CPU)
    moments.pack_(exp_avg.clone(), rms**2, dither=golden_dither(0, BLOCK, step=1, device=CPU))
    back, back_sq = moments.unpack()
    # A hundredth and a level of the block's largest ratio, which is at most 1.
    assert (back / back_sq.sqrt() - exp_avg / rms).abs().max() <= 0.01 + (LEVEL - 1)
    assert (back - exp_avg).abs().div(rms).max() <= 0.01
