"""Sums in host memory of gradients that a backward pass hands over: equal to autograd's, one gradient at a time."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from allo.weights.host_sums import HostSums
from allo.weights.taken_gradients import gradients_taken

FP32 = {"rtol": 1e-6, "atol": 1e-6}
# A bf16 number is right to 1/256; a sum of few addends, each addition rounded to either side, to a little more.
FEW_IN_BF16 = 4 / 256
NUM_BATCHES = 3


class Tied(nn.Module):
    """An embedding that is also the head, a matrix and a vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Parameter(torch.randn(11, 4))
        self.inner = nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(self.embedding[ids]))
        return (hidden @ self.embedding.T).logsumexp(-1).sum()


def batches() -> list[Tensor]:
    return [torch.randint(11, (5,), generator=torch.Generator().manual_seed(n)) for n in range(NUM_BATCHES)]


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(param.shape) for name, param in model.named_parameters()}


def summed(model: nn.Module, dtype: torch.dtype) -> tuple[HostSums, HostSums]:
    """The gradients' sums and the sums of their squares."""
    gradients, squares = HostSums(shapes(model), dtype=dtype), HostSums(shapes(model), dtype=dtype)

    def take(name: str, _: nn.Parameter, gradient: Tensor) -> None:
        gradients.add(name, gradient)
        squares.add_squares(name, gradient)

    with gradients_taken(model, take):
        for ids in batches():
            model(ids).backward()
    return gradients, squares


def dense(model: nn.Module) -> list[dict[str, Tensor]]:
    """Autograd's gradient of each batch."""
    names = [name for name, _ in model.named_parameters()]
    each = [torch.autograd.grad(model(ids), list(model.parameters())) for ids in batches()]
    return [dict(zip(names, gradients, strict=True)) for gradients in each]


def test_sums_of_taken_gradients_are_autograds() -> None:
    model = Tied()
    expected = dense(model)
    gradients, squares = summed(model, torch.float32)
    for name in shapes(model):
        torch.testing.assert_close(gradients[name], sum(one[name] for one in expected), **FP32)
        torch.testing.assert_close(squares[name], sum(one[name] ** 2 for one in expected), **FP32)


def test_sums_in_bf16_are_near_and_half_as_large() -> None:
    model = Tied()
    exact, near = summed(model, torch.float32), summed(model, torch.bfloat16)
    for ours, theirs in zip(near, exact, strict=True):
        assert ours.num_bytes * 2 == theirs.num_bytes
    # The sums have one sign: nothing cancels, so a relative error means something.
    for name in shapes(model):
        error = (near[1][name].float() - exact[1][name]).abs()
        assert bool((error <= FEW_IN_BF16 * exact[1][name]).all()), name


def test_bf16_sums_do_not_swallow_small_addends() -> None:
    """Rounded to nearest, 256 + 0.25 is 256 however often it is added."""
    num_entries, num_addends = 4096, 1024
    sums = HostSums({"w": (num_entries,)}, dtype=torch.bfloat16)
    sums.add("w", torch.full((num_entries,), 256.0))
    for _ in range(num_addends):
        sums.add("w", torch.full((num_entries,), 0.25))
    # Steps of bf16 are 2 below 512: an addition has a variance below 0.25 * 2, the mean of all entries little.
    spread = (num_addends * 0.25 * 2 / num_entries) ** 0.5
    assert abs(sums["w"].float().mean().item() - 512) < 5 * spread


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 0.0, -1.5])
def test_what_bf16_can_say_exactly_is_kept(value: float) -> None:
    sums = HostSums({"w": (64,)}, dtype=torch.bfloat16)
    sums.add("w", torch.full((64,), value))
    torch.testing.assert_close(sums["w"].float(), torch.full((64,), value), rtol=0, atol=0, equal_nan=True)


def test_the_same_seed_gives_the_same_bits() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))

    def bits(seed: int) -> Tensor:
        sums = HostSums({"w": (1000,)}, dtype=torch.bfloat16, seed=seed)
        sums.add("w", values)
        return sums["w"].view(torch.int16)

    assert torch.equal(bits(1), bits(1))
    assert not torch.equal(bits(1), bits(2))


@pytest.mark.invariant(
    "The fused warm-up is its rule; no gradient outlives its turn while gradients are added up on the host."
)
def test_no_gradient_outlives_its_turn() -> None:
    model = Tied()
    taken: list[weakref.ref[Tensor]] = []

    def take(name: str, param: nn.Parameter, gradient: Tensor) -> None:
        assert all(other.grad is None for other in model.parameters())
        assert all(earlier() is None for earlier in taken), f"a gradient still lives at the turn of {name}"
        taken.append(weakref.ref(gradient))

    with gradients_taken(model, take):
        for ids in batches():
            model(ids).backward()
    assert len(taken) == NUM_BATCHES * len(shapes(model)), "each tensor once a pass, a tied one too"
    assert all(gradient() is None for gradient in taken)


def test_the_model_trains_as_before_after_the_block() -> None:
    model = Tied()
    model.inner.bias.requires_grad_(False)
    with gradients_taken(model, lambda *_: None):
        assert model.inner.bias.requires_grad
        model(batches()[0]).backward()
    assert not model.inner.bias.requires_grad
    model(batches()[0]).backward()
    assert model.embedding.grad is not None and model.inner.bias.grad is None
