"""A warm-up of every weight that updates each tensor inside the backward pass.

The rule, for a matrix of weights W with gradient G [R, C], in micro-batch t = 1, 2, ...:

    r = b r + (1 - b) mean over columns of G^2        b = 1 - t^-0.8
    c = b c + (1 - b) mean over rows of G^2
    delta -= rate * clamp(G / sqrt(r c / mean r), -1, 1)
    W = round(W_start + delta)

The factored second moments are Adafactor's (arXiv 1804.04235, algorithm 4); a vector keeps one per entry. The clamp
acts as a soft sign: as under Adam, a weight moves by at most `rate`, so that deltas from large gradients do not
outgrow deltas from steady ones.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from allo.weights.layout import trained_parameters
from allo.weights.shards import Ranks, own_rows

# Entries updated together, which bounds the fp32 scratch.
_PIECE = 1 << 20
_DECAY = 0.8
_SMALLEST = torch.finfo(torch.float32).tiny


class FusedWarmup:
    """The module's update rule for every weight of a model, or of the tensors `among` these.

    `update` takes gradients from `gradients_taken`:

        warmup = FusedWarmup(model)
        with gradients_taken(model, warmup.update):
            for warmup.rate in rates:
                loss(next(batches)).backward()

    Each micro-batch is an update. Gradients are neither accumulated nor clipped by a global norm, because no two
    exist at the same time. Device memory holds the weights, one dense gradient, R + C numbers per matrix and 2^20
    entries of scratch. Host memory holds `deltas`, each weight's total change [shape] in fp32, and `start`, the weights
    that it began with [shape] in the model's dtype. Of a sharded model all of these are of this rank's rows, and ranks
    exchange C + 1 numbers per matrix and micro-batch.
    """

    def __init__(self, model: nn.Module, *, among: Collection[str] | None = None) -> None:
        self.rate = 0.0
        parameters = trained_parameters(model)
        named = {name: param for name, param in parameters.items() if among is None or name in among}
        assert all(param.is_contiguous() for param in named.values())
        ranks = Ranks.of(model)
        self.start = {name: own_rows(param).cpu().clone() for name, param in named.items()}
        self.deltas = {
            name: torch.zeros(start.shape, dtype=torch.float32) for name, start in self.start.items()
        }
        self._moments = {name: _SecondMoments(param, ranks) for name, param in named.items()}

    @torch.no_grad()
    def update(self, name: str, param: nn.Parameter, gradient: Tensor) -> None:
        """Move the tensor's weights by their gradient [shape], in place."""
        moments = self._moments[name]
        gradient = _as_matrix(gradient)
        moments.add(gradient)
        live, start, delta = (_as_matrix(t) for t in (own_rows(param), self.start[name], self.deltas[name]))
        for rows in _pieces(gradient):
            step = moments.normalised(gradient[rows], rows).clamp_(-1, 1)
            moved = delta[rows].to(step.device).sub_(step, alpha=self.rate)
            delta[rows] = moved
            live[rows] = start[rows].to(step.device).float() + moved

    def weights(self, name: str) -> Tensor:
        """Return the warmed-up weights [shape] in fp32, before rounding to the model's dtype."""
        return self.start[name].float() + self.deltas[name]

    @property
    def host_bytes(self) -> int:
        """Return the bytes of the deltas and the starting weights."""
        held = (*self.start.values(), *self.deltas.values())
        return sum(tensor.nbytes for tensor in held)

    @property
    def device_bytes(self) -> int:
        """Return the bytes of the second moments; the model's weights are not counted."""
        return sum(moments.num_bytes for moments in self._moments.values())


class _SecondMoments:
    """Running means of a tensor's squared gradient, by row and column; by entry for a vector."""

    def __init__(self, param: Tensor, ranks: Ranks) -> None:
        rows, device = _as_matrix(own_rows(param)), own_rows(param).device
        self._ranks = ranks
        self._is_vector = param.ndim < 2
        # The numbers are the whole tensor's, of which these rows may be a part.
        self._num_rows, self._num_columns = (
            (1, param.numel()) if self._is_vector else (len(param), rows.shape[1])
        )
        self._rows = torch.zeros(len(rows), device=device)
        # A vector is one row, so each column mean is that of one entry.
        self._columns = torch.zeros(rows.shape[1], device=device)
        self._mean_of_rows = torch.zeros((), device=device)
        self._num_updates = 0

    def add(self, gradient: Tensor) -> None:
        """Add a gradient [R, C] to the means."""
        self._num_updates += 1
        decay = 1 - self._num_updates**-_DECAY
        self._rows.mul_(decay)
        self._columns.mul_(decay)
        by_row, by_column = torch.zeros_like(self._rows), torch.zeros_like(self._columns)
        for rows in _pieces(gradient):
            squares = gradient[rows].float().square()
            by_row[rows] = squares.sum(1)
            by_column.add_(squares.sum(0))
        self._ranks.sum(by_row if self._is_vector else by_column)  # what runs across the ranks' rows
        self._rows.add_(by_row, alpha=(1 - decay) / self._num_columns)
        self._columns.add_(by_column, alpha=(1 - decay) / self._num_rows)
        total = self._rows.sum()
        self._mean_of_rows = total if self._is_vector else self._ranks.sum(total) / self._num_rows

    def normalised(self, gradient: Tensor, rows: slice) -> Tensor:
        """Return G / sqrt(r c / mean r) for some rows [n, C], in fp32; 0 if the gradient is 0."""
        of_rows = self._rows[rows].clamp(min=_SMALLEST).rsqrt_().unsqueeze(1)
        of_columns = self._columns.clamp(min=_SMALLEST).rsqrt_()
        # Multiplied in this order, no product leaves the range of fp32.
        return (gradient.float() * of_rows).mul_(of_columns).mul_(self._mean_of_rows.sqrt())

    @property
    def num_bytes(self) -> int:
        return self._rows.nbytes + self._columns.nbytes


def _as_matrix(tensor: Tensor) -> Tensor:
    """Return a view [R, C]: a vector becomes one row, later dimensions are joined."""
    return tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.reshape(len(tensor), -1)


def _pieces(matrix: Tensor) -> list[slice]:
    """Return slices of whole rows with about `_PIECE` entries each."""
    num_rows, num_columns = matrix.shape
    size = max(1, _PIECE // max(num_columns, 1))
    return [slice(start, start + size) for start in range(0, num_rows, size)]
