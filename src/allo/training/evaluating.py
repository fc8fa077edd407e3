"""Evaluation on data sets of rows: the loss and metrics of training, over their own denominators."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, TrainerControl
from transformers.trainer_pt_utils import nested_concat
from transformers.trainer_utils import EvalLoopOutput

from allo.errors import UserError
from allo.models.collate import Batch, Collator, grouped
from allo.models.rows import Counts
from allo.ranks import num_ranks
from allo.recipe.training import Group
from allo.training.micro_batches import idle_share, micro_batches, own_share
from allo.training.recording import NUM_TOKENS, RecordedTrainer
from allo.training.trainer_options import Rows
from allo.training.trainer_rows import Row, RowReader

_IGNORED = -100  # transformers' padding of predictions


@dataclass
class Predictions:
    """Logits and ids of evaluated rows, as TRL gives them to `compute_metrics`: a batch's chosen rows, then its rejected."""

    logits: Any = None
    ids: Any = None

    @torch.no_grad()
    def add(self, model: PreTrainedModel, batch: Batch) -> None:
        """Add a batch's rows, by a forward pass of their own."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs, use_cache=False).logits.float().cpu()
        ids = batch["input_ids"].cpu()
        self.logits = logits if self.logits is None else nested_concat(self.logits, logits, _IGNORED)
        self.ids = ids if self.ids is None else nested_concat(self.ids, ids, _IGNORED)

    def of_all(self) -> EvalPrediction:
        return EvalPrediction(predictions=self.logits.numpy(), label_ids=self.ids.numpy())


class EvaluatedTrainer(RecordedTrainer):
    """A trainer whose data sets are read by `_reader`, cut into micro-batches, and evaluated by its loss."""

    max_tokens_per_batch: int | None
    group: Group
    data_collator: Collator
    control: TrainerControl
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None
    needs_reference: bool
    reference: Literal["swap", "precomputed"]
    _reader: RowReader

    def loss(self, batch: Batch, *, denominator: Tensor | float) -> Tensor:
        """Return the micro-batch's share of the optimizer step's loss, a scalar."""
        raise NotImplementedError

    def num_items(self, rows: Sequence[Row]) -> int:
        """Return what these rows add to the loss's denominator."""
        raise NotImplementedError

    def precompute_reference(self) -> None:
        """Compute a precomputed reference if it is missing."""
        raise NotImplementedError

    def _batch(self, rows: Sequence[Row]) -> Batch:
        """Collate rows onto the model's device."""
        batch: Batch = self._prepare_inputs(self.data_collator(rows))
        return batch

    def _idle(self, parts: Sequence[Sequence[Row]]) -> list[Batch]:
        """Return the batch of a pass that counts for nothing, if ranks of a sharded model have more of these parts."""
        return list(map(self._batch, idle_share(parts))) if self.selected.ranks.num > 1 else []

    def _eval_rows(self, dataset: Rows | Mapping[str, Rows]) -> Any:
        """Return the rows of token ids of a data set, or of each of several, by their names."""
        if not isinstance(dataset, Mapping):
            return self._rows(dataset, "eval_dataset")[0]
        if not dataset:
            raise UserError("eval_dataset: the dict is empty: give data sets by name, or None.")
        return {name: self._rows(rows, f"eval_dataset {name!r}")[0] for name, rows in dataset.items()}

    def _rows(self, dataset: Iterable[Row], name: str) -> tuple[list[dict[str, Any]], Counts]:
        rows, counts = self._reader(dataset, name)
        rows = grouped(rows) if self.group == "prompt" else rows
        return [row | {"number": number} for number, row in enumerate(rows)], counts

    def _micro_batches(self, rows: Sequence[Row], *, max_rows: int | None = None) -> list[list[Row]]:
        return micro_batches(
            rows,
            self.data_collator.num_tokens,
            max_rows=max_rows or self.args.per_device_train_batch_size,
            max_tokens=self.max_tokens_per_batch,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Row]:
        """Return a loader of the rows in order, the same on every rank."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = self.eval_dataset[rows] if isinstance(rows, str) else rows
        size = self.args.per_device_eval_batch_size * num_ranks()
        return DataLoader(rows, batch_size=size, collate_fn=list)

    def evaluate(
        self,
        eval_dataset: Rows | Mapping[str, Rows] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Return the loss and metrics of `eval_dataset`'s rows, by default those given to the constructor.

        If there are several data sets, each has its metrics under `eval_<name>_`. A text names one of the constructor's.
        """
        # The Trainer calls this again for each of several sets.
        if eval_dataset is None or isinstance(eval_dataset, str | Mapping):
            sets = dict(eval_dataset) if isinstance(eval_dataset, Mapping) else eval_dataset
            return super().evaluate(sets, ignore_keys, metric_key_prefix)
        rows = self._rows(eval_dataset, "eval_dataset")[0]
        if self.needs_reference and self.reference == "precomputed":
            raise UserError(
                "the reference was precomputed for the constructor's data sets only: give this eval_dataset to the "
                "constructor, or set reference to swap."
            )
        return super().evaluate(rows, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Row],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compute the training step's loss and metrics, over their own denominators for any batches."""
        self.precompute_reference()
        training, self._sums = self._sums, {}
        try:
            metrics, count = self._evaluated(dataloader, metric_key_prefix)
        finally:
            self._sums = training
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=count)

    def _evaluated(self, dataloader: DataLoader[Row], metric_key_prefix: str) -> tuple[dict[str, float], int]:
        """Return the metrics of all rows, and the number of rows."""
        self.model.eval()
        count, predictions = 0, Predictions()
        computed = None if self.args.prediction_loss_only else self.compute_metrics
        for rows in dataloader:
            parts = self._micro_batches(rows, max_rows=self.args.per_device_eval_batch_size)
            for part in own_share(parts):
                with torch.no_grad():
                    loss = self.loss(self._batch(part), denominator=1.0)
                self.record(self.num_items(part), {"loss": loss})
            sums = dict(self._sums)
            for batch in self._idle(parts):
                with torch.no_grad():
                    self.loss(batch, denominator=1.0)
            self._sums = sums
            if computed is not None:
                predictions.add(self.model, self._prepare_inputs(self.data_collator.apart(rows)))
            count += len(rows)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        found = {**self.take_means(), NUM_TOKENS: self.num_tokens}
        if computed is not None:
            found |= computed(predictions.of_all())
        prefix = f"{metric_key_prefix}_"
        return {prefix + name.removeprefix(prefix): value for name, value in found.items()}, count
