"""allo with its default settings, and with each of its levers changed alone."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from allo import delta
from allo.models.collate import Batch
from allo.models.policy import head_of, hidden_states
from allo.training.selected_trainer import Row
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from allo.weights.fingerprints import digests
from allo.weights.param_mask import ParamMask
from allo.weights.places import gather
from benchmarks.speed.work import BETA, SEED, Build, Run, Work


@dataclass(frozen=True)
class Levers:
    """The levers. The filter of noisy tokens stays off, so that every system has the same loss.

    grouped: a step's pairs go into micro-batches by length; otherwise in order.
    fused_head: only completion tokens pass the head, in chunks; otherwise every token does, all at once.
    token_budget: micro-batches of at most `max_length` tokens; otherwise of `batch_size` pairs.
    prompts: a prompt, and each distinct completion, is read once for all pairs that a step has of it.
    """

    selected: Literal["weights", "rows", "upper layers", "all"] = "weights"
    reference: Literal["swap", "precomputed"] = "swap"
    lean: bool = False
    shared_prefix: bool = True
    grouped: bool = True
    token_budget: bool = False
    checkpointing: bool = False
    fused_head: bool = True
    prompts: bool = False


AS_IT_COMES = Levers()
FULL = "allo, every weight"
VARIANTS = {
    "allo": AS_IT_COMES,
    "allo, precomputed reference": replace(AS_IT_COMES, reference="precomputed"),
    "allo, lean": replace(AS_IT_COMES, lean=True),
    "allo, rows": replace(AS_IT_COMES, selected="rows"),
    FULL: replace(AS_IT_COMES, selected="all"),
    "allo, two rows a pair": replace(AS_IT_COMES, shared_prefix=False),
    "allo, whole logits": replace(AS_IT_COMES, fused_head=False),
    "allo, upper half of the layers": replace(AS_IT_COMES, selected="upper layers"),
    "allo, not grouped by length": replace(AS_IT_COMES, grouped=False),
    "allo, token budget": replace(AS_IT_COMES, token_budget=True),
    "allo, token budget, precomputed reference": replace(
        AS_IT_COMES, token_budget=True, reference="precomputed"
    ),
    "allo, activation checkpointing": replace(AS_IT_COMES, checkpointing=True),
    "allo, prompts": replace(AS_IT_COMES, prompts=True),
    "allo, prompts, precomputed reference": replace(AS_IT_COMES, prompts=True, reference="precomputed"),
}


class UngroupedTrainer(ImproveTrainer):
    """Micro-batches of pairs in order, to measure the gain from grouping by length."""

    def _micro_batches(self, rows: Sequence[Row], *, max_rows: int | None = None) -> list[list[Row]]:
        size = max_rows or self.args.per_device_train_batch_size
        return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


class WholeLogitsTrainer(ImproveTrainer):
    """The logits of all tokens of a micro-batch at once, to measure the gain from fusing the head."""

    @torch.no_grad()
    def _ref_logps(self, batches: Iterable[Batch]) -> list[Batch]:
        with self.selected.swapped("ref"):
            return [{"ref_logps": whole_logps(self.model, batch)} for batch in batches]

    def logratios(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logps = whole_logps(self.model, batch)
        return logps - batch["ref_logps"], logps


def whole_logps(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Compute the same as `policy.per_token_logps`."""
    every = head_of(model).logits(hidden_states(model, batch)).log_softmax(-1).flatten(0, 1)
    return every[batch["sources"], batch["targets"]] * batch["completion_mask"]


def allo(work: Work, policy: PreTrainedModel, folder: Path, *, levers: Levers) -> Run:
    checkpointing = work.checkpointing or levers.checkpointing
    settings = replace(work, checkpointing=checkpointing).training_settings()
    mask = MASKS[levers.selected](policy, work.density)
    kind = ImproveTrainer if levers.grouped else UngroupedTrainer
    kind = kind if levers.fused_head else WholeLogitsTrainer
    trainer = kind(
        policy,
        TrainingArguments(output_dir=str(folder), **settings),
        work.load_pairs(),
        work.load_tokenizer(),
        mask=mask,
        beta=BETA,
        keep=1.0,
        max_length=work.max_length,
        max_tokens_per_batch=work.max_length if levers.token_budget else None,
        reference=levers.reference,
        lean=levers.lean,
        shared_prefix=levers.shared_prefix,
        group="prompt" if levers.prompts else "none",
    )
    return Run(trainer, mask.num_selected, partial(save_delta, policy, mask))


OURS: dict[str, Build] = {name: partial(allo, levers=levers) for name, levers in VARIANTS.items()}


def single(
    work: Work,
    policy: PreTrainedModel,
    folder: Path,
    *,
    trainer: type[ForgetTrainer] | type[SftTrainer],
    group: Literal["none", "prompt"],
) -> Run:
    """Forget the distinct rejected answers of the pairs, or learn the chosen ones."""
    side = "rejected" if trainer is ForgetTrainer else "chosen"
    distinct = dict.fromkeys((pair["prompt"], pair[side]) for pair in work.load_pairs())
    mask = single_weights(policy, work.density)
    found = trainer(
        policy,
        TrainingArguments(output_dir=str(folder), **work.training_settings()),
        [{"prompt": prompt, "completion": completion} for prompt, completion in distinct],
        work.load_tokenizer(),
        mask=mask,
        max_length=work.max_length,
        group=group,
    )
    return Run(found, mask.num_selected, partial(save_delta, policy, mask))


SINGLE: dict[str, Build] = {
    "forget": partial(single, trainer=ForgetTrainer, group="none"),
    "forget, prompts": partial(single, trainer=ForgetTrainer, group="prompt"),
    "likelihood": partial(single, trainer=SftTrainer, group="none"),
    "likelihood, prompts": partial(single, trainer=SftTrainer, group="prompt"),
}
"""Systems that train on single answers of the pairs, which the other benchmarks leave out."""


def single_weights(policy: PreTrainedModel, density: float) -> ParamMask:
    """Select random weights of each tensor: round(density * size) of them, spread evenly."""
    torch.manual_seed(SEED)
    shapes = {name: tuple(param.shape) for name, param in policy.named_parameters()}
    indices = {
        name: spread(param.numel(), round(density * param.numel()))
        for name, param in policy.named_parameters()
    }
    return ParamMask({name: where for name, where in indices.items() if len(where)}, shapes=shapes)


def whole_rows(policy: PreTrainedModel, density: float) -> ParamMask:
    """Select random whole rows of each matrix, round(density * rows) of them; no vectors."""
    torch.manual_seed(SEED)
    shapes = {name: tuple(param.shape) for name, param in policy.named_parameters()}
    indices = {}
    for name, shape in shapes.items():
        if len(shape) == 2 and round(density * shape[0]):
            rows = spread(shape[0], round(density * shape[0]))
            indices[name] = (rows[:, None] * shape[1] + torch.arange(shape[1], dtype=torch.int32)).flatten()
    return ParamMask(indices, shapes=shapes)


def upper_layers(policy: PreTrainedModel, density: float) -> ParamMask:
    """Select like `single_weights`, only in the upper half of the layers."""
    mask = single_weights(policy, density)
    lowest = policy.config.num_hidden_layers // 2
    chosen = {
        name: where
        for name, where in mask.indices.items()
        if (found := re.search(r"layers\.(\d+)\.", name)) and int(found[1]) >= lowest
    }
    return ParamMask(chosen, shapes=mask.shapes)


def every_weight(policy: PreTrainedModel, density: float) -> ParamMask:
    return ParamMask.full({name: tuple(param.shape) for name, param in policy.named_parameters()})


MASKS = {
    "weights": single_weights,
    "rows": whole_rows,
    "upper layers": upper_layers,
    "all": every_weight,
}


def spread(size: int, number: int) -> Tensor:
    """Return `number` sorted indices below `size`, one at random from each of `number` equal stretches, int32."""
    bounds = torch.arange(number + 1) * size // max(number, 1)
    widths = bounds.diff()
    return (bounds[:-1] + torch.rand(number, dtype=torch.float64).mul(widths).long()).int()


def save_delta(policy: PreTrainedModel, mask: ParamMask, folder: Path) -> None:
    """Write the file that turns the base into the result. It has the result's digests, which have the same size."""
    folder.mkdir()
    named = {name: param.detach().cpu() for name, param in policy.named_parameters()}
    delta.write_delta(
        folder / "delta.safetensors",
        indices=mask.indices,
        values={name: gather(named[name], where) for name, where in mask.indices.items()},
        shapes=mask.shapes,
        base_hashes=digests(named.items()),
        metadata={},
    )
