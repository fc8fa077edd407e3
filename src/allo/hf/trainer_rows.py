"""A trainer's data sets, read as users' rows are read, as rows of token ids."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from allo.console import say
from allo.errors import UserError
from allo.hf.dpo_config import LARGEST, cut_ends
from allo.hf.row_lengths import check_rows_fit, num_tokens
from allo.rows import Reading

Row = Mapping[str, Any]
IdRows = list[dict[str, Any]]


@dataclass(frozen=True)
class RowReader:
    """The way from a data set to rows of token ids, and the number of those that were dropped.

    `read` reads the forms that users' rows have; None: the rows are a run's own records. `tokenize` makes the ids.
    With `cuts_ends` completions lose what is beyond `max_length`, as in TRL; otherwise prompts lose their beginning.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    read: Callable[..., tuple[list[Any], Reading]] | None
    tokenize: Callable[..., tuple[IdRows, int]]
    max_length: int
    cuts_ends: bool

    def __call__(self, dataset: Iterable[Row], name: str) -> tuple[IdRows, int]:
        """Return the rows of a data set, called `name` in errors, and how many were dropped."""
        if isinstance(dataset, str | Path | Mapping):
            raise UserError(
                f"{name} is a {type(dataset).__name__}: give rows, such as a list of dicts or one split of a data set."
            )
        if self.read is not None:
            read, reading = self.read(dataset, name=name)
            dataset = [row if isinstance(row, Mapping) else vars(row) for row in read]
            for sentence in reading.sentences:
                say(f"{name}: {sentence}")
        max_length = LARGEST if self.cuts_ends else self.max_length
        rows, dropped = self.tokenize(self.tokenizer, dataset, max_length=max_length)
        if self.cuts_ends:
            whole, rows = rows, self._ends_cut(rows)
            dropped += len(whole) - len(rows)
        check_rows_fit(self.model, rows, name=name, max_length=self.max_length)
        return rows, dropped

    def _ends_cut(self, rows: IdRows) -> IdRows:
        kept = cut_ends(rows, self.max_length)
        longer = sum(num_tokens(row) > self.max_length for row in rows)
        if longer:
            say(
                f"max_length {self.max_length}: {longer} rows are longer: completions lose their end, and "
                f"{len(rows) - len(kept)} rows without a token left are dropped"
            )
        if not kept:
            raise UserError(
                f"no row is left to train on: no prompt leaves room in max_length {self.max_length}. Raise it."
            )
        return kept
