"""A trainer's data sets, read like users' rows, as rows of token ids."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from allo.console import say, stage_at_work
from allo.errors import UserError
from allo.files.rows import Reading
from allo.models.row_lengths import check_rows_fit, num_tokens
from allo.models.rows import Counts
from allo.models.written import reads_as
from allo.training.dpo_config import LARGEST

Row = Mapping[str, Any]
_IDS = {"completion": "completion_ids", "chosen": "chosen_token_ids", "rejected": "rejected_token_ids"}
IdRows = list[dict[str, Any]]


def kind_of(rows: Sequence[Row]) -> Literal["completions", "pairs"]:
    """Return whether rows of token ids are labelled completions or pairs."""
    return "completions" if rows and "label" in rows[0] else "pairs"


@dataclass(frozen=True)
class RowReader:
    """A reader of data sets into rows of token ids, with counts of dropped and cut rows.

    `read` reads the forms of users' rows; None: the rows are a run's own records. `tokenize` makes the ids. With
    `cuts_ends`, completions lose tokens beyond `max_length`, as in TRL; otherwise prompts lose their beginning.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    read: Callable[..., tuple[list[Any], Reading]] | None
    tokenize: Callable[..., tuple[IdRows, Counts]]
    max_length: int
    cuts_ends: bool

    def __call__(self, dataset: Iterable[Row], name: str) -> tuple[IdRows, Counts]:
        """Return the rows of a data set, called `name` in errors, and counts of the others."""
        if isinstance(dataset, str | Path | Mapping):
            raise UserError(
                f"{name} is a {type(dataset).__name__}: give rows, such as a list of dicts or one split of a data set."
            )
        unread = 0
        if self.read is not None:
            read, reading = self.read(dataset, name=name)
            dataset = given = [row if isinstance(row, Mapping) else vars(row) for row in read]
            for sentence in reading.sentences:
                say(f"{name}: {sentence}")
            unread = sum(reading.dropped.values())
            self._check_ids(given)
        max_length = LARGEST if self.cuts_ends else self.max_length
        num_ids = self.model.get_input_embeddings().weight.shape[0]
        rows, counts = self.tokenize(self.tokenizer, dataset, max_length=max_length, num_ids=num_ids)
        if words := counts.words(self.max_length):
            say(f"{stage_at_work(name)}: {words}")
        if self.cuts_ends:
            whole, rows = rows, self._ends_cut(rows, name)
            counts = replace(counts, long=counts.long + len(whole) - len(rows))
        check_rows_fit(self.model, rows, name=name, max_length=self.max_length)
        return rows, replace(counts, equal=counts.equal + unread)

    def _check_ids(self, rows: Sequence[Row]) -> None:
        """Raise UserError for a row whose token ids do not decode to its text."""
        for row in rows:
            for side, column in _IDS.items():
                ids = row.get(column)
                if ids and not reads_as(self.tokenizer, ids, row[side]):
                    raise UserError(
                        f"prompt {row.get('prompt_id') or row['id']}: the `{column}` do not decode to `{side}` with "
                        "this model's tokenizer: they come from another tokenizer, the text was edited, or a stop "
                        "string ended it. Remove them to have the text tokenized."
                    )

    def _ends_cut(self, rows: IdRows, name: str) -> IdRows:
        """Cut rows like TRL's `truncation_mode` "keep_start": completions lose tokens beyond `max_length`.

        Rows whose prompt fills `max_length`, or whose remaining tokens have no weight, are dropped.
        """
        kept = []
        for row in rows:
            room = self.max_length - len(row["prompt_ids"])
            cut = {
                column: ids if column == "prompt_ids" else ids[: max(0, room)] for column, ids in row.items()
            }
            if room >= 1 and any(cut.get("token_weights", [1.0])):
                kept.append(cut)
        longer = sum(num_tokens(row) > self.max_length for row in rows)
        if longer:
            say(
                f"{name}: {longer} rows are longer than max_length {self.max_length}: completions lose their end, and "
                f"{len(rows) - len(kept)} rows without a token left are dropped"
            )
        if not kept:
            raise UserError(
                f"no row is left to train on: every prompt fills max_length {self.max_length}. Raise it."
            )
        return kept
