"""Attention of rows with several completions on a CPU, block by block: hidden scores are not computed.

torch's kernel computes all T * T scores of a row, whatever a mask hides. Its backward pass takes four to six times as
long as its forward pass in bf16, and products of matrices half of that (benchmarks/speed/attention.py). So each
segment's forward pass is the kernel's, and its backward pass consists of products.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Block(NamedTuple):
    """A segment of a row: its tokens in columns `start` to `end` see the first `prompt` columns and themselves."""

    row: int
    start: int
    end: int
    prompt: int

    def queries(self, states: Tensor) -> Tensor:
        """Return the segment's states [heads, n, size] out of all [R, heads, T, size]."""
        return states[self.row, :, self.start : self.end]

    def keys(self, states: Tensor) -> Tensor:
        """Return the states that the segment sees: the prompt's, then its own."""
        own = self.queries(states)
        if not self.prompt:
            return own
        return torch.cat([states[self.row, :, : self.prompt], own], dim=1)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Return what is added to the scores [n, prompt + n]: own later tokens are hidden."""
        length = self.end - self.start
        later = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype).triu_(1)
        return torch.cat([later.new_zeros(length, self.prompt), later], dim=1)


def blocks_of(segments: Tensor) -> list[Block]:
    """Return the blocks of rows with `segments` [R, T] (`collate.lay_out`), without the padding."""
    return [block for row, own in enumerate(segments) for block in _blocks_of_row(row, own)]


def _blocks_of_row(row: int, segments: Tensor) -> Iterator[Block]:
    numbers, lengths = (found.tolist() for found in segments.unique_consecutive(return_counts=True))
    start = 0
    for number, length in zip(numbers, lengths, strict=True):
        if number >= 0:
            yield Block(row, start, start + length, lengths[0] if number else 0)
        start += length


def mask_of(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask [R, 1, T, T] of rows with `segments`: a token sees earlier ones of the prompt and its own segment.

    It is added to the scores, a form that every attention except the flash kernels accepts.
    """
    column = torch.arange(segments.shape[1], device=segments.device)
    sees = (segments[:, :, None] == segments[:, None, :]) | (segments == 0)[:, None, :]
    hides = ~(sees & (column[:, None] >= column))[:, None]
    added = torch.zeros(hides.shape, dtype=dtype, device=segments.device)
    return added.masked_fill_(hides, torch.finfo(dtype).min)


class BlockMask(Tensor):
    """A mask as of `mask_of` that takes no memory, made by `of`.

    torch's attention, called with it, computes the blocks alone. Every other operation gets the whole mask.
    """

    segments: Tensor
    blocks: Sequence[Block]

    @classmethod
    def of(cls, segments: Tensor, dtype: torch.dtype) -> "BlockMask":
        rows, columns = segments.shape
        found = torch.zeros((), dtype=dtype).expand(rows, 1, columns, columns).as_subclass(cls)
        found.segments, found.blocks = segments, blocks_of(segments)
        return found

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        mask = given.get("attn_mask")
        if func is scaled_dot_product_attention and isinstance(mask, cls) and len(args) == 3:
            plain = not (given.get("dropout_p") or given.get("is_causal") or given.get("enable_gqa"))
            if plain and args[0].shape[1] == args[1].shape[1]:
                return _BlockAttention.apply(*args, mask.blocks, given.get("scale"))
        with torch._C.DisableTorchFunctionSubclass():
            if func in _WITHOUT_NUMBERS:
                return func(*args, **given)
            return func(*map(_whole, args), **{name: _whole(value) for name, value in given.items()})


_WITHOUT_NUMBERS = {
    *(Tensor.dim, Tensor.size, Tensor.is_floating_point),
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad")
    ),
}


def _whole(value: Any) -> Any:
    if isinstance(value, BlockMask):
        return mask_of(value.segments, value.dtype)
    return type(value)(map(_whole, value)) if type(value) in (list, tuple) else value


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float | None
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.blocks = blocks
        ctx.scale = query.shape[-1] ** -0.5 if scale is None else scale
        out = query.new_zeros(*query.shape[:3], value.shape[-1])
        for block in blocks:
            own, mask = block.queries(query), block.mask(query.dtype)
            keys, values = block.keys(key), block.keys(value)
            found = scaled_dot_product_attention(
                own[None], keys[None], values[None], attn_mask=mask, scale=ctx.scale
            )
            block.queries(out).copy_(found[0])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        (grad,) = grads
        of_query, of_key, of_value = (torch.zeros_like(states) for states in (query, key, value))
        for block in ctx.blocks:
            own, keys, values = block.queries(query), block.keys(key), block.keys(value)
            slope = block.queries(grad)
            shares = torch.baddbmm(block.mask(query.dtype), own, keys.mT, alpha=ctx.scale).softmax(-1)
            of_scores = torch.ops.aten._softmax_backward_data.default(
                slope @ values.mT, shares, -1, shares.dtype
            )
            block.queries(of_query).copy_((of_scores @ keys).mul_(ctx.scale))
            _add(of_key, block, (of_scores.mT @ own).mul_(ctx.scale))
            _add(of_value, block, shares.mT @ slope)
        return of_query, of_key, of_value, None, None


def _add(whole: Tensor, block: Block, of_seen: Tensor) -> None:
    """Add the gradient of the states that a block sees to that of all."""
    block.queries(whole).add_(of_seen[:, block.prompt :])
    if block.prompt:
        whole[block.row, :, : block.prompt] += of_seen[:, : block.prompt]
