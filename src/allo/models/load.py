"""Models and tokenizers from a folder, a hub id or a `.gguf` file; safetensors or GGUF, never pickle."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    DynamicCache,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from allo.console import on_terminal, only_ours, paused, say
from allo.errors import UserError
from allo.models.cached import is_cached
from allo.models.device import resolve_device
from allo.models.model_checks import (
    check_config,
    check_depth,
    check_stored,
    doubtful_sizes,
    refuse_absent,
    refuse_gguf_left_over,
    refuse_left_over,
    use_conversions,
)
from allo.models.reading import read_checked
from allo.models.tokenization import PANIC
from allo.weights.allowed import kinds_of
from allo.weights.checkpoints import Checkpoint, refuse_adapter, weight_files
from allo.weights.finite import check_finite
from allo.weights.layout import Layout, saved_tensors

IN_FORWARD = "in_forward"
"""A sharded model's method that runs a function of the model as its forward pass (`models.shards`)."""

# The names under which stages pass these on.
Model: TypeAlias = PreTrainedModel
Tokenizer: TypeAlias = PreTrainedTokenizerBase

# transformers raises these with a message for the user; other errors are shown with their class.
_SPEAKING = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)

Built = TypeVar("Built")

_WHOLE = "give a complete checkpoint of a causal language model"
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?")
README = "README.md"  # where a model of the hub states its licence
TOKENIZER_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.py"]
CONFIG_FILES = ["config.json", "*.py"]
MODEL_FILES = [*TOKENIZER_FILES, "*.safetensors"]


def load_model(
    ref: str | Path, *, dtype: torch.dtype, device: str = "auto", trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a causal language model in eval mode, with dense `dtype` weights and the attention of `with_attention`.

    Args:
        ref: checkpoint folder, hub id, or path of a `.gguf` file (dequantised; it can be saved again).
        dtype: of every weight, for any dtype in the file; some families keep a few in fp32.
        device: a torch device, or "auto": the first CUDA device, otherwise the CPU.

    Raises:
        UserError: `ref` is missing, unreachable, pickled, quantised, an adapter, incomplete, more than its
            configuration describes, or not a causal language model; a weight is NaN or infinite; `device` is absent,
            or the Trainer would not train on it.
    """
    where = resolve_device(device)
    folder, gguf = locate_checkpoint(ref, MODEL_FILES)
    code = {"trust_remote_code": trust_remote_code}
    if gguf is None:
        check_folder(folder, ref, **code)
    with loading(ref, "a causal language model", folder=folder):
        # Only a GGUF file needs `quantization_config`: None would erase the checkpoint's own.
        config = read_config(folder / gguf if gguf else folder, **code)
        given = {"gguf_file": gguf, "quantization_config": GgufConfig(dequantize=True), "config": config}
        model, info = with_attention(
            lambda attention: _auto_class(config).from_pretrained(
                folder,
                **(given if gguf else {}),
                use_safetensors=None if gguf else True,
                dtype=dtype,
                attn_implementation=attention,
                **code,
                output_loading_info=True,
            )
        )
        if gguf:
            refuse_gguf_left_over(folder / gguf, model, ref)
            model.name_or_path = str(
                ref
            )  # transformers names the folder, in which the tokenizer is not found
        else:
            use_conversions(model, Checkpoint.open(folder).stored)
    require_all_weights(model, info, ref, advice=_WHOLE)
    assert not getattr(model, "is_quantized", False)  # transformers neither trains nor saves quantised models
    # A family may keep a few weights in fp32, such as routers.
    assert all(parameter.dtype in (dtype, torch.float32) for parameter in model.parameters())
    _mention_eager(model)
    return model.to(where).eval()


def check_folder(folder: Path, ref: str | Path, *, trust_remote_code: bool = False) -> None:
    """Raise UserError unless the folder's files can be the dense weights of the model that its config.json describes.

    It reads little beyond headers, so it can run before the first stage.
    """
    model = without_weights(folder, ref, trust_remote_code=trust_remote_code)
    check_stored(model, folder, ref, advice=_WHOLE)


def read_config(ref: str | Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return a checkpoint's configuration; download nothing else, and read only the header of a `.gguf` file.

    Raises `UserError` if `ref` has no configuration of a causal language model.
    """
    folder, gguf = locate_checkpoint(ref, CONFIG_FILES)
    if gguf is None and (folder / "config.json").is_file():
        check_config(folder, ref)
    with loading(ref, "a causal language model", folder=folder):
        return read_checked(AutoConfig, ref, folder, gguf, trust_remote_code)


def model_of_config(
    config: PretrainedConfig, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Build a model as `load_model` does; its weights are on torch's current default device, such as meta.

    Raises `UserError` if transformers has no causal language model of this kind.
    """
    with loading(config.name_or_path, "a causal language model", folder=Path(config.name_or_path)):
        model: PreTrainedModel = with_attention(
            lambda attention: _auto_class(config).from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=trust_remote_code
            )
        )
    return model.eval()


def _auto_class(config: PretrainedConfig) -> Any:
    """Return transformers' class that picks a model: of text, or of text and images if the family has no other."""
    wraps = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if wraps and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own_code:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def with_attention(build: Callable[[str], Built]) -> Built:
    """Build a model with SDPA attention, or with eager attention if its code has no SDPA."""
    try:
        return build("sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return build("eager")


def _mention_eager(model: PreTrainedModel) -> None:
    """Say once for each kind of model that it has no SDPA, and the cost."""
    kind, is_eager = type(model).__name__, model.config._attn_implementation == "eager"
    if is_eager and kind not in _MENTIONED and not all(DynamicCache(config=model.config).is_linear):
        _MENTIONED.add(kind)
        say(
            f"{kind} has no SDPA attention in transformers, so attention is eager: slower, and its memory grows with the "
            "square of a row's length"
        )


_MENTIONED: set[str] = set()


def empty_model(
    config: PretrainedConfig, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Build the model that a configuration describes, without values."""
    with torch.device("meta"):
        return model_of_config(config, dtype=dtype, trust_remote_code=trust_remote_code)


def linear_names(folder: Path, *, trust_remote_code: bool = False) -> dict[str, str]:
    """Return the Linear layers' weights that no other module shares: their names on disk, and those in memory.

    A layer whose weight is stored in parts, or as a part, is none of them. Raises `UserError` for a folder without a
    causal language model's configuration.
    """
    model = without_weights(folder, folder, trust_remote_code=trust_remote_code)
    linear = kinds_of(model)["linear"]
    return {
        stored: live
        for group in Layout.of(model).groups
        for stored, live in zip(group.stored, group.live, strict=group.renames)
        if stored in linear
    }


def tensor_kinds(folder: Path, *, trust_remote_code: bool = False) -> dict[str, set[str]]:
    """Return `allowed.kinds_of` the model in `folder`, from the configuration alone; raises as `linear_names`."""
    return kinds_of(without_weights(folder, folder, trust_remote_code=trust_remote_code))


def without_weights(
    folder: Path, ref: str | Path, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return the folder's model on the meta device, with the conversions and dtypes that it would be loaded with.

    Raises `UserError` unless its config.json and its files' headers allow it.
    """
    require_safetensors(folder, ref)
    check_depth(folder, ref)
    config = read_config(folder, trust_remote_code=trust_remote_code)
    config.name_or_path = str(ref)
    model = empty_model(config, dtype=dtype, trust_remote_code=trust_remote_code)
    kept = "|".join(key.replace("*", ".*") for key in model._get_dtype_plan(dtype))
    for name, tensor in saved_tensors(model).items():
        if kept and re.search(kept, name):
            tensor.data = tensor.data.float()
    use_conversions(model, Checkpoint.open(folder).stored)
    return model


def load_tokenizer(
    ref: str | Path,
    *,
    pad_token: str | None = None,
    trust_remote_code: bool = False,
    eos_pads: bool = False,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint (for a `.gguf` file, from the file itself).

    Args:
        pad_token: used if the tokenizer has none; a token that it already knows.
        eos_pads: EOS is used if there is no other pad token.

    Raises:
        UserError: no tokenizer at `ref`, no EOS token, no pad token, or an unknown `pad_token`.
    """
    tokenizer = _tokenizer(ref, trust_remote_code)
    if pad_token is not None and pad_token not in tokenizer.get_vocab():
        raise UserError(f"pad_token {pad_token!r} is no token of {ref}; choose one of its vocabulary.")
    if tokenizer.pad_token_id is None and pad_token is None and eos_pads:
        pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None and pad_token is None:
        raise UserError(
            f"{ref}: the tokenizer has no pad token; set `pad_token` to one of its tokens, "
            f"for example pad_token: {tokenizer.eos_token!r} (allo masks padding by position, so EOS is safe)."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = pad_token
    return tokenizer


def needed_pad_token(ref: str | Path, *, trust_remote_code: bool = False) -> str | None:
    """Return the EOS token of a tokenizer without pad token, which can stand for it; None for another tokenizer."""
    tokenizer = _tokenizer(ref, trust_remote_code)
    return str(tokenizer.eos_token) if tokenizer.pad_token_id is None else None


def _tokenizer(ref: str | Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    folder, gguf = locate_checkpoint(ref, TOKENIZER_FILES)
    with loading(ref, "a tokenizer", folder=folder):
        tokenizer: PreTrainedTokenizerBase = read_checked(AutoTokenizer, ref, folder, gguf, trust_remote_code)
    # Rows are truncated later; without this, transformers would warn about the first long one.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{ref}: the tokenizer has no EOS token, so a completion could never end; "
            "set `eos_token` in its tokenizer_config.json."
        )
    return tokenizer


def locate_checkpoint(ref: str | Path, files: list[str]) -> tuple[Path, str | None]:
    """Find `ref` as (local folder, GGUF file name or None); a hub id is downloaded into the hub's cache.

    Args:
        files: glob patterns of the files to download for a hub id, without those in sub-folders.
    """
    if not str(ref).strip():
        raise UserError("`model` is empty; give a checkpoint's folder, a .gguf file or a hub id.")
    path = Path(ref).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path.parent, path.name
    if path.is_dir():
        return path, None
    if path.exists():
        raise UserError(f"{ref} is a file; give the checkpoint's folder, a hub id or a .gguf file.")
    if isinstance(ref, Path) or path.suffix == ".gguf" or not HUB_ID.fullmatch(ref):
        raise UserError(f"{ref} does not exist; give a checkpoint's folder, a .gguf file or a hub id.")
    try:
        with paused() if on_terminal() and not is_cached(ref, weights=files == MODEL_FILES) else quiet():
            found = snapshot_download(ref, allow_patterns=[*files, README], ignore_patterns=["*/*"])
            return Path(found), None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{ref}: there is no such folder here, and the Hugging Face hub gave no model of that id "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Give a local checkpoint folder or a .gguf file, or log in or connect and try again."
        ) from error


def require_safetensors(folder: Path, ref: str | Path) -> None:
    """Raise UserError unless the folder has a config.json and weights (`checkpoints.weight_files`)."""
    refuse_adapter(folder)
    if not (folder / "config.json").is_file():
        ggufs = sorted(file.name for file in folder.glob("*.gguf"))
        hint = f"name the file: {folder / ggufs[0]}" if ggufs else "give a checkpoint's folder"
        raise UserError(f"{ref} has no config.json, so it is no checkpoint; {hint}.")
    weight_files(folder)


def require_all_weights(
    model: PreTrainedModel, info: Mapping[str, Any], ref: str | Path, *, advice: str
) -> None:
    """Raise `UserError` if loading left weights out or if any loaded weight is NaN or infinite.

    transformers only logs both: it fills absent weights with random numbers and drops weights without a place.
    """
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    refuse_absent(absent, model, ref, advice=advice)
    refuse_left_over(set(info["unexpected_keys"]), model, ref)
    check_finite(
        model.state_dict().items(),
        where=str(ref),
        advice="The file is damaged, or training made it so: download it again, or give another checkpoint.",
    )


@contextmanager
def loading(ref: str | Path, what: str, *, folder: Path | None = None) -> Iterator[None]:
    """Let transformers read `ref` quietly; turn its errors and native code's about bad files into `UserError`."""
    try:
        with quiet():
            yield
    except UserError:
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or type(error).__name__ == PANIC):
            raise
        said = str(error).strip() if isinstance(error, _SPEAKING) else ""
        why = said or f"{type(error).__name__}: {error}".removesuffix(": ")
        doubt = doubtful_sizes(folder) if folder is not None else ""
        raise UserError(f"{ref}: transformers cannot load {what} from it: {why}{doubt}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings of transformers and the hub, and their bars, of which the GGUF reader's cannot be switched off."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with only_ours():
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def check_whole(model: PreTrainedModel) -> None:
    """Refuse parameters of which this process has only a part, unless `models.shards` loaded them."""
    for name, param in model.named_parameters():
        whole = type(param.data) in (Tensor, FakeTensor)  # parameters in a rehearsal are whole
        if hasattr(param, "ds_id") or not (whole or hasattr(model, IN_FORWARD)):
            kind = "DeepSpeed ZeRO-3" if hasattr(param, "ds_id") else f"a {type(param.data).__name__}"
            raise UserError(
                f"{name} is {kind}: FSDP1, ZeRO-3, tensor parallel and models that you sharded yourself are not trained. Set "
                "`shards` in the recipe, or load the model by allo.load_shards, under torchrun."
            )


def switch_off_dropout(model: PreTrainedModel) -> None:
    """Switch off dropout, even in attention with a rate attribute: policy and reference must see the same network."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or isinstance(module, nn.Dropout)):
                setattr(module, name, 0.0)
