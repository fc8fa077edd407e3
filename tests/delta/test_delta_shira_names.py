"""An adapter has the names of layers in memory, whatever their names on disk."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import converted
from allo.delta import export_shira, extract
from allo.errors import UserError
from allo.models.load import linear_names

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def exported(family: str, path: Path, change: dict[str, float]) -> Path:
    """Export the delta that multiplies every sixteenth weight of some tensors; `base`, `tuned`, `adapter` below `path`."""
    base = converted.saved(family, path / "base")
    tuned = converted.saved(family, path / "tuned")
    tensors: dict[str, Tensor] = dict(load_file(tuned / "model.safetensors"))
    for name, factor in change.items():
        tensors[name].view(-1)[::16] *= factor
    save_file(tensors, tuned / "model.safetensors", {"format": "pt"})
    extract(base, tuned, path / "delta.safetensors")
    linear = linear_names(base)
    export_shira(base, path / "delta.safetensors", path / "adapter", linear=linear)
    return path / "adapter"


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gemma3", "language_model.model.layers.0.self_attn.q_proj.weight"),
        ("qwen2_5_vl", "model.layers.1.mlp.down_proj.weight"),
        ("gpt_neox", "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"),
        ("mixtral", "model.layers.1.self_attn.o_proj.weight"),
    ],
)
@pytest.mark.parametrize("factor", [1.25, 1e-20])  # as sparse differences, and a layer stored whole
def test_peft_gives_the_tuned_logits_of_a_converted_model(
    tmp_path: Path, family: str, name: str, factor: float
) -> None:
    adapter = exported(family, tmp_path, {name: factor})
    ids = torch.arange(9, 25).view(2, 8)
    base = converted.plain(family, tmp_path / "base")
    before = base(input_ids=ids, use_cache=False).logits
    tuned = converted.plain(family, tmp_path / "tuned")(input_ids=ids, use_cache=False).logits
    with torch.sparse.check_sparse_tensor_invariants():  # PEFT leaves it open, and torch warns
        adapted = PeftModel.from_pretrained(base, adapter)(input_ids=ids, use_cache=False).logits
    assert not torch.equal(before, tuned)
    assert torch.equal(adapted, tuned)


def test_an_expert_is_no_linear_layer(tmp_path: Path) -> None:
    name = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    with pytest.raises(UserError, match=rf"changes {name}, which is not a Linear layer's weight"):
        exported("mixtral", tmp_path, {name: 1.25})
