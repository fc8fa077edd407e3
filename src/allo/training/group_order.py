"""The order of training rows of which each step takes the rows of whole prompts."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers import TrainingArguments

from allo.training.micro_batches import Row, groups_of

_AHEAD = 64
"""Groups that are looked at to fill a step: few, so that small ones do not all come first."""


class GroupSampler(Sampler[int]):
    """A sampler of row numbers whose groups stand together, in an order drawn from `seed` and the epoch.

    Steps have `rows_a_step` rows. A step begins with the group that is next, and takes the largest ones near it that
    fit. If none fits, the next one is split, and its remainder begins the next step. Without a seed, groups come in the
    order of their first rows.
    """

    def __init__(self, rows: Sequence[Row], *, rows_a_step: int, seed: int | None) -> None:
        self._groups = [[row["number"] for row in group] for group in groups_of(rows)]
        self._rows_a_step, self._seed, self._epoch = rows_a_step, seed, 0

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self._groups)))
        if self._seed is not None:
            generator = torch.Generator().manual_seed(self._seed + self._epoch)
            order = torch.randperm(len(self._groups), generator=generator).tolist()
        yield from _filled([self._groups[place] for place in order], self._rows_a_step)


def prompts_sampler(rows: Sequence[Row], args: TrainingArguments, *, rows_a_step: int) -> GroupSampler:
    """Return the sampler for a trainer's arguments: seeded, or in order if they say so."""
    seed = args.seed if args.data_seed is None else args.data_seed
    in_order = args.train_sampling_strategy == "sequential"
    return GroupSampler(rows, rows_a_step=rows_a_step, seed=None if in_order else seed)


def _filled(waiting: list[list[int]], size: int) -> Iterator[int]:
    """Yield all groups' numbers, so that every `size` of them are of as few parts of groups as possible."""
    room, first = size, 0
    while first < len(waiting):
        ahead = range(first, min(first + _AHEAD, len(waiting)))
        fitting = [place for place in ahead if len(waiting[place]) <= room]
        place = first if room == size else max(fitting, key=lambda place: len(waiting[place]), default=first)
        taken, rest = waiting[place][:room], waiting[place][room:]
        yield from taken
        room = room - len(taken) or size
        # Groups that were passed over keep their order; a remainder is the next.
        waiting[first + 1 : place + 1] = waiting[first:place]
        waiting[first] = rest
        first += not rest
