"""Numbered batches of one computation, dealt to the ranks and kept in part files that outlast a kill."""

import glob
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from allo.console import Work, bar
from allo.errors import UserError
from allo.files.artifacts import ResumableLines
from allo.ranks import barrier, dealt, from_first, num_ranks, rank

Rows = list[dict[str, Any]]
Dealing = Callable[[str, int, Callable[[int], Rows]], list[Rows]]
"""Computes a described number of batches, each by its number, and returns the rows of all in order."""
_NUMBER = "number"
_PART = ".part"
_PATIENCE = 60  # seconds until a file that another machine wrote must be seen here


class Batches:
    """The batches 0 to `total` - 1 of a computation, each a list of rows and a pure function of its number.

    Each rank appends those it computes to a part file of its own. So a killed stage loses only the batches in progress, and any
    number of ranks can continue what any other number began. All ranks must make the same calls.
    """

    def __init__(self, path: Path, total: int, *, suffix: str = ".waves.part") -> None:
        self.path, self.total, self._suffix = path, total, suffix
        done = set(from_first(self._numbers_done))
        self.left = [number for number in range(total) if number not in done]

    def _numbers_done(self) -> list[int]:
        return sorted(self._read())

    def _suffix_of(self, number: int | str) -> str:
        return f"{self._suffix.removesuffix(_PART)}.rank{number}{_PART}" if number else self._suffix

    def _suffixes(self) -> list[str]:
        """Return the suffixes of the part files that exist, of all ranks there are or ever were."""
        name = self.path.name
        others = self.path.parent.glob(f"{glob.escape(name)}{self._suffix_of('*')}")
        found = [self._suffix, *sorted(other.name.removeprefix(name) for other in others)]
        return [suffix for suffix in found if self.path.with_name(name + suffix).exists()]

    def _read(self) -> dict[int, Rows]:
        """Return the rows of each batch that is done, by its number."""
        found: dict[int, Rows] = {}
        for suffix in self._suffixes():
            for batch in ResumableLines(self.path, suffix=suffix, in_order=False).batches:
                if batch and batch[0].keys() == {_NUMBER}:  # others are of an earlier version
                    found[int(batch[0][_NUMBER])] = batch[1:]
        return found

    def fill(
        self,
        make: Callable[[Iterator[int]], Iterable[tuple[int, list[Any]]]],
        description: str,
        *,
        together: bool = False,
    ) -> None:
        """Compute what is left: `make` yields the rows of each number that it is given. Return when all ranks are done.

        With `together`, every rank computes every batch, as those that share a model must, and the first keeps them.
        """
        if self.left:
            lines = ResumableLines(self.path, suffix=self._suffix_of(rank()), in_order=False)
            with bar(description, total=self.total, done=self.total - len(self.left)) as advance:
                for number, rows in make(self._all(advance) if together else self._share(advance)):
                    if not (together and rank()):
                        lines.append([{_NUMBER: number}, *rows])
        barrier()

    def _all(self, advance: Work) -> Iterator[int]:
        for number in self.left:
            yield number
            advance(1)

    def _share(self, advance: Work) -> Iterator[int]:
        """Yield this rank's numbers, and show how many batches of all ranks are done or at work."""
        before = 0
        for place in dealt(len(self.left)):
            advance(place - before)
            before = place
            yield self.left[place]
        advance(len(self.left) - before)

    def rows(self) -> list[Rows]:
        """Return the rows of all batches, in order."""
        found, end = self._read(), time.monotonic() + _PATIENCE
        while missing := [number for number in range(self.total) if number not in found]:
            if num_ranks() == 1 or time.monotonic() > end:
                raise UserError(
                    f"{self.path}: rank {rank()} cannot see batch {missing[0]} of {self.total}: all processes need the run's "
                    "folder on one shared file system."
                )
            time.sleep(1)
            found = self._read()
        barrier()  # before any rank discards them
        return [found[number] for number in range(self.total)]

    def discard(self) -> None:
        """Remove the part files once the finished file exists."""
        for suffix in self._suffixes():
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


Parts = list[Batches | ResumableLines]
"""Part files, to discard once the finished file exists."""


def in_turn(description: str, total: int, compute: Callable[[int], Rows]) -> list[Rows]:
    """Compute all batches in this process, without a file."""
    with bar(description, total=total) as advance:
        found = []
        for number in range(total):
            found.append(compute(number))
            advance(1)
    return found


def in_files(path: Path, parts: Parts, *, together: bool = False) -> Dealing:
    """Return a dealing among the ranks, through part files below `path`; `parts` receives what to discard at the end.

    `together` as in `Batches.fill`.
    """

    def deal(description: str, total: int, compute: Callable[[int], Rows]) -> list[Rows]:
        own = path.with_name(f"{path.name}.{description.replace(' ', '-')}")
        batches = Batches(own, total)
        parts.append(batches)
        made = partial(map, lambda number: (number, compute(number)))
        batches.fill(made, description, together=together)
        return batches.rows()

    return deal
