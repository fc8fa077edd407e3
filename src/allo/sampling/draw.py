"""Choice of a token from logits: the most probable one, or one drawn from the nucleus."""

import torch
from torch import Tensor

CANDIDATES = 128  # tokens that usually hold the nucleus; otherwise the whole row is sorted
VALUES_IN_CACHE = 2**18  # fp32 values in a CPU core's cache; rows of a larger vocabulary come one by one


def take_most_probable(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Return the most probable ids [rows] of logits [rows, vocabulary]; the uniforms are ignored."""
    return logits.argmax(-1)


def draw(logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """Draw one token a row from softmax(logits / temperature), restricted to its nucleus.

    The nucleus is the smallest set of most probable tokens whose probability reaches `top_p`. A token is
    drawn by inverting the cumulative distribution over it, in fp32.

    Args:
        logits: [rows, vocabulary], any floating dtype.
        uniforms: [rows] float32 in [0, 1).

    Returns:
        [rows] int64 token ids.
    """
    if logits.device.type != "cpu":
        return _draw(logits, uniforms, temperature=temperature, top_p=top_p)
    num_rows = max(1, VALUES_IN_CACHE // logits.shape[1])
    parts = zip(logits.split(num_rows), uniforms.split(num_rows), strict=True)
    return torch.cat([_draw(*part, temperature=temperature, top_p=top_p) for part in parts])


def _draw(logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float) -> Tensor:
    probs = (logits.float() / temperature).softmax(-1)
    if top_p == 1:
        cumulative = probs.cumsum(-1)
        return _invert(cumulative, cumulative[:, -1:], uniforms)
    # On an accelerator, sorting is cheaper than waiting to learn whether the candidates suffice.
    num_candidates = min(CANDIDATES, probs.shape[1]) if probs.device.type == "cpu" else probs.shape[1]
    ids, reached = _draw_from_top(probs, uniforms, top_p=top_p, num_candidates=num_candidates)
    if num_candidates < probs.shape[1]:
        wide = (reached < top_p).nonzero().squeeze(-1)
        if len(wide):
            ids[wide], _ = _draw_from_top(
                probs[wide], uniforms[wide], top_p=top_p, num_candidates=probs.shape[1]
            )
    return ids


def _draw_from_top(
    probs: Tensor, uniforms: Tensor, *, top_p: float, num_candidates: int
) -> tuple[Tensor, Tensor]:
    """Return ids [rows] drawn from the nucleus among the candidates, and the candidates' probability [rows]."""
    top, ids = probs.topk(num_candidates)
    cumulative = top.cumsum(-1)
    last = (cumulative[:, :-1] < top_p).sum(-1, keepdim=True)
    index = _invert(cumulative, cumulative.gather(-1, last), uniforms)
    return ids.gather(-1, index[:, None]).squeeze(-1), cumulative[:, -1]


def _invert(cumulative: Tensor, mass: Tensor, uniforms: Tensor) -> Tensor:
    """Return the first index whose cumulative probability exceeds uniforms * mass; mass [rows, 1]."""
    # If rounded up to the mass itself, it would select a token behind the last that has any probability.
    target = torch.minimum(uniforms[:, None] * mass, torch.nextafter(mass, torch.zeros_like(mass)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)
