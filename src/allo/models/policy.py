"""A causal language model as a policy: per-token log-probs without a logits tensor."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from allo.console import say
from allo.errors import UserError
from allo.losses.logps import MEASURES, Head, completion_logps, measured_logps
from allo.models.block_attention import BlockMask, mask_of
from allo.models.collate import Batch, lay_out, pad
from allo.models.load import IN_FORWARD
from allo.models.model_checks import num_positions, rope_length, rope_sides
from allo.weights.finite import check_finite
from allo.weights.places import has_numbers
from allo.weights.shards import named_rows

# The names under which families configure how logits are scaled, divided and capped.
_SCALES = ("logit_scale", "lm_head_multiplier")
_CAPS = ("final_logit_softcapping", "logits_soft_cap")

Given = ParamSpec("Given")
Computed = TypeVar("Computed")


def in_forward(function: Callable[Given, Computed]) -> Callable[Given, Computed]:
    """Let a function of a model, its first argument, run as if it were the model's own forward pass; it calls no other such.

    A sharded model (`models.shards`) has a method for it, which gathers the weights outside its layers, such as the
    vocabulary head.
    """

    @wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Computed:
        as_forward: Callable[..., Computed] | None = getattr(args[0], IN_FORWARD, None)
        if as_forward is None:
            return function(*args, **kwargs)
        # Weights that are gathered in inference mode could not train later.
        learns = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(learns):
            return as_forward(function, *args[1:], **kwargs)

    return run


def rounding(dtype: torch.dtype) -> float:
    """Return how much two computations of the same states may differ, as a share of their norm.

    Rounding moves hidden states by about a hundredth in bf16 and a millionth in fp32; a wrong mask or position, by
    more.
    """
    return max(1e-4, 8 * torch.finfo(dtype).eps)


def head_of(model: PreTrainedModel) -> Head:
    """Return the model's vocabulary head, with the logit scaling that some families apply."""
    output = model.get_output_embeddings()
    config = model.config.get_text_config()
    return Head(
        weight=output.weight,
        bias=getattr(output, "bias", None),
        scale=_first(config, _SCALES) or 1.0 / (_first(config, ("logits_scaling",)) or 1.0),
        softcap=_first(config, _CAPS) or 0.0,
    )


def _first(config: PretrainedConfig, names: tuple[str, ...]) -> float | None:
    """Return the first of these settings that is neither absent nor zero."""
    return next(filter(None, (getattr(config, name, None) for name in names)), None)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Compare `head_of` with the model's own logits on four tokens.

    In a rehearsal, there is nothing to compare. Raises `UserError` for a weight that is NaN or infinite, and for a
    family with logits that `Head` does not know.
    """
    advice = "Load it anew: its file is damaged, or training spoiled it."
    check_finite(named_rows(model), where=type(model).__name__, advice=advice)
    if not has_numbers(head_of(model).weight):
        return
    input_ids = torch.arange(1, 5, device=model.device).unsqueeze(0)
    own = model(input_ids=input_ids, use_cache=False).logits.float()
    ours = _logits(model, {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)})
    difference = (own - ours).abs().max().item()
    if not difference <= rounding(model.dtype) * max(1.0, own.abs().max().item()):
        raise UserError(
            f"{type(model).__name__}: its logits differ by {difference:.3g} from head(hidden states), so this "
            "family transforms them in a way that allo does not know. Use a model with a plain, scaled or "
            "soft-capped head."
        )


@in_forward
def _logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    return head_of(model).logits(_hidden_states(model, batch))


@in_forward
def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Compute the last hidden states [B, T, H] of a batch's rows, in train mode as in eval mode.

    Rows on both sides of `rope_length` do not share a forward pass.
    """
    return _hidden_states(model, batch)


def _hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    body = body_of(model)
    if body.training:
        switch_off_noise(body)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    if "segments" in batch:
        segments = batch["segments"]
        by_blocks = segments.device.type == "cpu" and has_numbers(segments)
        inputs["attention_mask"] = (BlockMask.of if by_blocks else mask_of)(segments, model.dtype)
    sides = [] if "segments" in batch else rope_sides(model.config, batch["attention_mask"])
    if len(sides) < 2:
        hidden: Tensor = body(**inputs, use_cache=False).last_hidden_state
        return hidden
    # Padding counts as length, so each side is cut to its own longest row.
    parts = [
        _widened(
            _hidden_states(model, {name: tensor[rows, :length] for name, tensor in inputs.items()}), batch
        )
        for rows, length in sides
    ]
    order = torch.cat([rows for rows, _ in sides]).argsort()
    return torch.cat(parts)[order]


def _widened(hidden: Tensor, batch: Batch) -> Tensor:
    missing = batch["input_ids"].shape[1] - hidden.shape[1]
    return torch.nn.functional.pad(hidden, (0, 0, 0, missing))


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of the model that computes hidden states, without the vocabulary head."""
    if model.base_model is not model:
        return model.base_model
    # Llama 4's text model has the prefix of its multimodal wrapper.
    return next(part for part in model.children() if isinstance(part, PreTrainedModel))


def switch_off_noise(body: nn.Module) -> None:
    """Put everything inside a model into eval mode, except layers that recompute their activations.

    Dropout is not all that is random in training: routers jitter or draw experts.
    """
    for module in body.modules():
        if not getattr(module, "gradient_checkpointing", False):
            module.training = False


@torch.no_grad()
def shares_prefix(model: PreTrainedModel) -> bool:
    """Return True if this model can read a prompt and several completions as one row (`collate.lay_out`).

    It cannot with windowed attention, recurrent states, flash kernels, without position ids, or if rows may be longer
    than `rope_length`. Otherwise, the hidden states of one row with three completions are compared with those of
    three rows; a model that fails on one row does not share.
    """
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    body = body_of(model)
    if (
        layers != {"full_attention"}
        or windowed
        or model._is_stateful
        or config._attn_implementation not in ("sdpa", "eager")
        or "position_ids" not in inspect.signature(body.forward).parameters
        or rope_length(config) not in (None, num_positions(config))
    ):
        return False
    # Ids from all over the vocabulary: the first ones are special, and rounding affects them more.
    ids = torch.arange(1, 41) * 7919 % config.vocab_size
    prompt, *completions = (part.tolist() for part in ids.split([8, 16, 8, 8]))
    rows = [(prompt, completion) for completion in completions]
    one, several = (
        {name: tensor.to(model.device) for name, tensor in batch.items()}
        for batch in (lay_out(rows, [0] * len(rows), pad_id=0), pad(rows, pad_id=0))
    )
    try:
        together, apart = (
            hidden_states(model, batch).flatten(0, 1)[batch["sources"][batch["completion_mask"]]].float()
            for batch in (one, several)
        )
    except Exception:  # raised by the model's code
        return False
    return bool((together - apart).norm() <= rounding(model.dtype) * apart.norm())


def shares_or_says(model: PreTrainedModel) -> bool:
    """Return `shares_prefix`, and say it of a model that does not."""
    shared = shares_prefix(model)
    if not shared:
        say(
            f"{type(model).__name__}: its attention takes no shared prefix; each completion is read with its prompt"
        )
    return shared


@in_forward
def per_token_logps(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return log pi of each completion token, 0 elsewhere: [C, L] fp32. `batch` is a collator's."""
    return _of_all(batch, completion_logps(_hidden_states(model, batch), head_of(model), *_read(batch)))


@in_forward
def measured_token_logps(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return `per_token_logps`, and `logps.MEASURES` summed over each completion's tokens [C, 3]."""
    logps, measures = measured_logps(_hidden_states(model, batch), head_of(model), *_read(batch))
    return _of_all(batch, logps), _of_all(batch, measures)


@in_forward
def token_entropies(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the entropy in nats of each distribution that predicts a completion token, 0 elsewhere: [C, L] fp32."""
    sources, targets, mask = _read(batch)
    # Measures are sums over completions; each token is read as a completion of its own.
    alone = sources[mask].unsqueeze(1), targets[mask].unsqueeze(1), mask[mask].unsqueeze(1)
    logps, measures = measured_logps(_hidden_states(model, batch), head_of(model), *alone)
    entropies = measures[:, MEASURES.index("entropy")]
    return _of_all(batch, logps.new_zeros(mask.shape).masked_scatter(mask, entropies))


def _read(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return sources, targets and mask of the completions that are read: equal ones of a row once."""
    sources, targets, mask = (batch[name] for name in ("sources", "targets", "completion_mask"))
    if "distinct" not in batch:
        return sources, targets, mask
    return sources[batch["distinct"]], targets[batch["distinct"]], mask[batch["distinct"]]


def _of_all(batch: Batch, of_read: Tensor) -> Tensor:
    """Return the values of all completions from those that are read."""
    return of_read[batch["copies"]] if "copies" in batch else of_read


@torch.inference_mode()
@in_forward
def completion_distributions(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return full log-distributions at the batch's completion tokens, completion by completion: [n, V] fp32.

    For measurements on a few tokens at a time: training never makes this tensor.
    """
    hidden = _hidden_states(model, batch).flatten(0, 1)
    return head_of(model).logits(hidden[batch["sources"][batch["completion_mask"]]]).log_softmax(-1)
