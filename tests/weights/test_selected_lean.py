"""A lean copy of the selected weights: nine bytes an entry, and the training of fp32 masters."""

import copy

import pytest
import torch
from test_selected import (
    BETAS,
    DECAY,
    EPS,
    MAX_NORM,
    TinyModel,
    adamw,
    data,
    lean_adamw,
    loss_of,
    shapes_of,
    sparse_mask,
    train,
)
from torch import Tensor, nn

from allo.errors import UserError
from allo.weights.fingerprints import as_bits
from allo.weights.lean_adamw import adamw_, norm_in_fp32
from allo.weights.param_mask import ParamMask
from allo.weights.selected import SelectedWeights
from allo.weights.split_master import split

LONG = 12  # times the five steps of `data`
# Largest relative difference of the loss after each step of the lean copy from the default's.
LOSS = 0.02
# Least cosine between the ways that the masters went.
COSINE = 0.995
# Largest relative difference of the gradient's norm: each entry is rounded to bf16 once a micro-batch.
NORM = 2**-8
SUMMED = 1e-5
STATE_BYTES = 9.0  # a selected weight, slots aside


def long_data() -> Tensor:
    return data().repeat(LONG, 1, 1, 1)


def as_one(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].float() for name in sorted(tensors)])


def losses_of(model: nn.Module, selected: SelectedWeights, optimizer: torch.optim.Optimizer) -> list[float]:
    losses = []
    for step in long_data():
        train(model, selected, optimizer, step[None])
        with torch.no_grad():
            losses.append(loss_of(model, data().flatten(0, 2)).item())
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_and_the_way_are_the_defaults(dtype: torch.dtype) -> None:
    ours, theirs = TinyModel().to(dtype), TinyModel().to(dtype)
    mask = sparse_mask(ours)
    lean, default = SelectedWeights(ours, mask, lean=True), SelectedWeights(theirs, mask)
    before = as_one(default.masters()).clone()
    assert torch.equal(as_one(lean.masters()), before)
    lean_losses = losses_of(ours, lean, lean_adamw(lean))
    default_losses = losses_of(theirs, default, adamw(default))
    assert default_losses[-1] < 0.6 * default_losses[0], "it trains"
    assert lean_losses == pytest.approx(default_losses, rel=LOSS)
    way, exact_way = as_one(lean.masters()) - before, as_one(default.masters()) - before
    assert torch.cosine_similarity(way, exact_way, dim=0) >= COSINE


@pytest.mark.invariant(
    "Lean: a master put together from weight and residual has the bits that were taken apart; with exact moments the masters are fp32 masters bit for bit; at most 9 bytes a selected weight."
)
def test_with_exact_moments_and_gradients_the_masters_are_fp32_masters_bit_for_bit() -> None:
    """Only the step differs from the trainer's: the moments are fp32, and the gradient is the same for both."""
    model = TinyModel().to(torch.bfloat16)
    mask = sparse_mask(model)
    lean = SelectedWeights(model, mask, lean=True)
    masters = {flat: torch.zeros(len(flat)) for flat in lean.parameters()}
    whole = {name: master.clone() for name, master in lean.masters().items()}
    moments = {flat: (torch.zeros(len(flat)), torch.zeros(len(flat))) for flat in masters}
    exact_moments = {name: (torch.zeros(len(w)), torch.zeros(len(w))) for name, w in whole.items()}
    settings = {"lr": 1e-4, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
    for number, step in enumerate(data(), start=1):
        for micro in step:
            loss_of(model, micro).backward()
        for name, gradient in lean.gradients().items():
            adamw_(whole[name], gradient.float(), *exact_moments[name], step=number, **settings)
        for flat in lean.parameters():
            for entries, master in lean.walk(flat):
                exp_avg, exp_avg_sq = (moment[entries] for moment in moments[flat])
                assert flat.grad is not None
                adamw_(master, flat.grad[entries].float(), exp_avg, exp_avg_sq, step=number, **settings)
            flat.grad = None
        for name, master in lean.masters().items():
            assert torch.equal(master, whole[name]), name
            live = dict(model.named_parameters())[name].view(-1)[mask.indices[name].long()]
            assert torch.equal(live, split(whole[name])[0]), name


def test_updates_that_bf16_would_swallow_add_up() -> None:
    model = TinyModel().to(torch.bfloat16)
    before = copy.deepcopy(model)
    selected = SelectedWeights(model, sparse_mask(model), lean=True)
    start = as_one(selected.masters())
    train(model, selected, lean_adamw(selected, lr=1e-6, weight_decay=0.0), data())
    assert (as_one(selected.masters()) - start).abs().median() > 1e-6
    for (name, param), old in zip(model.named_parameters(), before.parameters(), strict=True):
        large = param.abs() > 0.1
        assert torch.equal(param[large], old[large]), f"{name}: bf16 is 2**-11 apart at 0.1"


def test_clipping_takes_the_norm_in_fp32() -> None:
    norms = []
    for lean in (True, False):
        model = TinyModel().to(torch.bfloat16)
        selected = SelectedWeights(model, sparse_mask(model), lean=lean)
        for micro in data()[0]:
            loss_of(model, micro).backward()
        norm = selected.clip_grad_norm_(MAX_NORM / 100)
        assert norm.dtype == torch.float32
        norms.append(norm.item())
        assert as_one(selected.gradients()).norm().item() == pytest.approx(MAX_NORM / 100, rel=NORM)
    assert norms[0] == pytest.approx(norms[1], rel=NORM)
    assert norms[0] != pytest.approx(float(torch.tensor(norms[0]).bfloat16()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_many_entries_is_their_norm(dtype: torch.dtype) -> None:
    """Summed one after the other, 16 million squares lose a thousandth in fp32."""
    gradient = torch.full((2**24 + 5,), 1e-3, dtype=dtype)
    exact = float(gradient[0].double()) * len(gradient) ** 0.5
    assert norm_in_fp32([gradient, torch.zeros(3, dtype=dtype)]).item() == pytest.approx(exact, rel=SUMMED)


def test_a_swap_restores_exact_bits_also_after_an_exception() -> None:
    model = TinyModel().to(torch.bfloat16)
    start = copy.deepcopy(model)
    selected = SelectedWeights(model, sparse_mask(model), slots=("ref",), lean=True)
    optimizer = lean_adamw(selected)
    train(model, selected, optimizer, data())
    trained, masters = copy.deepcopy(model), as_one(selected.masters())

    def look_and_fail() -> None:
        with selected.swapped("ref"):
            for param, other in zip(model.parameters(), start.parameters(), strict=True):
                assert torch.equal(as_bits(param.data), as_bits(other.data))
            raise KeyError("inside")

    for _ in range(2):
        with pytest.raises(KeyError, match="inside"):
            look_and_fail()
        for param, other in zip(model.parameters(), trained.parameters(), strict=True):
            assert torch.equal(as_bits(param.data), as_bits(other.data))
    assert torch.equal(as_one(selected.masters()), masters)


def test_a_step_while_swapped_is_refused() -> None:
    model = TinyModel().to(torch.bfloat16)
    selected = SelectedWeights(model, sparse_mask(model), slots=("ref",), lean=True)
    optimizer = lean_adamw(selected)
    loss_of(model, data()[0, 0]).backward()
    with selected.swapped("ref"), pytest.raises(AssertionError, match="'ref' is in place"):
        optimizer.step()


@pytest.mark.invariant(
    "Lean: a master put together from weight and residual has the bits that were taken apart; with exact moments the masters are fp32 masters bit for bit; at most 9 bytes a selected weight."
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_is_nine_bytes_a_selected_weight(dtype: torch.dtype) -> None:
    """Every tensor that lives beside the model, by the memory behind it."""
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4))).to(dtype)
    generator = torch.Generator().manual_seed(0)
    indices = {
        name: (torch.rand(param.numel(), generator=generator) < 0.05).nonzero().squeeze(-1).int()
        for name, param in model.named_parameters()
    }
    selected = SelectedWeights(model, ParamMask(indices, shapes=shapes_of(model)), slots=("ref",), lean=True)
    optimizer = lean_adamw(selected)
    model(torch.ones(1, 256, dtype=dtype)).sum().backward()
    optimizer.step()
    own = [param.untyped_storage().data_ptr() for param in model.parameters()]
    held: dict[int, int] = {}
    slots: dict[int, int] = {}
    for part in selected._parts:
        there = [part.flat.data, part.grad, part.residual, *vars(part.places).values()]
        for tensor in filter(torch.is_tensor, there):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        for bits in part.slots.values():
            slots[bits.untyped_storage().data_ptr()] = bits.untyped_storage().nbytes()
    for state in optimizer.state.values():
        for tensor in filter(torch.is_tensor, state.values()):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    assert not set(own) & set(held)
    assert sum(held.values()) <= STATE_BYTES * selected.num_selected
    moments = sum(
        t.nbytes for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)
    )
    stored = sum(held.values()) + sum(slots.values())
    # The two flat vectors' one stored bf16 zero each are not counted.
    assert selected.num_bytes + moments == stored - 2 * 2
    assert sum(slots.values()) == dtype.itemsize * selected.num_selected


@pytest.mark.gpu
def test_on_a_gpu_the_slots_lie_in_host_memory_and_the_way_is_the_cpus() -> None:
    ways = []
    for device in ("cpu", "cuda"):
        model = TinyModel().to(device, torch.bfloat16)
        start = copy.deepcopy(model)
        selected = SelectedWeights(model, sparse_mask(model), slots=("ref",), lean=True)
        before = as_one(selected.masters())
        train(model, selected, lean_adamw(selected), data().to(device))
        ways.append((as_one(selected.masters()) - before).cpu())
        slots = selected.slot("ref").values()
        assert all(bits.device.type == "cpu" and bits.is_pinned() == (device == "cuda") for bits in slots)
        with selected.swapped("ref"):
            for param, other in zip(model.parameters(), start.parameters(), strict=True):
                assert torch.equal(as_bits(param.data), as_bits(other.data))
    assert torch.cosine_similarity(*ways, dim=0) >= COSINE


def test_weights_of_another_dtype_are_refused() -> None:
    model = TinyModel().to(torch.float16)
    with pytest.raises(UserError, match=r"lean: down\.weight is float16; load the model in bfloat16"):
        SelectedWeights(model, sparse_mask(model), lean=True)
    assert all(param.requires_grad for param in model.parameters()), "the model is left as it was"
