"""Attention by blocks gives the numbers and gradients of torch's kernel with the same mask."""

import pytest
import torch
from test_groups import pair_rows
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from allo.models import block_attention
from allo.models.block_attention import BlockMask, blocks_of, mask_of
from allo.models.collate import PairCollator, grouped
from allo.models.policy import per_token_logps
from tiny_families import family_model

# Two rows: a prompt of 4 with completions of 3 and 1, and one of 1 with completions of 1 and 5, then padding.
SEGMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2], [0, 1, 2, 2, 2, 2, 2, -1]], dtype=torch.int16)


def states(dtype: torch.dtype, *, values: int = 8) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, 8, size, dtype=dtype).requires_grad_() for size in (8, 8, values)]


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("values", [8, 5])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.03)]
)
def test_blocks_are_the_kernel_with_a_mask(
    dtype: torch.dtype, tolerance: float, values: int, scale: float | None
) -> None:
    given = states(dtype, values=values)
    own = SEGMENTS[:, None, :, None] >= 0  # the padding's output does not matter
    weights = torch.randn(2, 3, 8, values, dtype=dtype) * own
    found = []
    for attn_mask in (BlockMask.of(SEGMENTS, dtype), mask_of(SEGMENTS, dtype)):
        out = scaled_dot_product_attention(*given, attn_mask=attn_mask, scale=scale)
        assert type(out) is Tensor
        found.append([out * own, *torch.autograd.grad((out * weights).sum(), given)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(1, theirs.abs().max().item()))


def test_blocks_cover_every_score_that_counts_and_no_other() -> None:
    """A block's queries see the prompt's columns and their own up to themselves."""
    seen = torch.zeros(2, 8, 8, dtype=torch.bool)
    for block in blocks_of(SEGMENTS):
        for column in range(block.start, block.end):
            seen[block.row, column, : block.prompt] = True
            seen[block.row, column, block.start : column + 1] = True
    expected = mask_of(SEGMENTS, torch.float32)[:, 0] == 0
    expected[SEGMENTS < 0] = False
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_a_model_computes_the_blocks_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = family_model(family), PairCollator(0, shared_prefix=True)(grouped(pair_rows()))
    applied = []
    apply = block_attention._BlockAttention.apply
    monkeypatch.setattr(
        block_attention._BlockAttention, "apply", lambda *args: applied.append(0) or apply(*args)
    )
    by_blocks = per_token_logps(model, batch)
    assert len(applied) == model.config.num_hidden_layers
    monkeypatch.setattr(BlockMask, "of", mask_of)
    torch.testing.assert_close(by_blocks, per_token_logps(model, batch), rtol=0, atol=1e-5)
    assert len(applied) == model.config.num_hidden_layers


def test_a_mask_is_a_whole_one_for_everything_else() -> None:
    mask, whole = BlockMask.of(SEGMENTS, torch.float32), mask_of(SEGMENTS, torch.float32)
    assert mask.shape == whole.shape and mask.dtype == whole.dtype
    with torch._C.DisableTorchFunctionSubclass():
        assert mask.untyped_storage().nbytes() == 4
    for change in (
        lambda one: one[:, :, :, :5],
        lambda one: one + 1,
        torch.clone,
        lambda one: torch.cat([one, one]),
    ):
        changed = change(mask)
        assert type(changed) is Tensor
        assert torch.equal(changed, change(whole))
    query, key, value = states(torch.float32)
    # Grouped keys are left to the kernel.
    fewer = {"key": key[:, :1], "value": value[:, :1], "enable_gqa": True}
    ours, theirs = (scaled_dot_product_attention(query, attn_mask=one, **fewer) for one in (mask, whole))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
