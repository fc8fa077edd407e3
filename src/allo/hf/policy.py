"""A causal language model as a policy: per-token log-probs without a logits tensor."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allo.core.logps import Head, completion_logps
from allo.errors import UserError

# bf16 logits of magnitude ~10 are 2**-5 apart; a missing scale or cap is off by far more.
_HEAD_TOLERANCE = 0.1


def head_of(model: PreTrainedModel) -> Head:
    """The model's vocabulary head, with the scalings that some families put behind it."""
    output = model.get_output_embeddings()
    config = model.config.get_text_config()
    return Head(
        weight=output.weight,
        bias=getattr(output, "bias", None),
        scale=getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
    )


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Hold `head_of` against the model's own logits on four tokens.

    Raises `UserError` for a family that does more to its logits than `Head` knows.
    """
    input_ids = torch.arange(1, 5, device=model.device).unsqueeze(0)
    own = model(input_ids=input_ids, use_cache=False).logits.float()
    ours = head_of(model).logits(hidden_states(model, input_ids, torch.ones_like(input_ids))[0])
    difference = (own[0] - ours).abs().max().item()
    if not difference <= _HEAD_TOLERANCE * max(1.0, own.abs().max().item()):
        raise UserError(
            f"{type(model).__name__}: its logits differ by {difference:.3g} from head(hidden states), so this "
            "family transforms them in a way that allo does not know. Use a model with a plain, scaled or "
            "soft-capped head."
        )


def hidden_states(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states [B, T, H] of right-padded rows [B, T]."""
    hidden: Tensor = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    return hidden


def per_token_logps(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """log pi of each completion token, 0 elsewhere: [B, T] fp32.

    `batch` is `collate.pad`'s: input_ids, attention_mask, completion_mask.
    """
    hidden = hidden_states(model, batch["input_ids"], batch["attention_mask"])
    return completion_logps(hidden, head_of(model), batch["input_ids"], batch["completion_mask"])


@torch.inference_mode()
def completion_distributions(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Full log-distributions at the batch's completion tokens, row by row: [n, V] fp32.

    For measuring, on few tokens at a time: this is the tensor that training never makes.
    """
    hidden = hidden_states(model, batch["input_ids"], batch["attention_mask"])
    return head_of(model).logits(hidden[:, :-1][batch["completion_mask"][:, 1:]]).log_softmax(-1)
