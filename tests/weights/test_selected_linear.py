"""A Linear with whole rows or columns selected: their gradient, no other, and nothing else changes."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from allo.errors import UserError
from allo.weights.param_mask import ParamMask
from allo.weights.selected import SelectedWeights

EQUAL = {"rtol": 0, "atol": 1e-6}
# One rounding of a bf16 gradient, and one of each of two summands.
BF16 = {"rtol": 2 * torch.finfo(torch.bfloat16).eps, "atol": 1e-3}
SIZES = (7, 12, 9, 5)
ROWS, COLUMNS = [1, 4], [0, 2, 3]
LINES = ["rows", "columns"]


def build(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(SIZES)]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).to(dtype)


def inputs(*leading: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*leading, SIZES[0], generator=torch.Generator().manual_seed(1)).to(dtype)


def mask_of(model: nn.Module, lines: str) -> ParamMask:
    """Rows or columns of each matrix, and the first entry of each bias."""
    indices = {}
    for name, param in model.named_parameters():
        grid = torch.arange(param.numel(), dtype=torch.int32).view(param.shape)
        if param.ndim == 1:
            indices[name] = grid[:1]
        else:
            indices[name] = (grid[ROWS] if lines == "rows" else grid[:, COLUMNS]).reshape(-1)
    return ParamMask(indices, shapes={name: tuple(param.shape) for name, param in model.named_parameters()})


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).float().square().sum()


def dense_gradients(model: nn.Module, mask: ParamMask, x: Tensor) -> dict[str, Tensor]:
    """The oracle: the selected entries of torch's own gradients."""
    params = dict(copy.deepcopy(model).named_parameters())
    out = torch.func.functional_call(model, params, x)
    grads = torch.autograd.grad(out.float().square().sum(), list(params.values()))
    dense = dict(zip(params, grads, strict=True))
    return {name: dense[name].float().view(-1)[index.long()] for name, index in mask.indices.items()}


def check(ours: dict[str, Tensor], theirs: dict[str, Tensor], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(
            gradient, theirs[name], **tolerance or EQUAL, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("lines", LINES)
@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (2, 1, 4)], ids=str)
def test_the_gradient_is_the_dense_ones_lines(leading: tuple[int, ...], lines: str) -> None:
    """Also of the first layer, whose input needs none."""
    model, x = build(), inputs(*leading)
    mask = mask_of(model, lines)
    expected = dense_gradients(model, mask, x)
    selected = SelectedWeights(model, mask)
    loss(model, x).backward()
    check(selected.gradients(), expected)
    loss(model, x).backward()
    check(selected.gradients(), {name: 2 * gradient for name, gradient in expected.items()})


@pytest.mark.parametrize("lines", LINES)
def test_the_gradient_of_bf16_weights_is_the_dense_ones_to_a_rounding(lines: str) -> None:
    model, x = build(torch.bfloat16), inputs(50, dtype=torch.bfloat16)
    mask = mask_of(model, lines)
    expected = dense_gradients(model, mask, x)
    selected = SelectedWeights(model, mask)
    loss(model, x).backward()
    check(selected.gradients(), expected, **BF16)


@pytest.mark.parametrize("lines", LINES)
def test_autocast_gives_the_dense_gradient_too(lines: str) -> None:
    model, x = build(), inputs(50)
    mask = mask_of(model, lines)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = dense_gradients(model, mask, x)
        selected = SelectedWeights(model, mask)
        out = loss(model, x)
    out.backward()
    check(selected.gradients(), expected, **BF16)


@pytest.mark.parametrize("lines", LINES)
def test_the_inputs_gradient_is_untouched(lines: str) -> None:
    model, x = build(), inputs(2, 3).requires_grad_()
    (expected,) = torch.autograd.grad(loss(model, x), x)
    selected = SelectedWeights(model, mask_of(model, lines))
    (found,) = torch.autograd.grad(loss(model, x), x)
    assert torch.equal(found, expected)
    assert not any(gradient.any() for gradient in selected.gradients().values()), "nobody asked for these"


class Shapes(TorchDispatchMode):
    """The shapes of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # A transposed view of a weight is no gradient.
        if isinstance(out, Tensor) and not func.is_view:
            self.made.add(tuple(out.shape))
        return out


@pytest.mark.invariant(
    "A Linear with whole lines selected makes no dense weight gradient, and every other use of its weight counts too."
)
@pytest.mark.parametrize("lines", LINES)
def test_no_dense_weight_gradient_is_made(lines: str) -> None:
    model, x = build(), inputs(6)
    weights = {tuple(layer.weight.shape) for layer in model if isinstance(layer, nn.Linear)}
    with Shapes() as dense:
        loss(model, x).backward()
    assert weights <= {shape if shape in weights else shape[::-1] for shape in dense.made}
    model.zero_grad()

    selected = SelectedWeights(model, mask_of(model, lines))
    with Shapes() as shapes:
        loss(model, x).backward()
    assert all(gradient.any() for gradient in selected.gradients().values())
    assert not shapes.made & (weights | {shape[::-1] for shape in weights})
    assert all(param.grad is None for param in model.parameters())


def saved_shapes(model: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    """Return the shapes that autograd keeps of one forward pass, weights aside."""
    storages = {param.data_ptr() for param in model.parameters()}
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in storages:
            kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return kept


def test_of_the_input_only_the_selected_columns_are_kept() -> None:
    model, x = nn.Sequential(build()[0]), inputs(6)
    SelectedWeights(model, mask_of(model, "columns"))
    assert saved_shapes(model, x) == [(6, len(COLUMNS))]


@pytest.mark.parametrize("lines", LINES)
def test_without_gradients_the_layer_is_an_ordinary_one(lines: str) -> None:
    model, x = build(), inputs(6)
    expected = model(x)
    SelectedWeights(model, mask_of(model, lines))
    assert torch.equal(model(x), expected)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, Shapes() as shapes:
            assert torch.equal(model(x), expected)
        assert not any(shape[-1:] == (len(COLUMNS),) for shape in shapes.made), "no column is taken out"


@pytest.mark.parametrize("lines", LINES)
def test_names_weights_and_what_trains_look_as_before(lines: str) -> None:
    model = build()
    names, state = [name for name, _ in model.named_parameters()], copy.deepcopy(model.state_dict())
    text = str(model)
    SelectedWeights(model, mask_of(model, lines))
    assert [name for name, _ in model.named_parameters()] == names
    assert model.state_dict().keys() == state.keys() and str(model) == text
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(param.requires_grad for param in model.parameters())


@pytest.mark.parametrize("lines", LINES)
def test_released_and_copied_models_train_densely(lines: str) -> None:
    model, x = build(), inputs(6)
    selected = SelectedWeights(model, mask_of(model, lines))
    copied = copy.deepcopy(model)
    selected.release()
    for dense in (model, copied):
        loss(dense, x).backward()
        assert all(param.grad is not None for param in dense.parameters())
    assert all("forward" not in vars(module) for module in model.modules())
    assert not any(gradient.any() for gradient in selected.gradients().values())
    for param, other in zip(model.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(other.grad, param.grad, **EQUAL)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 2 * self.weight, self.bias)


class Fused(nn.Module):
    """One Linear called twice, read by its weight as well, its weight another Linear's; and a subclass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(SIZES[0], SIZES[0])
        self.tied = nn.Linear(SIZES[0], SIZES[0], bias=False)
        self.tied.weight = self.inner.weight
        self.doubled = Doubled(SIZES[0], SIZES[0])

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(self.inner(x)) + self.tied(x))
        return self.doubled(nn.functional.linear(hidden, self.inner.weight))


@pytest.mark.invariant(
    "A Linear with whole lines selected makes no dense weight gradient, and every other use of its weight counts too."
)
@pytest.mark.parametrize("lines", LINES)
def test_every_use_of_a_weight_counts(lines: str) -> None:
    model, x = Fused(), inputs(6)
    mask = mask_of(model, lines)
    expected = dense_gradients(model, mask, x)
    selected = SelectedWeights(model, mask)
    loss(model, x).backward()
    check(selected.gradients(), expected)


def test_a_layer_whose_forward_was_replaced_keeps_it() -> None:
    model, x = build(), inputs(6)
    mask = mask_of(model, "rows")

    def halved(x: Tensor, forward: Callable[[Tensor], Tensor] = model[2].forward) -> Tensor:
        return forward(x) / 2

    model[2].forward = halved
    expected = dense_gradients(model, mask, x)
    selected = SelectedWeights(model, mask)
    loss(model, x).backward()
    check(selected.gradients(), expected)
    selected.release()
    assert model[2].forward is halved


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("lines", LINES)
def test_a_stopped_backward_pass_leaves_the_next_one_whole(lines: str) -> None:
    model, x = build(), inputs(6)
    mask = mask_of(model, lines)
    expected = dense_gradients(model, mask, x)
    selected = SelectedWeights(model, mask)
    optimizer = torch.optim.SGD(selected.parameters(), lr=1.0)

    def stop(gradient: Tensor) -> None:
        raise StoppedError

    hidden = model[:2](x)
    hidden.register_hook(stop)
    with pytest.raises(StoppedError):
        model[2:](hidden).square().sum().backward()
    with pytest.raises(RuntimeError, match="shapes"):
        model(x[:, 1:])
    optimizer.zero_grad()
    loss(model, x).backward()
    check(selected.gradients(), expected)


@pytest.mark.parametrize("lines", LINES)
def test_a_slot_swapped_in_between_leaves_the_gradient_alone(lines: str) -> None:
    model, x = build(), inputs(6)
    mask = mask_of(model, lines)
    selected = SelectedWeights(model, mask, slots=("ref",))
    for flat in selected.parameters():
        flat.data += 0.5
    selected.write_back()
    expected = dense_gradients(model, mask, x)
    with torch.no_grad(), selected.swapped("ref"):
        other = model(x)
    out = model(x)
    assert not torch.allclose(out, other)
    out.square().sum().backward()
    check(selected.gradients(), expected)


def test_a_second_selection_on_the_same_layers_is_refused_until_the_first_is_released() -> None:
    model = nn.Sequential(nn.Linear(6, 4, bias=False))
    mask = ParamMask({"0.weight": torch.arange(6, 12, dtype=torch.int32)}, shapes={"0.weight": (4, 6)})
    first = SelectedWeights(model, mask)
    with pytest.raises(UserError, match="another SelectedWeights trains this model"):
        SelectedWeights(model, mask)
    first.release()
    second = SelectedWeights(model, mask)
    model(torch.ones(2, 6)).sum().backward()
    assert second.gradients()["0.weight"].tolist() == [2.0] * 6
