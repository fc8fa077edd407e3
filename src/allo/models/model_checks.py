"""Checks of a model's folder that read none of its weights: its files, configuration and stored dtypes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.integrations.gguf.reader import read_gguf_metadata

from allo.errors import UserError, and_more
from allo.weights.checkpoints import DENSE, Checkpoint, read_config_json
from allo.weights.layout import Layout

DENSE_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}

# Keys with which configurations declare quantised weights.
_QUANTISED = ("quantization_config", "compression_config", "quantization")
# Names of tensors that only quantised weights have.
_SCALES = re.compile(
    r"(_scale|_scale_inv|_scale_\d|\.scales?|_zero_point|\.qzeros|\.qweight|\.g_idx|\.absmax|\.SCB|_packed|_blocks|_scales"
    r"|\.quant_map|\.nested_quant_map|_global_scale)$|quant_state"
)
# Tables that older checkpoints store and that models now compute.
_TABLES = re.compile(r"(rotary_emb\.inv_freq|position_ids|attn\.masked_bias|attention\.masked_bias)$")

_DEPTH = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_LAYER = re.compile(r"blk\.(\d+)\.")  # in a GGUF file
# Limits far beyond any existing model: a larger one would fill the memory before it failed.
_LARGEST = {
    "vocab_size": 1 << 26,
    **dict.fromkeys(_DEPTH, 2000),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 1 << 20),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim"), 1 << 24),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "num_key_value_heads"), 1 << 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 1 << 31),
}

# The names that configurations use for the number of positions.
_POSITIONS = (
    *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length"),
    *("max_sequence_length", "max_target_positions", "seq_length"),
)
# Models without a position table or rotation, or with a recurrent state instead.
_UNLIMITED = {"bloom", "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"}
# Models whose position tables begin after the padding row.
_FROM_PADDING = {
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text")
}


def check_config(folder: Path, ref: str | Path) -> None:
    """Raise UserError if config.json declares quantised weights or sizes that no model can have."""
    raw = read_config_json(folder)
    for inner in (raw, *(part for part in raw.values() if isinstance(part, dict))):
        for key in _QUANTISED:
            if inner.get(key) is not None:
                settings = inner[key] if isinstance(inner[key], dict) else {}
                method = settings.get("quant_method") or settings.get("quant_algo") or "an unnamed method"
                raise UserError(
                    f"{ref}: its weights are quantised (`{key}` in config.json: {method}). {DENSE}"
                )
        for key, largest in _LARGEST.items():
            for value in inner[key] if isinstance(inner.get(key), list) else [inner.get(key)]:
                # transformers itself reports values of other types.
                if isinstance(value, int | float) and not 0 <= value <= largest:
                    raise UserError(
                        f"{ref}: config.json says {key}: {value}, and no model has fewer than 0 or more than "
                        f"{largest:,}: download it again, or correct it."
                    )


def doubtful_sizes(folder: Path) -> str:
    """Return "; its config.json says KEY: VALUE" for each size that is not a positive whole number, otherwise ""."""
    try:
        raw = read_config_json(folder)
    except UserError:
        return ""
    wrong = [
        f"{key}: {raw[key]!r}"[:80]
        for key in _LARGEST
        if raw.get(key) is not None
        and not isinstance(raw[key], list)
        and (type(raw[key]) is not int or raw[key] <= 0)
    ]
    return f"; its config.json says {', '.join(wrong)}" if wrong else ""


def check_depth(folder: Path, ref: str | Path) -> None:
    """Raise UserError if config.json has more layers than the files have tensors: building them would take hours."""
    config, num_stored = read_config_json(folder), len(Checkpoint.open(folder).stored)
    for key in _DEPTH:
        if isinstance(config.get(key), int) and config[key] > num_stored:
            raise UserError(
                f"{ref}: config.json says {key}: {config[key]}, but the files hold {num_stored} tensors: the two are not of "
                "one model; download the folder again."
            )


def use_conversions(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """Mark the conversions that loading tensors of these names uses; a layout, and what is saved, depend on them.

    They are those that `from_pretrained` marks, and the body's prefix if it adds that to every name of the body: it
    reads GPT-2's `wte.weight` as `transformer.wte.weight`, and by itself would save it so.

    Returns, for each stored name, the name that it has in the model: of several, the first.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    known, prefix = model.state_dict(), model.base_model_prefix
    places, bare = {}, {}
    for name in sorted(stored, key=dot_natural_key):
        bare[name], _ = rename_source_key(name, renamings, converters)
        places[name], _ = rename_source_key(name, renamings, converters, prefix, known)
        if places[name] not in known and name in known:
            places[name], _ = rename_source_key(name, [], [], prefix, known)
    model._weight_conversions = [one for one in conversions if one.was_used()]
    body = [name for name, place in places.items() if place.startswith(f"{prefix}.")]
    if body and all(places[name] == f"{prefix}.{bare[name]}" for name in body):
        model._weight_conversions.append(PrefixChange(prefix_to_add=prefix))
    return places


def check_stored(model: PreTrainedModel, folder: Path, ref: str | Path, *, advice: str) -> None:
    """Raise UserError unless the folder's tensors can be the weights of `model`, which may be on the meta device.

    Dtypes must be dense floats, names and shapes those that the model is stored with, with or without the body's
    prefix. No weight of the model may be missing, and conversions must be bijections. Copies of a tied weight must be
    equal; no other data are read.
    """
    checkpoint = Checkpoint.open(folder)
    stored = checkpoint.stored
    for name, entry in stored.items():
        if entry.dtype not in DENSE_DTYPES and not _is_harmless(name, model):
            raise UserError(
                f"{ref}: tensor {name} is stored as {str(entry.dtype).removeprefix('torch.')}: quantised weights. {DENSE}"
            )
    places, live = use_conversions(model, stored), model.state_dict()
    layout = Layout.whole(model)
    known = {name: tuple(tensor.shape) for name, tensor in live.items()} | layout.shapes
    found = {name: known.keys() & _variants(name, model) for name in sorted(stored)}
    for name, place in ((name, place) for name, names in found.items() for place in names):
        if known[place] != stored[name].shape:
            raise UserError(
                f"{ref}: tensor {name} has shape {list(stored[name].shape)} in {stored[name].file.name}, but config.json "
                f"makes it {list(known[place])}: the two are not of one model; download the folder again."
            )
    tied = _tied_names(model)
    present = {place for names in found.values() for place in names}
    refuse_absent(_absent(model, layout, tied, present, set(places.values())), model, ref, advice=advice)
    unplaced = {name for name, names in found.items() if not names and places[name] not in live}
    refuse_left_over({name for name in unplaced if not _is_harmless(places[name], model)}, model, ref)
    layout.check()
    for names in (names for names in tied if len(names) > 1):
        copies = [name for name in stored if places[name] in names]
        _refuse_unequal_copies(checkpoint, sorted(copies, key=lambda name: names.index(places[name])), ref)


def _absent(
    model: PreTrainedModel, layout: Layout, tied: list[list[str]], present: set[str], placed: set[str]
) -> list[str]:
    """Return the weights that no tensor on disk is for, not even a tied one or one in an older format.

    `present`: names on disk. `placed`: their names in the model.
    """
    optional: Sequence[str] = list(model._keys_to_ignore_on_load_missing or ())
    names_of = {names[0]: names for names in tied}
    absent: list[str] = []
    for group in layout.groups:
        missing = sorted(group.stored.keys() - present)
        others = {name for live in group.live for name in names_of.get(live, ())}
        if (
            not missing
            or not others  # a buffer, which the model can make
            or (len(missing) == len(group.stored) and others & (placed | present))
            or any(re.search(key, name) for key in optional for name in group.live)
        ):
            continue
        absent += missing
    return absent


def _tied_names(model: PreTrainedModel) -> list[list[str]]:
    """Return the names of every weight: several for a weight that modules share."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def refuse_absent(absent: Sequence[str], model: PreTrainedModel, ref: str | Path, *, advice: str) -> None:
    """Raise UserError if any weight of the model is absent: transformers would fill it with random numbers."""
    if absent:
        raise UserError(
            f"{ref}: {len(absent)} weights of {type(model).__name__} are missing or of another shape "
            f"(first: {absent[0]}); {advice}."
        )


def _refuse_unequal_copies(checkpoint: Checkpoint, names: Sequence[str], ref: str | Path) -> None:
    """Raise UserError if copies of one tied weight differ: transformers would load them as an untied model."""
    for copy in names[1:]:
        pieces = zip(checkpoint.pieces(names[0]), checkpoint.pieces(copy), strict=True)
        if not all(bool(((one == two) | (one.isnan() & two.isnan())).all()) for one, two in pieces):
            raise UserError(
                f"{ref}: {names[0]} and {copy} have different values, but config.json says that they are one weight "
                "(tie_word_embeddings): which of them counts? Set tie_word_embeddings to false, or remove the tensor "
                "that does not belong to the model."
            )


def refuse_gguf_left_over(file: Path, model: PreTrainedModel, ref: str | Path) -> None:
    """Raise UserError if a GGUF file has layers beyond its header's count, which transformers does not report."""
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if num_layers is None:
        return
    layers = {name: _LAYER.match(name) for name in read_gguf_metadata(str(file))[1]}
    beyond = sorted(name for name, found in layers.items() if found and int(found[1]) >= num_layers)
    if beyond:
        raise UserError(
            f"{ref}: its header counts {num_layers} layers, but it holds tensor {beyond[0]}{and_more(beyond)}: the file is damaged; "
            "download it again."
        )


def refuse_left_over(names: set[str], model: PreTrainedModel, ref: str | Path) -> None:
    """Raise UserError if a tensor of the checkpoint has no place in the model: config.json describes another model."""
    left = sorted(name for name in names if not _is_harmless(name, model))
    if not left:
        return
    more = and_more(left)
    scales = [name for name in left if _SCALES.search(name)]
    if scales:
        raise UserError(
            f"{ref}: {scales[0]}{more} has no place in {type(model).__name__}: scales of quantised weights. {DENSE}"
        )
    raise UserError(
        f"{ref}: {type(model).__name__}, as config.json describes it, has no place for tensor {left[0]}{more}, so part of "
        "the checkpoint would not be used: give the config.json that belongs to these weights."
    )


def _is_harmless(name: str, model: PreTrainedModel) -> bool:
    """Return True if a stored tensor may be ignored, as the model computes it or transformers ignores it.

    Decided by the model's buffers, its `_keys_to_ignore_on_load_unexpected`, and tables of older checkpoints
    (`rotary_emb.inv_freq`, `position_ids`, `masked_bias`).
    """
    variants = _variants(name, model)
    if any(buffer in variants for buffer, _ in model.named_buffers()):
        return True
    return bool(_TABLES.search(name)) or is_ignored(name, model)


def is_ignored(name: str, model: PreTrainedModel) -> bool:
    """Return True if the family ignores a stored tensor: other towers, heads that predict several tokens."""
    ignored: Sequence[str] = list(model._keys_to_ignore_on_load_unexpected or ())
    return any(re.search(pattern, name) for pattern in ignored)


def _variants(name: str, model: PreTrainedModel) -> set[str]:
    """Return a stored name with and without the body's prefix, which files of the body alone omit."""
    prefix = f"{model.base_model_prefix}."
    return {name, prefix + name, name.removeprefix(prefix)}


def num_positions(config: PretrainedConfig) -> int | None:
    """Return the number of positions for a prompt and its completion together, or None if unlimited.

    With "dynamic" angles, positions beyond `rope_length` do not count: there a token's result depends on how many follow.
    """
    config = config.get_text_config()
    if config.model_type in _UNLIMITED or getattr(config, "alibi", False):
        return None
    if not getattr(config, "position_biased_input", True):  # DeBERTa: distances, no position table
        return None
    attention = getattr(config, "attn_config", None)
    if getattr(attention, "alibi", False) or (isinstance(attention, dict) and attention.get("alibi")):
        return None
    found = (getattr(config, name, None) for name in _POSITIONS)
    positions = next((int(value) for value in found if isinstance(value, int | float) and value > 0), None)
    if positions is not None and config.model_type in _FROM_PADDING:
        return positions - (config.pad_token_id or 0) - 1
    limits = (positions, rope_length(config) if _is_dynamic(config) else None)
    return min(filter(None, limits), default=None)


def rope_length(config: PretrainedConfig) -> int | None:
    """Return the length beyond which rotary angles depend on the longest row of a batch; None if they never do.

    Once one row is longer, "longrope" changes the frequencies of every row. "dynamic" uses those of the longest row,
    and keeps them for later batches.
    """
    config = config.get_text_config()
    lengths: list[object] = []
    for rope in _ropes(config):
        kind = str(rope.get("rope_type", ""))
        if kind == "longrope" or "dynamic" in kind:
            lengths.append(rope.get("original_max_position_embeddings"))
            lengths.append(getattr(config, "max_position_embeddings", None))
    return min((length for length in lengths if isinstance(length, int)), default=None)


def _ropes(config: PretrainedConfig) -> list[Mapping[str, Any]]:
    """Return the rotary settings of a text model: one for all layers, or one for each kind of layer."""
    ropes = getattr(config, "rope_parameters", None) or {}
    return [ropes, *(each for each in ropes.values() if isinstance(each, Mapping))]


def _is_dynamic(config: PretrainedConfig) -> bool:
    return any("dynamic" in str(rope.get("rope_type", "")) for rope in _ropes(config))


def rope_sides(config: PretrainedConfig, attention_mask: Tensor) -> list[tuple[Tensor, int]]:
    """Group rows [B, T] by the side of `rope_length` on which they end: their indices, and their longest row's length.

    Returns no group for a model whose rows may all share a forward pass.
    """
    limit = rope_length(config)
    if limit is None:
        return []
    lengths = attention_mask.sum(-1)
    beyond = lengths > limit
    found = [rows.nonzero().squeeze(-1) for rows in (~beyond, beyond)]
    return [(rows, int(lengths[rows].max())) for rows in found if len(rows)]


def check_positions(positions: int | None, max_length: int, *, key: str, ref: str | Path) -> None:
    """Raise UserError if rows of `max_length` tokens exceed the model's positions."""
    if positions is not None and max_length > positions:
        raise UserError(
            f"{key} is {max_length}, but {ref} has {positions} positions for a row's prompt and completion together: "
            f"set {key} to {positions} or less."
        )


def prompt_room(positions: int | None, *, max_length: int, max_new_tokens: int) -> int:
    """Return the tokens of a prompt that is to be completed: `max_length`, or as many as the model's positions leave.

    Raises `UserError` if they leave none.
    """
    if positions is None:
        return max_length
    if max_new_tokens >= positions:
        raise UserError(
            f"max_new_tokens is {max_new_tokens}, but the model has {positions} positions for a prompt and "
            "its completion together: lower max_new_tokens."
        )
    return min(max_length, positions - max_new_tokens)
