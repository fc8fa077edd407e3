"""A look at a few tokens: do rows decoded together get the logits of each row alone?"""

import inspect
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from allo.console import say
from allo.errors import UserError
from allo.models.policy import rounding

# Logits with a cache that differ more from those of whole forward passes are not a matter of rounding.
_BROKEN = 0.5
# In bf16 a model may differ from itself by more than its rounding (Gemma 3: .08). Rows together may differ twice as much,
# but no more than so many times the rounding.
_NOISIEST = 4
_STEPS = 3


class Rows(Protocol):
    """Rows that are decoded together: `SharedPrompts` or `RepeatedPrompts`, with two rows per prompt."""

    def admit(self, prompts: list[list[int]]) -> Tensor: ...

    def step(self, token_ids: Tensor) -> Tensor: ...


def cache_argument(kind: type[PreTrainedModel]) -> str:
    """Return the name under which a class of models takes a cache.

    Raises `UserError` for a class that takes none, or one of its own.
    """
    names = inspect.signature(kind.forward).parameters
    found = [name for name in ("past_key_values", "cache_params") if name in names]
    if not found or not kind._supports_default_dynamic_cache():
        raise UserError(
            f"{kind.__name__} does not decode with transformers' `DynamicCache`, so allo cannot sample from it or evaluate "
            "it. Use a model that does, such as Llama, Qwen3.5 or Mamba 2."
        )
    return found[0]


_FAULTS: WeakKeyDictionary[PreTrainedModel, dict[Hashable, str | None]] = WeakKeyDictionary()


def fault(
    model: PreTrainedModel,
    way: Hashable,
    begin: Callable[[], AbstractContextManager[Rows]],
    *,
    lengths: Sequence[int] = (7, 12),
) -> tuple[str | None, bool]:
    """Return how a way to decode fails on prompts of these lengths (None if it works), and whether it was tried just now.

    Two prompts get two continuations of three tokens each. Their logits must equal those of each row alone, as
    transformers' `generate` computes them. The tolerance is rounding, or twice the difference between a step with a
    cache and a whole forward pass. No random number is drawn. The result is kept for each model and way.
    """
    known = _FAULTS.setdefault(model, {})
    is_new = way not in known
    if is_new:
        known[way] = _fault(model, begin, lengths)
    return known[way], is_new


@torch.inference_mode()
def _fault(
    model: PreTrainedModel, begin: Callable[[], AbstractContextManager[Rows]], lengths: Sequence[int]
) -> str | None:
    vocabulary = model.config.get_text_config().vocab_size
    ids = (torch.arange(1, 35) * 7919 % vocabulary).tolist()  # from all over the vocabulary
    prompts = [ids[: lengths[0]], ids[7 : 7 + lengths[1]]]
    steps = torch.tensor(ids[19:31], device=model.device).view(_STEPS, 4)
    texts = [prompts[row // 2] + steps[:, row].tolist() for row in range(4)]
    try:
        with begin() as rows:
            after_prompt = rows.admit(prompts).repeat_interleave(2, dim=0)
            ours = torch.stack([after_prompt, *map(rows.step, steps)], dim=1).float()
        cached, whole = (
            torch.stack([_alone(model, text, cached=cached) for text in texts]).float()
            for cached in (True, False)
        )
    except UserError:
        raise
    except Exception as error:  # raised by the model's code
        return f"fails in its code ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    # NaN is a fault too, so differences are held against `<=`.
    noise, allowed = _difference(cached, whole), rounding(model.dtype)
    bound = min(max(allowed, 2 * noise), _NOISIEST * allowed)
    if not _difference(ours, cached) <= bound:
        return "gives other logits"
    if not noise <= _BROKEN:
        return "gives other logits than whole forward passes"
    if noise > allowed:
        say(
            f"{type(model).__name__}: transformers' steps with a cache give other logits than whole forward passes, so "
            "samples follow slightly other probabilities than those that are trained"
        )
    return None


def _alone(model: PreTrainedModel, text: list[int], *, cached: bool) -> Tensor:
    """Return the logits [4, vocabulary] of a row alone after its prompt and after each further token."""
    ids = torch.tensor([text], device=model.device)
    if not cached:
        return model(input_ids=ids, use_cache=False).logits[0, -_STEPS - 1 :]
    cache = {cache_argument(type(model)): DynamicCache(config=model.config)}
    positions = torch.arange(len(text), device=model.device)[None]
    lengths = [len(text) - _STEPS] + [1] * _STEPS
    logits = [
        model(input_ids=part, position_ids=places, use_cache=True, **cache).logits[0, -1:]
        for part, places in zip(ids.split(lengths, dim=1), positions.split(lengths, dim=1), strict=True)
    ]
    return torch.cat(logits)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Return how much logits differ, as a share of their norm about their mean."""
    centred = theirs - theirs.mean(-1, keepdim=True)
    return float((ours - theirs).norm() / centred.norm())
