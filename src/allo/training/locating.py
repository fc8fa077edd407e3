"""The statistics by which weights are located, for the stage `locate`, in memory and for a trainer's mask."""

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from allo.console import say
from allo.errors import UserError
from allo.files.rows import Reading
from allo.losses.feedback_losses import classified
from allo.losses.needs import LossFunction
from allo.models.load import switch_off_dropout
from allo.models.rows import Counts, counted_completions, counted_pairs
from allo.recipe.criteria import CRITERIA, Criterion, criterion_of
from allo.recipe.locate import Locate
from allo.recipe.own_code import own_file
from allo.tasks.feedback import feedback_of_rows
from allo.tasks.pairs import pairs_of_rows
from allo.training.dpo_passes import DpoPasses, number_of_steps
from allo.training.feedback_trainer import FeedbackTrainer
from allo.training.given import default_arguments, given_model, given_tokenizer, loads_in_bf16
from allo.training.run import Logged, state_bytes, train, train_from
from allo.training.trainer import ImproveTrainer
from allo.training.trainer_options import Options
from allo.training.trainer_rows import IdRows, Row, RowReader, kind_of
from allo.weights import importance
from allo.weights.allowed import Allowed, allowed_in
from allo.weights.host_sums import HostSums
from allo.weights.importance_map import ImportanceMap
from allo.weights.layout import Layout, trained_parameters
from allo.weights.own_pieces import beside, full_mask, model_fingerprint
from allo.weights.param_mask import ParamMask
from allo.weights.selection import PIECE, Piece
from allo.weights.shards import Ranks, own_rows, reshard

Statistic = tuple[str, int | Tensor, Tensor, Tensor]
"""A tensor's name, the flat indices of some of its weights or the first of them, these weights, and their statistic."""
Statistics = Callable[[], Iterable[Statistic]]
"""Yields the statistic of all weights, tensor by tensor and piece by piece; of a sharded model, those of this rank."""
DEFAULTS = Locate()
LABELLED_LOSS: LossFunction = classified
"""The warm-up's loss of labelled completions."""


@dataclass(frozen=True)
class Found:
    """The statistics of all weights that may be selected; `counts` and `metrics` are the stage's.

    `warmed` returns a warm-up's weights in fp32, by their names in memory. `put_back` gives the model its own bits again.
    """

    statistics: Statistics
    counts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, float | None]] = ()
    warmed: Callable[[], Mapping[str, Tensor]] | None = None
    put_back: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Search:
    """A search for important weights: those of `layout`, by a statistic of pairs or labelled completions.

    `rows` are token ids; there are none if the criterion sees no data. With `resumes`, a warm-up goes on from its last
    checkpoint.
    """

    layout: Layout
    rows: IdRows
    arguments: TrainingArguments
    tokenizer: PreTrainedTokenizerBase
    locate: Locate = DEFAULTS
    seed: int = 0
    resumes: bool = False

    def statistics_of(self, criterion: Criterion) -> Found:
        """Return the statistics that a criterion needs; a warm-up moves the model."""
        if criterion.trains:
            moving = replace(self, arguments=_moving(self.arguments, len(self.rows)))
            return moving._trained() if criterion.needs == "warm-up" else moving._trained_fused()
        return self._summed(criterion) if criterion.sums else self._without_data(criterion)

    def _trained(self) -> Found:
        """Train all allowed weights by plain DPO, or its form for labelled completions."""
        layout, live = self.layout, trained_parameters(self.layout.model)
        trainer = self._trainer()
        before = trainer.selected.slot("ref")

        def put_back() -> None:
            _copy_back(layout.model, before)
            trainer.selected.release()

        with _put_back_after_an_error(put_back):
            metrics: list[Logged] = train(trainer) if self.resumes else train_from(trainer, None)
        after = trainer.selected.masters()
        return Found(
            lambda: beside(layout, live, before, after),
            {self._kind: len(self.rows), "training_state_bytes": state_bytes(trainer)},
            metrics,
            lambda: {name: rows.reshape(own_rows(live[name]).shape) for name, rows in after.items()},
            put_back,
        )

    def _trainer(self) -> ImproveTrainer | FeedbackTrainer:
        model, args, locate = self.layout.model, self.arguments, self.locate
        options: Options = {
            "mask": full_mask(Layout.of(model), among=self.layout.shapes),
            "records": True,
            "reference": "swap",
            "max_tokens_per_batch": locate.max_tokens_per_batch,
            "group": locate.group,
        }
        if self._kind == "pairs":
            return _WarmupTrainer(
                model, args, self.rows, self.tokenizer, beta=locate.beta, keep=1.0, **options
            )
        return _LabelledWarmupTrainer(
            model, args, self.rows, self.tokenizer, beta=locate.beta, keep=1.0, loss=LABELLED_LOSS, **options
        )

    @property
    def _kind(self) -> str:
        return kind_of(self.rows)

    def _trained_fused(self) -> Found:
        """Train all allowed weights as `_trained` does, each inside the backward pass, with fp32 changes in host memory."""
        passes = self._passes()
        with _put_back_after_an_error(lambda: _copy_back(passes.model, passes.start)):
            warmup, metrics = passes.train_fused()
        counts = {
            self._kind: len(self.rows),
            "training_state_bytes": warmup.host_bytes + warmup.device_bytes,
            "host_state_bytes": warmup.host_bytes,
        }
        live = trained_parameters(self.layout.model)
        return Found(
            lambda: _in_pieces(beside(self.layout, live, warmup.start, warmup.deltas)),
            counts,
            metrics,
            lambda: {name: warmup.weights(name) for name in warmup.deltas},
            lambda: _copy_back(passes.model, warmup.start),
        )

    def _summed(self, criterion: Criterion) -> Found:
        """Sum g, or g^2 of single pairs or labelled completions, over all of them at the starting model."""
        passes = self._passes()
        live = trained_parameters(self.layout.model)
        shapes = {name: tuple(own_rows(live[name]).shape) for name in self.layout.live_shapes}
        sums = HostSums(shapes, dtype=getattr(torch, self.locate.accumulate), seed=self.seed)
        # The square of a batch's summed gradient is no sum of squares: it would depend on the batch size.
        of_pairs = criterion.needs == "squared gradients"
        add = sums.add_squares if of_pairs else sums.add
        passes.take_start_gradients(lambda name, _, gradient: add(name, gradient), of_pairs=of_pairs)
        return Found(
            lambda: _in_pieces(beside(self.layout, live, _OwnRows(live), sums)),
            {self._kind: len(self.rows), "host_state_bytes": sums.num_bytes},
        )

    def _without_data(self, criterion: Criterion) -> Found:
        live = trained_parameters(self.layout.model)
        rows = _OwnRows(live)

        def statistics() -> Iterator[Statistic]:
            for name, where, theta, _ in _in_pieces(beside(self.layout, live, rows, rows)):
                indices = torch.arange(where, where + len(theta)) if isinstance(where, int) else where
                found = importance.statistic_of(criterion.needs, name, theta, indices, seed=self.seed)
                yield name, where, theta, found

        return Found(statistics)

    def _passes(self) -> DpoPasses:
        return DpoPasses(
            self.layout.model,
            self.rows,
            self.arguments,
            beta=self.locate.beta,
            pad_id=self.tokenizer.pad_token_id,
            max_tokens_per_batch=self.locate.max_tokens_per_batch,
            group=self.locate.group,
            among=self.layout.live_shapes,
        )


def _moving(arguments: TrainingArguments, num_rows: int) -> TrainingArguments:
    """Return the arguments without warm-up of the learning rate if it takes every step: the rate would be 0 throughout."""
    steps = number_of_steps(arguments, num_rows)
    if steps > 1 or arguments.get_warmup_steps(steps) == 0:
        return arguments
    say(
        f"locate: {num_rows} rows make a single step, at rate 0 under warmup_steps {arguments.warmup_steps:g}; it is taken "
        "without. Lower gradient_accumulation_steps for more steps."
    )
    moving = copy.copy(arguments)
    moving.warmup_steps = 0
    return moving


class _WarmupTrainer(ImproveTrainer):
    """Plain DPO of rows of token ids, with fp32 masters: bf16 weights would swallow the small updates."""

    make_rows = staticmethod(lambda tokenizer, rows, **_: (list(rows), Counts()))


class _LabelledWarmupTrainer(FeedbackTrainer):
    """The same for labelled completions, by BCO without its shift. Its gradient at the start is DPO's."""

    make_rows = staticmethod(lambda tokenizer, rows, **_: (list(rows), Counts()))


def locate(
    model: PreTrainedModel | str | Path,
    data: Iterable[Row] | None = None,
    *,
    density: float = 0.1,
    criterion: str | importance.Scoring = DEFAULTS.criterion,
    args: TrainingArguments | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    beta: float = DEFAULTS.beta,
    max_length: int = 1200,
    max_tokens_per_batch: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> ParamMask:
    """Return the mask of the weights that a criterion scores highest (method.md 1.1).

    The model gets its own bits back afterwards, and its dropout stays off. `warmup` trains all weights with fp32
    masters, so it takes some 20 bytes a weight; `warmup_fused` takes 6 bytes a weight of host memory.

    Args:
        model: a model, or its folder or hub id.
        data: rows with `prompt`, `chosen` and `rejected`, as of `ImproveTrainer`, or with `completion` and `label`, as of
            `FeedbackTrainer`. Criteria that see no pairs need none.
        density: the share of all weights to select, above 0 and at most 1.
        criterion: one of `allo.recipe.criteria.CRITERIA`, `file.py:function`, or a function. A function that is not marked by
            `allo.weights.criterion` maps a tensor's weights before and after a warm-up, fp32 of one shape, to scores >= 0,
            fp32 of that shape.
        args: of the warm-up. By default those of a recipe's `locate.training`.
        processing_class: the tokenizer, by default the model's own.
        beta: DPO's.
        include, exclude: the tensors that a warm-up trains and the mask selects from, as in a recipe's `locate`.

    Raises:
        UserError: an unknown criterion; a density that selects nothing, or more than may be selected; a pattern without a
            tensor; scores that are NaN or negative; or as `ImproveTrainer`.
    """
    with tempfile.TemporaryDirectory() as folder:
        if args is None:
            settings = {
                "use_cpu": isinstance(model, PreTrainedModel) and model.device.type == "cpu",
                "bf16": loads_in_bf16(model),
            }
            args = default_arguments(folder, DEFAULTS.training, save_strategy="no", **settings)
        model = given_model(model, args)
        tokenizer = given_tokenizer(processing_class, model, args)
        record = record_of(criterion)
        allowed = allowed_in(model, include, exclude, density=density)  # refused before a warm-up
        rows = _rows(data, record, model, tokenizer, max_length=max_length) if record.sees_pairs else []
        locate = Locate(beta=beta, max_tokens_per_batch=max_tokens_per_batch)
        search = Search(Layout.of(model).among(allowed.names), rows, args, tokenizer, locate, args.seed)
        return searched(search, record, criterion, allowed, density=density)


def _rows(
    data: Iterable[Row] | None,
    criterion: Criterion,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
) -> IdRows:
    """Return the token ids of pairs or labelled completions. Raises `UserError` if there is no data."""
    if data is None:
        raise UserError(
            f"data: the criterion {criterion.name} sees pairs: give rows with `prompt`, `chosen` and `rejected`, or with "
            "`prompt`, `completion` and `label`."
        )
    data = list(data) if isinstance(data, Iterator) else data
    labelled = any(isinstance(row, Mapping) and "label" in row and "chosen" not in row for row in data)
    read: Callable[..., tuple[list[Any], Reading]] = feedback_of_rows if labelled else pairs_of_rows
    tokenize = counted_completions if labelled else counted_pairs
    return RowReader(model, tokenizer, read, tokenize, max_length, cuts_ends=False)(data, "data")[0]


def searched(
    search: Search,
    record: Criterion,
    criterion: str | importance.Scoring,
    allowed: Allowed,
    *,
    density: float,
) -> ParamMask:
    """Return the mask that a search finds; the model gets its own bits and mode back."""
    model, shapes = search.layout.model, allowed.shapes
    score = importance.scoring_of(record) if isinstance(criterion, str) else criterion
    # An own function that is not marked gets whole tensors.
    whole = callable(criterion) and not hasattr(criterion, "needs")
    metadata = allowed.metadata | {
        "criterion": record.name,
        "base_fingerprint": model_fingerprint(model),
    }
    ranks = Ranks.of(model)
    if whole and ranks.num > 1:
        raise UserError(
            f"criterion: {record.name} scores whole tensors, and a rank of a sharded model has some rows of each: mark it with "
            "allo.weights.criterion, or locate without shards."
        )
    was_training = model.training
    model.to(search.arguments.device)
    switch_off_dropout(model)
    found = search.statistics_of(record)

    def scores() -> Iterator[Piece]:
        for name, where, *both in found.statistics():
            theta, other = (tensor.view(shapes[name]) if whole else tensor for tensor in both)
            yield name, where, score(theta.float() if whole else theta, other).reshape(-1)

    try:
        top = ImportanceMap.top(scores, density=density, shapes=shapes, metadata=metadata, ranks=ranks)
    finally:
        found.put_back()
        model.train(was_training)
    # The other ranks of a sharded model have the entries of their own rows.
    return (
        top.mask_at(density)
        if ranks.is_first
        else ParamMask(top.indices, shapes=shapes, metadata=top.metadata)
    )


def record_of(criterion: str | importance.Scoring) -> Criterion:
    """Return the record of a criterion, or of a function. Raises `UserError` for an unknown name."""
    if callable(criterion):
        needs: Any = getattr(criterion, "needs", "warm-up")
        return Criterion(getattr(criterion, "__name__", "own"), "", needs=needs)
    if criterion not in CRITERIA and own_file(criterion) is None:
        raise UserError(
            f"criterion: {criterion!r} is not one of {', '.join(CRITERIA)}, and no file.py:function."
        )
    return criterion_of(criterion)


@contextmanager
def _put_back_after_an_error(put_back: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        put_back()
        raise


@torch.no_grad()
def _copy_back(model: PreTrainedModel, start: Mapping[str, Tensor]) -> None:
    """Give the model the bits that it had before a warm-up."""
    reshard(model)
    for name, param in model.named_parameters():
        if name in start:
            rows = own_rows(param)
            rows.copy_(start[name].view(rows.shape))


@dataclass(frozen=True)
class _OwnRows:
    """This rank's rows of a model's tensors, by name."""

    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return own_rows(self.tensors[name])


def _in_pieces(tensors: Iterable[Statistic]) -> Iterator[Statistic]:
    """Yield weights and statistics in pieces, so that no score of a whole tensor is made."""
    for name, where, *both in tensors:
        for start in range(0, len(both[0]), PIECE):
            theta, statistic = (tensor.detach()[start : start + PIECE] for tensor in both)
            part = where + start if isinstance(where, int) else where[start : start + PIECE]
            yield name, part, theta.cpu(), statistic
