"""A training step on several GPUs: memory, bytes on the wire and time, by arithmetic on a plan for one GPU.

The selected weights, all weights or an adapter (LoRA) are trained, with a copy of the model on each GPU (data parallel)
or with shards (FSDP2).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from allo.models.load import empty_model
from allo.models.rehearsal import config_of
from allo.models.shards import unsplit
from allo.models.start import DTYPES
from allo.plan.machine import Machine
from allo.plan.memory import StagePlan, Step
from allo.recipe import Recipe
from allo.training.micro_batches import cut

RANK = 16
"""The rank of the compared LoRA, on every matrix of the layers."""
_SENT = 4  # bytes of an entry of the flat gradient, fp32
_ADAM = 8  # bytes of two fp32 moments
_MASTER = 4  # bytes of a master weight; a weight of this size is its own
_ROWS = ("activations", "log-probs", "cache")  # kinds of memory that depend on rows alone


@dataclass(frozen=True)
class Geometry:
    """Numbers of weights: all, of the largest layer and outside of the layers, that a token meets, and of a rank-1 adapter.

    `head` is the largest tensor outside of the layers. `scores` is the width of all layers' attention heads together.
    """

    weights: int
    layer: int
    root: int
    head: int
    active: int
    scores: int
    adapter: int
    itemsize: int

    @classmethod
    def of(cls, recipe: Recipe) -> "Geometry":
        """Read a recipe's model from its configuration."""
        config = config_of(recipe.model, recipe.trust_remote_code)
        model = empty_model(config, trust_remote_code=recipe.trust_remote_code)
        text = config.get_text_config()
        layers = unsplit(model)
        inside = {param for layer in layers for param in layer.parameters()}
        outside = {param for param in model.parameters() if param not in inside}
        weights = sum(param.numel() for param in model.parameters())
        embedded = model.get_input_embeddings().weight
        looked_up = 0 if embedded is model.get_output_embeddings().weight else embedded.numel()
        heads = getattr(text, "num_attention_heads", 0) or 0
        width = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
        return cls(
            weights=weights,
            layer=max((sum(param.numel() for param in layer.parameters()) for layer in layers), default=0),
            root=sum(param.numel() for param in outside),
            head=max((param.numel() for param in outside), default=0),
            active=weights - looked_up - _idle_experts(model, text),
            scores=len(layers) * heads * width,
            adapter=sum(sum(param.shape[-2:]) for param in inside if param.ndim > 1),
            itemsize=DTYPES[recipe.dtype].itemsize,
        )


@dataclass(frozen=True)
class Way:
    """A way to train: bytes of memory on a GPU, bytes that it sends a step, and seconds to compute and to send."""

    name: str
    memory: int
    sent: int
    compute: float
    wire: float


def _idle_experts(model: nn.Module, config: object) -> int:
    """Return the weights of routed experts that a token does not meet."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    number = next((found for name in names if (found := getattr(config, name, None))), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    if not number or not chosen:
        return 0
    routed = sum(param.numel() for name, param in model.named_parameters() if ".experts." in name)
    return routed - routed * chosen // number


def ways(plan: StagePlan, geometry: Geometry, machine: Machine) -> Iterator[Way]:
    """Yield the ways to train a stage's rows: selected weights, all weights, an adapter; each whole and in shards."""
    step = plan.step
    assert step is not None
    number, whole = machine.gpus, geometry.itemsize * geometry.weights
    state = plan.bytes.get("state", 0) + plan.bytes.get("slots", 0)
    a_weight = geometry.itemsize + (0 if geometry.itemsize == _MASTER else _MASTER) + _ADAM
    reference = whole if step.references else 0
    moments = (plan.bytes, *plan.moments.values())
    rows = max(map(_rows, moments))
    adapter = RANK * geometry.adapter
    sends = {"selected": step.trained, "all": geometry.weights, "LoRA": 0}
    kept = {"selected": whole + state, "all": whole + reference + a_weight * geometry.weights}
    kept["LoRA"] = whole + (geometry.itemsize + a_weight) * adapter
    copies = {
        "selected": max(plan.total, kept["selected"] + step.sent_copy),
        "all": kept["all"] + rows,
        "LoRA": kept["LoRA"] + rows,
    }
    summed = {"selected": _SENT * step.selected, "all": whole, "LoRA": geometry.itemsize * adapter}
    for name in kept:
        compute = _flops(step, geometry, number, passes=2 if name == "LoRA" else 3) / machine.flops
        for shards in (False, True):
            sent = (
                _gathered(step, geometry, number, sends[name]) if shards else _ring(2 * summed[name], number)
            )
            memory = (
                sharded_peak(moments, geometry, number, kept[name], sends[name]) if shards else copies[name]
            )
            yield Way(
                f"{name}, {'shards' if shards else 'copies'}", memory, sent, compute, sent / machine.bandwidth
            )


def share(step: Step, gpus: int) -> list[int]:
    """Return the rows of each micro-batch of the GPU with the largest share of a step.

    With more GPUs than micro-batches, the largest are cut in two, down to one row.
    """
    parts = list(map(len, cut([range(step.rows)] * step.micro_batches, gpus)))
    return parts[::gpus] if len(parts) > gpus else [max(parts)]


def _rows(at: Mapping[str, int]) -> int:
    return sum(at.get(kind, 0) for kind in _ROWS)


def _ring(number_of_bytes: int, gpus: int) -> int:
    """Return what each GPU of a ring sends for tensors of this size: once around, without its own part."""
    return number_of_bytes * (gpus - 1) // gpus


def _gathered(step: Step, geometry: Geometry, gpus: int, trained: int) -> int:
    """Return what a GPU sends of shards: weights forward, backward and for references, and gradients, each micro-batch.

    What is outside of the layers stays gathered from the pass forward to the end of the pass backward.
    """
    layers = geometry.weights - geometry.root
    entries = (2 + step.references) * layers + (1 + step.references) * geometry.root + trained
    return len(share(step, gpus)) * _ring(geometry.itemsize * entries, gpus)


def sharded_peak(
    moments: Iterable[Mapping[str, int]], geometry: Geometry, gpus: int, kept: int, trained: int
) -> int:
    """Return the peak of a GPU with its shard of `kept` bytes, over a step's moments.

    Forward, two layers are gathered, one of them ahead, and whatever is outside of the layers. Backward, there are also a
    layer's gradient, its copy to send, and the gradient of the head, which is sent at the end with all outside the layers.
    """
    root, head, layer = (geometry.itemsize * each for each in (geometry.root, geometry.head, geometry.layer))
    most = 3 * root if trained else 0
    for at in moments:
        gradients = head + 2 * layer if trained and at.get("gradient") else 0
        most = max(most, _rows(at) + root + 2 * layer + gradients)
    return -(-kept // gpus) + most


def _flops(step: Step, geometry: Geometry, gpus: int, *, passes: int) -> int:
    """Return the operations of a GPU in a step: 2 a weight and token, and those of causal attention."""
    a_token = 2 * geometry.active + 2 * geometry.scores * step.length
    passes += step.references + step.recomputes
    return sum(share(step, gpus)) * step.row_tokens * passes * a_token
