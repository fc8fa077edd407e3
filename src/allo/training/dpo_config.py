"""TRL's `DPOConfig` as settings of our trainers. Fields without an equivalent are refused by name, never ignored.

TRL itself is never imported: a config is recognised by its class.
"""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from allo.errors import UserError, refuse
from allo.losses.needs import LossFunction
from allo.losses.pair_losses import PairSums, bco
from allo.recipe.losses import PAIR_LOSSES
from allo.training.arguments import is_default

Value = TypeVar("Value")


def bco_pair(pairs: PairSums, *, beta: float) -> Tensor:
    """Compute TRL's `bco_pair`: BCO without its running mean."""
    return bco(pairs, beta=beta, delta=0.0)


def robust(pairs: PairSums, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Compute DPO corrected for labels that are wrong with probability eps (arXiv 2403.00409, eq. 10).

    (-(1 - eps) log sigmoid(m) + eps log sigmoid(-m)) / (1 - 2 eps), with the margin m = beta (Delta_c - Delta_r)
    """
    if not 0 <= label_smoothing < 0.5:
        raise UserError(f"label_smoothing is {label_smoothing}: it must be at least 0 and below 0.5.")
    margin = beta * (pairs.chosen_logratios - pairs.rejected_logratios)
    wrong = label_smoothing * logsigmoid(-margin)
    return (wrong - (1 - label_smoothing) * logsigmoid(margin)) / (1 - 2 * label_smoothing)


# TRL's losses that are computed here by the same formula.
LOSSES: dict[str, str | LossFunction] = {
    **{loss.trl: loss.name for loss in PAIR_LOSSES.values() if loss.trl},
    "bco_pair": bco_pair,
    "robust": robust,
}
_SMOOTHED = {"robust"}  # the only one of these that reads label_smoothing


@dataclass(frozen=True)
class Field:
    """The fate of a field of `DPOConfig`, in words; docs/migrating.md is written from these.

    `only`: the values that are valid here; if empty, its value is read, or compared with model and tokenizer.
    """

    fate: Literal["honoured", "not needed", "refused"]
    words: str
    only: tuple[Any, ...] = ()


TRL = "1.16"  # the version whose fields these are
_SAME_REFERENCE = "the reference is always the model as given"
FIELDS = {
    "beta": Field("honoured", "`beta`"),
    "loss_type": Field("honoured", f"`loss`: {', '.join(LOSSES)}; any other, or several, are refused"),
    "label_smoothing": Field(
        "honoured", "with the loss `robust`; refused with the others, where TRL would ignore it"
    ),
    "max_length": Field("honoured", "completions lose their end, as in TRL; None: nothing is cut"),
    "precompute_ref_log_probs": Field("honoured", "`reference`: precomputed"),
    "router_aux_loss_coef": Field("honoured", "at 0.0; otherwise refused, as allo adds no auxiliary loss"),
    "pad_token": Field("honoured", "for a tokenizer without a pad token; another one is refused"),
    "model_init_kwargs": Field(
        "honoured",
        "`dtype` of a model that is given by its name; other keys are refused, as allo loads in its own way",
    ),
    "trust_remote_code": Field("honoured", "for a model that is given by its name"),
    "disable_dropout": Field(
        "not needed", "policy and reference must see the same network, so dropout is always off", (True,)
    ),
    "dataset_num_proc": Field("not needed", "rows are tokenized in this process", (None,)),
    "truncation_mode": Field(
        "refused",
        "allo cuts the beginning of the prompt, the same for both answers and never BOS, if max_length is given to the "
        "trainer and not to the config",
        ("keep_start",),
    ),
    "padding_free": Field(
        "not needed",
        "rows are padded to the longest of their micro-batch; shared_prefix saves more",
        (False,),
    ),
    "pad_to_multiple_of": Field(
        "not needed", "rows are padded to the longest of their micro-batch", (None, "auto")
    ),
    "precompute_ref_batch_size": Field(
        "not needed",
        "the reference is computed in the micro-batches of training, so that both round alike",
        (None,),
    ),
    "loss_weights": Field("refused", "one loss is trained, with weight 1", (None, [1.0])),
    "ld_alpha": Field("refused", "no loss here weighs the tokens of the longer answer", (None, 1.0)),
    "f_divergence_type": Field("refused", "the losses here use the reverse KL divergence", ("reverse_kl",)),
    "f_alpha_divergence_coef": Field("refused", "the losses here use the reverse KL divergence", (0.5,)),
    "use_weighting": Field("refused", "pairs are not weighted here", (False,)),
    "discopop_tau": Field("refused", "there is no discopop loss here", (0.05,)),
    "activation_offloading": Field(
        "refused", "activations stay on the device; activation_checkpointing saves memory", (False,)
    ),
    "sync_ref_model": Field("refused", _SAME_REFERENCE, (False,)),
    "ref_model_mixup_alpha": Field("refused", _SAME_REFERENCE, (0.6,)),
    "ref_model_sync_steps": Field("refused", _SAME_REFERENCE, (512,)),
}
"""Every field that TRL's `DPOConfig` has beside those of `TrainingArguments`."""


@dataclass(frozen=True)
class OfConfig:
    """A setting from a config. `said`: its value differs from the config's default."""

    field: str
    value: Any
    said: bool


Settings = Mapping[str, OfConfig]
LARGEST = 1 << 31  # longer than any row


def settings_of(
    args: TrainingArguments | None,
    *,
    trainer: str,
    takes_config: bool,
    losses: Collection[str] = (),
    beside: Iterable[str] = (),
) -> Settings:
    """Return the trainer's settings that a TRL config holds; none for plain `TrainingArguments`.

    `losses` are the `loss_type`s that the trainer has; if empty, `loss_type` must be the default. Raises `UserError`
    for another trainer's config, and for fields that would be ignored, unless their values have no effect; `beside` are
    other faults to name with them.
    """
    if args is None:
        refuse(beside)
        return {}
    if not isinstance(args, TrainingArguments):
        raise UserError(
            f"args is a {type(args).__name__}: give TrainingArguments or trl.DPOConfig. The order is model, args, "
            "train_dataset, processing_class; TRL's second argument, ref_model, is not needed."
        )
    name = _of_trl(args)
    if name is not None and not (takes_config and name == "DPOConfig"):
        wanted = " or trl.DPOConfig" if takes_config else ""
        raise UserError(
            f"{name}: it has another trainer's settings, which {trainer} would ignore. "
            f"Give transformers.TrainingArguments{wanted}."
        )
    refuse([*beside, *config_faults(args, trainer=trainer, losses=losses)])
    if name is None:
        return {}
    return _loss_of(args, losses) | {
        setting: OfConfig(field, value, said=not is_default(args, field))
        for setting, field, value in (
            ("beta", "beta", args.beta),
            ("max_length", "max_length", LARGEST if args.max_length is None else args.max_length),
            (
                "reference",
                "precompute_ref_log_probs",
                "precomputed" if args.precompute_ref_log_probs else "swap",
            ),
        )
    }


def _of_trl(args: TrainingArguments) -> str | None:
    """Return the name of TRL's class that `args` are an instance of, or None."""
    for each in type(args).__mro__:
        if each.__module__.partition(".")[0] == "trl":
            return each.__name__
    return None


def config_faults(args: TrainingArguments, *, trainer: str, losses: Collection[str]) -> Iterator[str]:
    """Yield the faults of fields that `TrainingArguments` has not: those that would be ignored, and an absent loss."""
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    kind, is_trl = type(args).__name__, _of_trl(args) is not None
    for name in (one.name for one in dataclasses.fields(args)):
        value, field = getattr(args, name), FIELDS.get(name) if is_trl else None
        if name in inherited:
            continue
        if field is not None:
            if field.only and value not in field.only:
                yield f"{kind}.{name} is {value!r}: {field.words}. Remove it."
        elif not is_default(args, name):
            yield f"{kind}.{name} is {value!r}: allo does not know this field, and would ignore it. Remove it."
    if is_trl:
        yield from _loss_faults(args, losses, trainer=trainer)


def _loss_type(args: TrainingArguments) -> str:
    named = args.loss_type
    return named if isinstance(named, str) else " and ".join(map(str, named))


def _loss_faults(args: TrainingArguments, losses: Collection[str], *, trainer: str) -> Iterator[str]:
    kind, loss_type, smoothing = type(args).__name__, _loss_type(args), args.label_smoothing
    if loss_type not in losses and (losses or loss_type != "sigmoid"):
        own = (
            f"it has {', '.join(losses)}, and functions as `loss`"
            if losses
            else "its losses are given as `loss`"
        )
        yield f"{kind}.loss_type is {args.loss_type!r}: {trainer} has no such loss; {own}. Change it."
    if smoothing and loss_type not in _SMOOTHED & set(losses):
        yield (
            f"{kind}.label_smoothing is {smoothing}: TRL's {loss_type!r} loss does not read it. Remove it, take the "
            "loss 'robust', or give loss_settings={'label_smoothing': ...} to ImproveTrainer with its loss 'dpo'."
        )


def _loss_of(args: TrainingArguments, losses: Collection[str]) -> dict[str, OfConfig]:
    if not losses:
        return {}
    loss_type, smoothing = _loss_type(args), args.label_smoothing
    found = {"loss": OfConfig("loss_type", LOSSES[loss_type], loss_type != "sigmoid")}
    if loss_type in _SMOOTHED:
        found["loss_settings"] = OfConfig("label_smoothing", {"label_smoothing": smoothing}, bool(smoothing))
    return found


def check_held(args: TrainingArguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse an auxiliary router loss, and a pad token other than the tokenizer's."""
    if _of_trl(args) is None:
        return
    kind, config = type(args).__name__, model.config.get_text_config()
    weight = getattr(args, "router_aux_loss_coef", None)
    if weight is None and hasattr(config, "output_router_logits"):
        weight = getattr(config, "router_aux_loss_coef", None)
    if weight:
        raise UserError(
            f"{kind}.router_aux_loss_coef: TRL would add {weight} times the router's "
            "auxiliary loss; allo adds none. Set it to 0.0."
        )
    pad_token = getattr(args, "pad_token", None)
    if pad_token not in (None, tokenizer.pad_token):
        raise UserError(
            f"{kind}.pad_token is {pad_token!r}, and the tokenizer's {tokenizer.pad_token!r}. "
            "Set tokenizer.pad_token, and remove it."
        )


def taken(name: str, given: Value | None, settings: Settings, *, default: Value) -> Value:
    """Return the setting given to the trainer, otherwise the config's, otherwise the default.

    Raises `UserError` if the trainer and the config were given different values.
    """
    found = settings.get(name)
    if given is None:
        return default if found is None else found.value
    if found is not None and found.said and found.value != given:
        raise UserError(
            f"{name}: the trainer was given {given!r}, and the config has {found.field} {found.value!r}. "
            "Give one of the two."
        )
    return given
