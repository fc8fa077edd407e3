"""The warm-up inside the backward pass, held against its rule written plainly with dense gradients."""

import pytest
import torch
from torch import Tensor, nn

from allo.weights import fused_warmup
from allo.weights.fused_warmup import FusedWarmup
from allo.weights.taken_gradients import gradients_taken

FP32 = {"rtol": 1e-5, "atol": 1e-6}
RATES = [0.0, 0.01, 0.02, 0.015, 0.005]


class Small(nn.Module):
    """A tied embedding of which some rows get no gradient, a matrix with a bias, a norm and a filter [6, 2, 3]."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 6)
        self.inner = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.filter = nn.Conv1d(6, 6, 3, groups=3)
        self.to(dtype)

    def forward(self, batch: int) -> Tensor:
        ids = torch.arange(7) * (batch + 2) % 15
        hidden = self.norm(self.inner(self.embedding(ids)))
        hidden = self.filter(hidden.T.unsqueeze(0)).squeeze(0).T
        return (hidden @ self.embedding.weight[:15].T).logsumexp(-1).float().square().mean()


def warmed_up(model: nn.Module, rates: list[float]) -> FusedWarmup:
    warmup = FusedWarmup(model)
    with gradients_taken(model, warmup.update):
        for batch, rate in enumerate(rates):
            warmup.rate = rate
            model(batch).backward()
    return warmup


def plainly(model: nn.Module, rates: list[float]) -> dict[str, Tensor]:
    """The module's formulas in float64, on all gradients of a batch at once; returns the deltas."""
    names, params = zip(*model.named_parameters(), strict=True)
    start = [param.detach().double() for param in params]
    deltas = [torch.zeros_like(tensor) for tensor in start]
    means: dict[str, Tensor] = {}
    for batch, rate in enumerate(rates):
        decay = 1 - (batch + 1) ** -0.8

        def mean(name: str, new: Tensor, decay: float = decay) -> Tensor:
            means[name] = decay * means.get(name, torch.zeros_like(new)) + (1 - decay) * new
            return means[name]

        gradients = torch.autograd.grad(model(batch), params)
        for name, param, begun, delta, gradient in zip(names, params, start, deltas, gradients, strict=True):
            squares = gradient.double().square()
            if param.ndim == 1:
                second = mean(name, squares)
            else:
                flat = squares.reshape(len(squares), -1)
                rows, columns = mean(f"{name}.r", flat.mean(1)), mean(f"{name}.c", flat.mean(0))
                second = (torch.outer(rows, columns) / rows.mean()).reshape(param.shape)
            step = torch.where(gradient == 0, 0.0, gradient.double() / second.sqrt())
            delta -= rate * step.clamp(-1, 1)
            param.data.copy_(begun + delta)
    return dict(zip(names, deltas, strict=True))


@pytest.mark.invariant(
    "The fused warm-up is its rule; no gradient outlives its turn while gradients are added up on the host."
)
def test_it_is_the_rule_written_plainly() -> None:
    model, other = Small(), Small()
    warmup, expected = warmed_up(model, RATES), plainly(other, RATES)
    theirs = dict(other.named_parameters())
    for name, param in model.named_parameters():
        torch.testing.assert_close(warmup.deltas[name].double(), expected[name], **FP32)
        torch.testing.assert_close(param.detach(), theirs[name].detach(), **FP32)
        assert bool((warmup.deltas[name] != 0).any()), f"{name} did not move"


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = warmed_up(Small(), RATES)
    monkeypatch.setattr(fused_warmup, "_PIECE", 7)
    for name, delta in warmed_up(Small(), RATES).deltas.items():
        torch.testing.assert_close(delta, whole.deltas[name], **FP32)


def test_live_weights_are_the_start_plus_the_delta_rounded_once() -> None:
    model, start = Small(torch.bfloat16), dict(Small(torch.bfloat16).named_parameters())
    warmup = warmed_up(model, RATES)
    for name, param in model.named_parameters():
        moved = start[name].detach().float() + warmup.deltas[name]
        assert torch.equal(param.detach(), moved.bfloat16()), name
        assert torch.equal(warmup.weights(name), moved), name


def test_steps_too_small_for_bf16_add_up_in_the_deltas() -> None:
    model = Small(torch.bfloat16)
    start = {name: param.detach().clone() for name, param in model.named_parameters()}
    warmup = warmed_up(model, [1e-7] * 3)
    weight = model.inner.weight
    assert torch.equal(weight, start["inner.weight"])
    assert bool((warmup.deltas["inner.weight"].abs() > 2e-7).any())


def test_a_weight_moves_by_at_most_the_rate_whatever_the_gradients_scale() -> None:
    huge = Small()
    huge.forward = lambda batch: Small.forward(huge, batch) * 1e12  # type: ignore[method-assign]
    for model in (Small(), huge):
        for name, delta in warmed_up(model, RATES).deltas.items():
            assert bool((delta.abs() <= sum(RATES) * (1 + FP32["rtol"])).all()), name


def test_a_weight_without_a_gradient_stays() -> None:
    model = Small()
    warmup = warmed_up(model, RATES)
    unused = warmup.deltas["embedding.weight"][15:]
    assert torch.equal(unused, torch.zeros_like(unused))
    nothing = Small()
    nothing.forward = lambda batch: Small.forward(nothing, batch) * 0.0  # type: ignore[method-assign]
    for name, delta in warmed_up(nothing, RATES).deltas.items():
        assert torch.equal(delta, torch.zeros_like(delta)), name


def test_the_host_holds_six_bytes_a_bf16_weight_and_the_device_rows_and_columns() -> None:
    model = Small(torch.bfloat16)
    warmup = FusedWarmup(model)
    assert warmup.host_bytes == 6 * sum(param.numel() for param in model.parameters())
    matrices = 4 * ((20 + 6) + (6 + 6) + (6 + 2 * 3))
    vectors = 4 * sum(1 + param.numel() for param in model.parameters() if param.ndim == 1)
    assert warmup.device_bytes == matrices + vectors
