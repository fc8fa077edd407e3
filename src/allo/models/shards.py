"""Models that no single process holds: FSDP2's shards, one a rank, each read from its own rows of the checkpoint.

torch shards (`fully_shard`): each decoder layer, and whatever is outside of them as a whole, so that a tied weight stays
one. transformers' own way (`distributed_config`) lets tied embeddings come apart, and accelerate's needs the whole model
in one process's memory.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from itertools import chain
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from allo.errors import UserError
from allo.models.device import resolve_device
from allo.models.load import IN_FORWARD, MODEL_FILES, check_folder, locate_checkpoint, quiet, without_weights
from allo.models.model_checks import use_conversions
from allo.ranks import num_ranks
from allo.weights.checkpoints import Checkpoint
from allo.weights.finite import check_finite
from allo.weights.layout import Layout, saved_tensors
from allo.weights.own_pieces import pieces, stored_entries
from allo.weights.shards import named_rows, own_rows


def load_shards(
    ref: str | Path,
    *,
    dtype: torch.dtype,
    num_shards: int | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load this rank's rows of a causal language model, in eval mode; all ranks call it together.

    The memory beside the shard is one piece of a tensor, or the places of a layer's tensor that is converted when it is
    loaded, such as its experts.

    Args:
        ref: checkpoint folder or hub id.
        dtype: of every weight, for any dtype in the file; some families keep a few in fp32.
        num_shards: parts of the model, by default one a process; with fewer, several ranks hold the same part.
        device: a torch device, or "auto": this rank's CUDA device, otherwise the CPU.

    Raises:
        UserError: as `load_model` does; no process group; a number of processes that is no multiple of `num_shards`; or a
            model that torch cannot shard.
    """
    if not dist.is_initialized():
        raise UserError(
            "shards: there is one process. Start the script or `allo run` by torchrun --nproc-per-node N, or remove shards."
        )
    num_shards = num_shards or num_ranks()
    if num_ranks() % num_shards:
        raise UserError(
            f"shards is {num_shards}, but there are {num_ranks()} processes: start a multiple of {num_shards}, or set shards to "
            f"{num_ranks()}."
        )
    where = resolve_device(device)
    folder, gguf = locate_checkpoint(ref, MODEL_FILES)
    if gguf is not None:
        raise UserError(
            f"{ref}: a GGUF file cannot be read in parts: convert it first (`allo run` without shards does), or remove shards."
        )
    check_folder(folder, ref, trust_remote_code=trust_remote_code)
    model = without_weights(folder, ref, dtype=dtype, trust_remote_code=trust_remote_code)
    parts = (num_ranks() // num_shards, num_shards)
    mesh = init_device_mesh(where.type, parts, mesh_dim_names=("copy", "shard"))
    model.name_or_path = str(ref)
    checkpoint = Checkpoint.open(folder)
    # Before the model is sharded, which changes its class: by that transformers finds conversions and fills buffers.
    named = names_on_disk(model, checkpoint)
    _compute_buffers(model, named, where)
    _shard(model, mesh if parts[0] > 1 else mesh["shard"])
    _fill(model, checkpoint, named, where)
    check_finite(
        chain(named_rows(model), model.named_buffers()),
        where=str(ref),
        advice="The file is damaged, or training made it so: download it again, or give another checkpoint.",
    )
    setattr(model, IN_FORWARD, MethodType(lambda model, function, *given: function(model, *given), model))
    register_fsdp_forward_method(model, IN_FORWARD)
    return model.eval()


def _shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard each layer, and the rest as one."""
    # Experts to which no token of a rank goes have no gradient there, and the ranks must agree.
    agree = getattr(FSDPModule, "set_reduce_scatter_unused_params", None)
    if agree is None:
        raise UserError(f"shards: torch {torch.__version__} is too old: install torch 2.13 or newer.")
    try:
        for module in _layers(model):
            fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
    except (NotImplementedError, ValueError, AssertionError) as error:  # torch asserts some of its limits
        raise UserError(
            f"{type(model).__name__}: torch cannot shard it ({error}): remove shards, or use another model."
        ) from error
    agree(model, True)


def unsplit(model: nn.Module) -> list[nn.Module]:
    """Return the modules that the model's family keeps in one place: its layers."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules that are gathered one at a time: modules with weights of another dtype, and the layers.

    A layer that shares a weight with a module outside of it is none of them: its weights are gathered with the rest.
    """
    own = {
        module: [param for _, param in module.named_parameters(recurse=False)] for module in model.modules()
    }
    holders = Counter(param for params in own.values() for param in params)
    found = [
        module for module, params in own.items() if params and all(p.dtype != model.dtype for p in params)
    ]
    inner: set[nn.Module] = set()
    for module in unsplit(model):
        if module in inner:
            continue
        parts = list(module.modules())
        inside = Counter(param for part in parts for param in own[part])
        if inside and all(holders[param] == count for param, count in inside.items()):
            found.append(module)
            inner.update(parts)
    return found


@torch.no_grad()
def _fill(
    model: PreTrainedModel, checkpoint: Checkpoint, named: Mapping[str, str], device: torch.device
) -> None:
    """Give a sharded model without values its rows, and its buffers; `named`: as in the checkpoint."""
    layout, live = Layout.whole(model), saved_tensors(model)
    # Others are buffers that the model computes: `check_folder` has looked for weights.
    groups = [group for group in layout.groups if named.keys() >= group.stored.keys()]
    names = [name for group in groups for name in group.live]
    # All before anything is read: between pieces that are freed again, they would pin the heap.
    rows = {name: torch.empty_like(own_rows(live[name]), device=device) for name in names}
    for group in groups:
        for piece in pieces(layout, group, live):
            for _, places, values in stored_entries(checkpoint, piece, name=named[piece.stored]):
                rows[piece.live].view(-1)[places] = values.to(device, rows[piece.live].dtype)
    filled = {id(live[name]): _with_rows(live[name], own) for name, own in rows.items()}
    for module in model.modules():
        own = chain(
            module.named_parameters(recurse=False, remove_duplicate=False),
            module.named_buffers(recurse=False, remove_duplicate=False),
        )
        for name, tensor in list(own):
            if id(tensor) in filled:
                setattr(module, name, filled[id(tensor)])


def _with_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return a tensor like one without values, with these rows of it."""
    if isinstance(tensor, DTensor):
        rows = DTensor.from_local(
            rows,
            tensor.device_mesh,
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )
    if isinstance(tensor, nn.Parameter):
        rows = nn.Parameter(rows, requires_grad=tensor.requires_grad)
    return rows


def names_on_disk(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, str]:
    """Return the names in a checkpoint of the tensors that the model is stored as: most often the same.

    A tied weight may be stored under another of its names, and a name may lack the body's prefix.
    """
    places = use_conversions(model, checkpoint.stored)
    holders: dict[int, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(param), []).append(name)
    aliases = {name: names for names in holders.values() for name in names}
    found: dict[str, str] = {}
    for group in Layout.whole(model).groups:
        for stored in group.stored:
            others = [] if not group.renames else aliases.get(min(group.live), [])
            same = [name for name in checkpoint.stored if name == stored or places[name] in others]
            found |= {stored: stored if stored in same else min(same)} if same else {}
    return found


@torch.no_grad()
def _compute_buffers(model: PreTrainedModel, named: Collection[str], device: torch.device) -> None:
    """Give the buffers of a model without values that are not stored under a name their own, such as the angles of positions."""
    groups = Layout.whole(model).groups
    read = {name for group in groups if group.stored.keys() <= {*named} for name in group.live}
    tensor: Any
    for name, tensor in saved_tensors(model).items():
        tensor._is_hf_initialized = name in read
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not getattr(buffer, "_is_hf_initialized", False):
                setattr(module, name, torch.empty_like(buffer, device=device))
    with quiet():
        model.initialize_weights()
