"""A mask from two folders of weights, read piece by piece, without building a model or a tokenizer.

One pass over both folders suffices: this thread reads and scores, a second one hashes the base, and a third one (in
`selection`) selects candidates. A sample of pages, read before, provides the cut.
"""

import math
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from allo.console import say, track
from allo.errors import UserError, and_more
from allo.recipe.criteria import CRITERIA
from allo.recipe.granularity import WEIGHT, Granularity
from allo.weights import importance
from allo.weights.allowed import Kinds, Shapes, allowed_tensors, kinds_unknown, num_entries
from allo.weights.checkpoints import Checkpoint, check_same_layout
from allo.weights.fingerprints import Digest, combine
from allo.weights.group_selection import select_groups
from allo.weights.param_mask import ParamMask
from allo.weights.selection import num_to_select, select_sampled
from allo.weights.sparse_file import Profile, check_profile

# Two folders suffice for these; `warmup` is called `delta`, as nobody knows how the second folder was trained.
FROM_FOLDERS = {
    "delta" if criterion.name == "warmup" else criterion.name: criterion
    for criterion in CRITERIA.values()
    if criterion.needs == "warm-up" or not criterion.sees_pairs
}

# The sample: the number of pages, evenly spaced over all tensors, and the neighbouring entries per page.
NUM_PAGES = 1 << 16
PAGE = 1 << 8
_PAGES_AT_ONCE = 1 << 10
_AHEAD = 2  # pieces that wait for hashing


def mask_from_checkpoints(
    base: str | Path,
    tuned: str | Path,
    *,
    density: float,
    out: str | Path,
    criterion: str = "delta",
    seed: int = 0,
    granularity: str = WEIGHT,
    profile: Profile = "compact",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: Kinds = kinds_unknown,
    trained: Collection[str] | None = None,
) -> ParamMask:
    """Select the top `density` of all floating-point weights, write the mask to `out` and return it.

    `trained`: the tensors that a run of `base` trains; others, such as a vision tower, do not count. None: all.

    Resident memory grows with the mask, not with the model. The mask has exactly k weights even if fewer weights
    differ, or none. The rest are then unchanged weights, drawn by their stable hash, and a UserWarning counts them.
    Whole groups (`granularity` "row", "column" or "block(n)") fall short of k by less than one group. `include`, `exclude`
    and `kinds` as in `allowed_tensors`.

    Raises UserError for an impossible density, criterion, granularity or profile, for folders that cannot be read or
    differ in layout, and for NaN weights.
    """
    _check_request(criterion, granularity)
    check_profile(profile)
    comparison = _Comparison(Checkpoint.open(base), Checkpoint.open(tuned), criterion=criterion, seed=seed)
    shapes, others = _counted(comparison.shapes, trained, base)
    allowed = allowed_tensors(shapes, kinds, include=include, exclude=exclude, density=density, others=others)
    comparison.allowed, k = allowed.own_shapes, num_to_select(density, num_entries(shapes))
    with _one_torch_thread():
        if granularity == WEIGHT:
            selected = select_sampled(
                comparison.scores,
                sample=comparison.sample(),
                num_entries=num_entries(comparison.allowed),
                k=k,
            )
        else:
            selected = select_groups(comparison.scores, k=k, shapes=shapes, granularity=granularity)

    if criterion == "delta" and comparison.num_changed < k:
        among = " in the tensors that may be selected" if allowed.metadata else ""
        warnings.warn(_too_few_differ(f"{base} and {tuned}{among}", comparison.num_changed, k), stacklevel=2)
    metadata = {
        "base_fingerprint": combine(comparison.digests),
        "criterion": criterion,
        "density": str(density),
        "num_changed": str(comparison.num_changed),
        "score_dtype": "float32",
        "seed": str(seed),
    } | allowed.metadata
    if granularity != WEIGHT:
        metadata |= {"granularity": granularity, "num_asked": str(k)}
    mask = ParamMask(selected, shapes=shapes, metadata=metadata)
    mask.save(out, profile=profile)
    return mask


def _counted(shapes: Shapes, trained: Collection[str] | None, base: str | Path) -> tuple[Shapes, Shapes]:
    """Return the tensors that a run trains and the others, which are said."""
    others = {name: shape for name, shape in shapes.items() if trained is not None and name not in trained}
    if others:
        say(
            f"{num_entries(others):,} of {base}'s {num_entries(shapes):,} weights are not trained by a run, and no density "
            f"counts them: {next(iter(others))}{and_more(others)}"
        )
    return {name: shape for name, shape in shapes.items() if name not in others}, others


def _too_few_differ(between: str, num_changed: int, k: int) -> str:
    return (
        f"only {num_changed} weights differ between {between}, but {k} are to be selected: the other {k - num_changed} are"
        " drawn from the unchanged weights by a stable hash"
    )


def _check_request(criterion: str, granularity: str) -> None:
    """Raise UserError if two checkpoints cannot provide the criterion, or not at this granularity."""
    if criterion not in FROM_FOLDERS:
        raise UserError(
            f"criterion {criterion!r} cannot be computed from two checkpoints: choose {', '.join(FROM_FOLDERS)}"
        )
    Granularity.parse(granularity)
    if not FROM_FOLDERS[criterion].ranks_groups and granularity != WEIGHT:
        raise UserError(
            f"criterion {criterion!r} ranks single weights: granularity {granularity!r} does not apply"
        )


class _Comparison:
    """Two checkpoints of one layout: their scores, the base's digests and the number of changed weights.

    Only tensors in `allowed` have scores. Raises UserError if the layouts differ.
    """

    def __init__(self, before: Checkpoint, after: Checkpoint, *, criterion: str, seed: int) -> None:
        check_same_layout(before, after)
        self._before, self._after = before, after
        self._criterion, self._seed = FROM_FOLDERS[criterion], seed
        self._scoring = importance.scoring_of(self._criterion)
        self.digests: dict[str, str] = {}
        self.num_changed = 0
        self.allowed = self.shapes

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the floating-point tensors; no others have scores."""
        stored = self._before.stored.items()
        return {name: entry.shape for name, entry in stored if entry.dtype.is_floating_point}

    def scores(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, fp32 scores) piece by piece; afterwards `digests` and `num_changed` are complete."""
        self.num_changed = 0
        stored = self._before.stored
        with ThreadPoolExecutor(1) as hashing:
            waiting: deque[Future[None]] = deque()
            for name in track(stored, "mask, select", total=len(stored), unit="tensor"):
                digest, start = Digest(stored[name].dtype, stored[name].shape), 0
                for old, new in zip(self._before.pieces(name), self._after.pieces(name), strict=True):
                    waiting.append(hashing.submit(digest.update, old))
                    if len(waiting) > _AHEAD:
                        waiting.popleft().result()
                    if name in self.allowed:
                        yield name, self._counted(name, old, new, start)
                    start += len(old)
                while waiting:
                    waiting.popleft().result()
                self.digests[name] = digest.hexdigest()

    def sample(self) -> Iterator[Tensor]:
        """Yield the scores of evenly spaced whole pages."""
        num_pages = {name: -(-math.prod(shape) // PAGE) for name, shape in self.allowed.items()}
        every = max(sum(num_pages.values()) // NUM_PAGES, 1)
        first = every // 2
        for name, shape in self.allowed.items():
            starts = range(first * PAGE, math.prod(shape), every * PAGE)
            first += len(starts) * every - num_pages[name]
            for number in range(0, len(starts), _PAGES_AT_ONCE):
                yield from self._scores_of_pages(name, starts[number : number + _PAGES_AT_ONCE])

    def _scores_of_pages(self, name: str, starts: range) -> Iterator[Tensor]:
        """Yield the scores of the whole pages together, and of a shorter last page separately."""
        num = math.prod(self._before.stored[name].shape)
        whole = range(starts.start, min(starts.stop, num - PAGE + 1), starts.step)
        for some, size in ((whole, PAGE), (starts[len(whole) :], num % PAGE)):
            if some:
                old, new = (side.pages(name, some, size) for side in (self._before, self._after))
                indices = torch.tensor(some).unsqueeze(1) + torch.arange(size)
                yield self._score(name, old, new, indices.reshape(-1))

    def _counted(self, name: str, old: Tensor, new: Tensor, start: int) -> Tensor:
        """Return the scores of entries from flat index `start` on; add changed entries to `num_changed`."""
        change = importance.delta(old, new)
        # Counted as integers, four times as fast; no entry is -0.0 here.
        self.num_changed += int(np.count_nonzero(change.view(torch.int32).numpy()))
        if self._scoring is importance.delta:
            return change
        return self._score(name, old, new, torch.arange(start, start + len(old)))

    def _score(self, name: str, old: Tensor, new: Tensor, indices: Tensor) -> Tensor:
        if self._criterion.needs == "warm-up":
            return self._scoring(old, new)
        return self._scoring(
            old, importance.statistic_of(self._criterion.needs, name, old, indices, seed=self._seed)
        )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Limit torch to one thread: its threads would compete with ours for the cores."""
    num = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num)
