"""Per-token log-probs, chunked over the vocabulary head.

Only completion positions pass the head, `chunk` of them at a time, and again in the backward pass. So no
[batch, length, vocabulary] tensor exists. With a vocabulary of V, the extra memory is about 12 * chunk * V bytes.
Measures of the distributions are taken from the same chunks, in the same memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Logits of one chunk take at most this many fp32 bytes.
_CHUNK_BYTES = 1 << 25
MEASURES = ("entropy", "mean logit", "is most probable")
"""Numbers for each token, of the distribution that predicts it."""


@dataclass(frozen=True)
class Head:
    """A vocabulary head: logits = softcap(scale * (hidden @ weight.T + bias)).

    `weight` [V, H] and `bias` [V] or None; `softcap` 0 means none (Gemma 2: cap * tanh(x / cap)).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, [N, H] -> [N, V], in fp32 (fp64 for an fp64 model).

        As in the models themselves, hidden states of another dtype (fp32 residuals of Mamba 2) take the weight's.
        """
        logits = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


def completion_logps(
    hidden: Tensor, head: Head, sources: Tensor, targets: Tensor, completion_mask: Tensor
) -> Tensor:
    """Return log pi(y_t | x, y_<t) of completions' tokens: [C, L] fp32 (fp64 for an fp64 model), 0 outside the mask.

    hidden [..., H]: the last hidden states. sources [C, L] int64: for each token, the index of the flattened hidden state
    that predicts it. targets [C, L] int64: the tokens. completion_mask [C, L] bool.
    """
    return measured_logps(hidden, head, sources, targets, completion_mask, measured=False)[0]


def measured_logps(
    hidden: Tensor,
    head: Head,
    sources: Tensor,
    targets: Tensor,
    completion_mask: Tensor,
    *,
    measured: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return `completion_logps`, and the sums of `MEASURES` over each completion's tokens: [C, 3], without gradient."""
    states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, sources[completion_mask])
    logps, measures = _logps(states, head, targets[completion_mask], measured=measured)
    sums = measures.new_zeros(len(targets), len(MEASURES))
    if measured:
        sums.index_add_(0, completion_mask.nonzero()[:, 0], measures)
    return logps.new_zeros(targets.shape).masked_scatter(completion_mask, logps), sums


def token_logps(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Return log-probs [N] of targets [N] int64 after hidden states [N, H], in the dtype of `Head.logits`."""
    return _logps(hidden, head, targets, measured=False)[0]


def _logps(hidden: Tensor, head: Head, targets: Tensor, *, measured: bool) -> tuple[Tensor, Tensor]:
    """Return the log-probs [N], and their `MEASURES` [N, 3], or nothing of them [0, 3]."""
    # Autocast ends with the forward pass; the backward pass must recompute the very same logits.
    with torch.autocast(hidden.device.type, enabled=False):
        found: tuple[Tensor, Tensor] = _TokenLogps.apply(
            hidden.to(head.weight.dtype), head.weight, head.bias, targets, head.scale, head.softcap, measured
        )
    return found


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float,
        measured: bool,
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight, bias, scale, softcap)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logps = torch.empty(len(targets), dtype=dtype, device=hidden.device)
        measures = logps.new_empty(len(targets) if measured else 0, len(MEASURES))
        for part in _chunks(hidden, len(weight)):
            # On a CPU this is ten times as fast as logsumexp, which makes four passes.
            logits = head.logits(hidden[part])
            distribution = logits.log_softmax(-1)
            logps[part] = distribution.gather(-1, targets[part, None]).squeeze(-1)
            if measured:
                measures[part] = _measures(logits, distribution, targets[part])
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.scale, ctx.softcap = scale, softcap
        ctx.mark_non_differentiable(measures)
        return logps, measures

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        grad, _ = grads
        head = Head(weight, bias, ctx.scale, ctx.softcap)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for part in _chunks(hidden, len(weight)):
            logits = head.logits(hidden[part])
            # d logp / d logits = onehot(target) - softmax
            scale = grad[part, None].to(logits.dtype)
            grad_logits = logits.softmax(-1).mul_(-scale).scatter_add_(1, targets[part, None], scale)
            if head.softcap:
                grad_logits *= 1 - (logits / head.softcap) ** 2
            grad_logits = (grad_logits * head.scale).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.T, hidden[part])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _measures(logits: Tensor, distribution: Tensor, targets: Tensor) -> Tensor:
    """Return `MEASURES` [N, 3] of log-distributions [N, V]; the memory of their `logits` is used again."""
    mean = logits.mean(-1)
    entropy = -torch.linalg.vecdot(torch.exp(distribution, out=logits), distribution)
    return torch.stack([entropy, mean, (distribution.argmax(-1) == targets).to(mean.dtype)], dim=-1)


def _chunks(hidden: Tensor, vocabulary: int) -> list[slice]:
    """Return the parts of the states [N, H] whose logits are computed together."""
    chunk = max(1, _CHUNK_BYTES // (4 * vocabulary))
    parts = [slice(start, start + chunk) for start in range(0, len(hidden), chunk)]
    # In a rehearsal, further parts would only repeat the memory of the second.
    return [*parts[:2], *parts[2:][-1:]] if hasattr(hidden, "fake_mode") else parts
