"""A family's checkpoint as the hub has it: random weights, saved in transformers' original format, and a tokenizer."""

import copy
import hashlib
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.families.families import VOCABULARY, Family

WEIGHTS = "model.safetensors"
LABORATORY = Path(str(files("allo") / "lab"))
_EXPERT = re.compile(r"^(.*\.experts)\.\d+\.\w+_proj\.weight$")
_OTHER_SENSES = re.compile(r"vision|visual|audio|multi_modal_projector")
# Several, so that rows end at different steps.
ENDS = [2, *range(20, VOCABULARY, 16)]
_ROUTER = re.compile(
    r"(router|mlp\.gate|block_sparse_moe\.gate|moe\.gate|feed_forward\.gate)\b.*(weight|kernel)$|router\.(proj|layer)\.weight$"
)
_STATE = re.compile(r"A_log|dt_proj|dt_bias|rg_lru\.recurrent_param")


def plain_class(family: Family) -> Any:
    """Return transformers' class of the whole checkpoint."""
    return getattr(transformers, family.architecture) if family.architecture else AutoModelForCausalLM


def build(family: Family) -> PreTrainedModel:
    """Build the family's model with random weights, the same on every machine.

    Each matrix has a spread at which every layer matters and logits are far apart; vectors and stored tables differ
    from their neutral values. Routers are scaled so that the chosen experts are no matter of rounding.
    """
    torch.manual_seed(_seed(family))
    config = AutoConfig.for_model(family.model_type, **copy.deepcopy(dict(family.settings)))
    kind = plain_class(family)
    model: PreTrainedModel = kind.from_config(config) if kind is AutoModelForCausalLM else kind(config)
    generator = torch.Generator().manual_seed(_seed(family))

    def noise(tensor: Tensor, spread: float) -> Tensor:
        return spread * torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if _STATE.search(name):
                continue
            if weight.ndim < 2 or min(weight.shape) == 1:
                weight += noise(weight, 0.1)
            elif float(weight.std()) < 0.1:
                weight.copy_(noise(weight, 0.2))
            if _ROUTER.search(name):
                weight *= 3.0
        stored = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            if name in stored and buffer.is_floating_point():
                buffer += noise(buffer, 0.1)
    model.generation_config.eos_token_id = ENDS
    model.generation_config.bos_token_id, model.generation_config.pad_token_id = 1, 0
    return model.eval()


def make(family: Family, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Save the family's checkpoint and the laboratory's tokenizer; weights that transformers keeps in fp32 stay so."""
    shutil.rmtree(folder, ignore_errors=True)
    save_as_on_hub(build(family), family, folder)
    if dtype != torch.float32:
        save_as_on_hub(plain_model(family, folder, dtype=dtype), family, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(LABORATORY / name, folder / name)
    return folder


def save_as_on_hub(model: PreTrainedModel, family: Family, folder: Path) -> None:
    """Save a model under the hub's names, with the tensors that the hub's checkpoints have besides."""
    model.save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    if family.fused_experts:
        tensors = _with_fused_experts(tensors)
    for pattern, replacement in family.on_hub:
        tensors = {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}
    for pattern, replacement in family.copies:
        found = [name for name in tensors if re.search(pattern, name)]
        tensors |= {re.sub(pattern, replacement, name): tensors[name].clone() for name in found}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _with_fused_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with each layer's experts as `gate_up_proj` and `down_proj`, [experts, ...]."""
    others = {name: tensor for name, tensor in tensors.items() if not _EXPERT.search(name)}
    for layer in sorted({found[1] for name in tensors if (found := _EXPERT.search(name))}):
        number = sum(name.startswith(f"{layer}.") for name in tensors) // 3

        def stacked(kind: str, layer: str = layer, number: int = number) -> Tensor:
            return torch.stack([tensors[f"{layer}.{expert}.{kind}_proj.weight"] for expert in range(number)])

        others[f"{layer}.gate_up_proj"] = torch.cat([stacked("gate"), stacked("up")], dim=1)
        others[f"{layer}.down_proj"] = stacked("down")
    return others


def plain_model(family: Family, folder: Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a folder as transformers alone does, with its reference attention."""
    kind = plain_class(family)
    model: PreTrainedModel = kind.from_pretrained(folder, dtype=dtype, attn_implementation=family.reference)
    return model.eval()


def text_weights(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Return the weights that text passes through: without towers of images and sounds, and what joins them."""
    return {name: weight for name, weight in model.named_parameters() if is_of_text(name)}


def is_of_text(name: str) -> bool:
    """Return whether a weight, under its name on disk or in memory, is one that text passes through."""
    return not _OTHER_SENSES.search(name)


def _seed(family: Family) -> int:
    return int.from_bytes(hashlib.sha256(family.name.encode()).digest()[:4], "big")
