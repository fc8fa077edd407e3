"""Chunked log-probs equal the dense computation, gradient included, and never hold all logits."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allo.losses import logps
from allo.losses.logps import Head, completion_logps, token_logps

N, H, V = 7, 5, 11
FP32 = {"rtol": 1e-5, "atol": 1e-6}
FP64 = {"rtol": 1e-10, "atol": 1e-12}
BF16_GRADIENT = {"rtol": 2e-2, "atol": 2e-2}

HEADS = {
    "plain": {},
    "scaled": {"scale": 0.25},
    "soft-capped": {"softcap": 2.0},
    "both": {"scale": 0.5, "softcap": 3.0},
}
heads = pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())


@pytest.fixture(params=[1, 3, N, 100], ids=lambda tokens: f"chunk={tokens}")
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logps, "_CHUNK_BYTES", 4 * V * request.param)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden [N, H], weight [V, H], bias [V], targets [N]."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in ((N, H), (V, H), (V,))
    )
    return hidden, weight, bias, torch.randint(V, (N,), generator=generator)


def dense(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> Tensor:
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    logits = logits * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FP32), (torch.float64, FP64)])
@heads
def test_values_and_gradients_are_those_of_the_dense_computation(
    options: dict[str, float], dtype: torch.dtype, tolerance: dict[str, float], biased: bool
) -> None:
    hidden, weight, bias, targets = inputs(dtype)
    leaves = (hidden, weight, bias) if biased else (hidden, weight)
    head = Head(weight, bias if biased else None, **options)
    ours = token_logps(hidden, head, targets)
    theirs = dense(hidden, weight, bias if biased else None, targets, **options)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, **tolerance)
    upstream = torch.linspace(-1, 2, N, dtype=dtype)
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, upstream),
        torch.autograd.grad(theirs, leaves, upstream),
        **tolerance,
    )


@pytest.mark.usefixtures("_chunk")
@heads
def test_gradients_are_those_of_finite_differences(options: dict[str, float]) -> None:
    hidden, weight, bias, targets = inputs()
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logps(h, Head(w, b, **options), targets), (hidden, weight, bias)
    )


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_keeps_its_own(frozen: str) -> None:
    hidden, weight, bias, targets = inputs()
    named = {"hidden": hidden, "weight": weight, "bias": bias}
    expected = dict(
        zip(named, torch.autograd.grad(dense(*named.values(), targets).sum(), named.values()), strict=True)
    )
    named[frozen].requires_grad_(False)
    token_logps(hidden, Head(weight, bias), targets).sum().backward()
    assert named[frozen].grad is None
    for name in named.keys() - {frozen}:
        torch.testing.assert_close(named[name].grad, expected[name], **FP64)


@pytest.mark.usefixtures("_chunk")
def test_each_completion_token_has_the_logp_that_its_source_gives_it() -> None:
    """Completions of unequal length, one of them empty; sources anywhere, one of them used twice."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 6, H, generator=generator)
    weight = torch.randn(V, H, generator=generator)
    lengths = [4, 2, 0, 1]
    targets = torch.randint(V, (4, 4), generator=generator)
    sources = torch.randint(24, (4, 4), generator=generator)
    sources[1, 0] = sources[0, 0]
    mask = torch.zeros(4, 4, dtype=torch.bool)
    expected = torch.zeros(4, 4)
    for row, length in enumerate(lengths):
        for column in range(length):
            mask[row, column] = True
            state = hidden.view(24, H)[sources[row, column]]
            expected[row, column] = (state @ weight.T).log_softmax(-1)[targets[row, column]]
    result = completion_logps(hidden, Head(weight), sources, targets, mask)
    torch.testing.assert_close(result, expected, **FP32)
    assert result[~mask].eq(0).all()


def test_no_gradient_reaches_positions_that_predict_no_completion_token() -> None:
    hidden = torch.randn(2, 5, H, requires_grad=True)
    sources = torch.tensor([[1, 2, 9], [5, 0, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    targets = torch.zeros(2, 3).long()
    completion_logps(hidden, Head(torch.randn(V, H)), sources, targets, mask).sum().backward()
    assert hidden.grad.abs().sum(-1).ne(0).tolist() == [
        [False, True, True, False, False],
        [True, False, False, False, False],
    ]


def test_a_batch_without_completion_tokens_is_all_zeros_with_zero_gradient() -> None:
    hidden, weight, bias, _ = inputs(torch.float32)
    nowhere = torch.zeros(1, N).long()
    result = completion_logps(hidden[None], Head(weight, bias), nowhere, nowhere, nowhere.bool())
    assert torch.equal(result, torch.zeros(1, N))
    result.sum().backward()
    assert not hidden.grad.any() and not weight.grad.any() and not bias.grad.any()


@pytest.mark.parametrize("far", [1e4, -1e4])
def test_log_probs_and_gradients_are_finite_at_extreme_logits(far: float) -> None:
    weight = torch.eye(3) * far
    hidden = torch.eye(3).requires_grad_()
    result = token_logps(hidden, Head(weight), torch.tensor([0, 1, 0]))
    # the logit of token i is far at row i and 0 elsewhere
    expected = [0.0, 0.0, -far] if far > 0 else [far - torch.tensor(2.0).log(), far, -torch.tensor(2.0).log()]
    torch.testing.assert_close(result, torch.tensor([float(x) for x in expected]), rtol=1e-4, atol=1e-6)
    result.sum().backward()
    assert hidden.grad.isfinite().all()


def test_a_bf16_head_gives_fp32_log_probs_and_gradients_in_its_own_dtype() -> None:
    hidden, weight, bias, targets = inputs(torch.bfloat16)
    result = token_logps(hidden, Head(weight, bias), targets)
    assert result.dtype == torch.float32
    result.sum().backward()
    leaves = [leaf.detach().float().requires_grad_() for leaf in (hidden, weight, bias)]
    expected = torch.autograd.grad(dense(*leaves, targets).sum(), leaves)
    for leaf, grad in zip((hidden, weight, bias), expected, strict=True):
        assert leaf.grad.dtype == torch.bfloat16
        torch.testing.assert_close(leaf.grad.float(), grad, **BF16_GRADIENT)


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_head_runs_in_its_own_dtype(hidden_dtype: torch.dtype) -> None:
    hidden, weight, bias, targets = inputs(torch.float32)
    rounded = hidden.detach().to(hidden_dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = token_logps(rounded, Head(weight, bias), targets)
    leaf = rounded.detach().float().requires_grad_()
    theirs = dense(leaf, weight, bias, targets)
    torch.testing.assert_close(ours, theirs, **FP32)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), weight), torch.autograd.grad(theirs.sum(), weight), **FP32
    )


def test_hidden_states_of_another_dtype_take_the_heads() -> None:
    hidden, weight, bias, _ = inputs(torch.bfloat16)
    wider = hidden.detach().float() * 1.001  # not a bf16 number
    head = Head(weight, bias)
    assert torch.equal(head.logits(wider), head.logits(wider.bfloat16()))


class LargestTensor(TorchDispatchMode):
    """Records the number of entries of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *(tensor.numel() for tensor in tensors)])
        return result


def test_no_tensor_holds_the_logits_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, hidden_size, vocabulary, chunk = 64, 4, 500, 4
    monkeypatch.setattr(logps, "_CHUNK_BYTES", 4 * vocabulary * chunk)
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    weight = torch.randn(vocabulary, hidden_size, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    with LargestTensor() as dense_largest:
        dense(hidden, weight, None, targets).sum().backward()
    assert dense_largest.numel == tokens * vocabulary, "the probe sees a dense computation's logits"
    with LargestTensor() as largest:
        token_logps(hidden, Head(weight), targets).sum().backward()
    assert largest.numel == chunk * vocabulary
