"""Slots hold another model's selected entries; swapping puts its exact bits in place and back again."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from allo.weights.fingerprints import as_bits
from allo.weights.param_mask import ParamMask
from allo.weights.selected import SelectedWeights

# Bits that an arithmetic round trip would change: -0.0, NaNs with payloads, subnormals, infinities.
AWKWARD = [0x8000, 0x7FC1, 0xFFA5, 0x7F81, 0x0001, 0x8001, 0x7F80, 0xFF80]


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4, bias=False)).to(torch.bfloat16)


def mask_of(model: nn.Module) -> ParamMask:
    """Every third weight of the first matrix, all of its bias; the second matrix is untouched."""
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    indices = {"0.weight": torch.arange(0, 48, 3), "0.bias": torch.arange(6)}
    return ParamMask({name: index.int() for name, index in indices.items()}, shapes=shapes)


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: as_bits(param.data).clone() for name, param in model.named_parameters()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def move(selected: SelectedWeights) -> None:
    """Stands for a training step."""
    for flat in selected.parameters():
        flat.data += 1
    selected.write_back()


def test_the_swapped_model_is_the_other_model() -> None:
    model = build()
    start, inputs = copy.deepcopy(model), torch.randn(3, 8).bfloat16()
    selected = SelectedWeights(model, mask_of(model), slots=("ref",))
    move(selected)
    trained = copy.deepcopy(model)
    with torch.no_grad():
        assert not torch.equal(model(inputs), start(inputs))
        with selected.swapped("ref"):
            assert torch.equal(model(inputs), start(inputs))
        assert torch.equal(model(inputs), trained(inputs))


def test_swapping_restores_exact_bits_on_both_sides() -> None:
    model = build()
    awkward = torch.tensor(AWKWARD, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    model[0].weight.data.view(-1)[: 3 * len(AWKWARD) : 3] = awkward
    selected = SelectedWeights(model, mask_of(model), slots=("ref",))
    ref = {name: as_bits(values).clone() for name, values in selected.slot("ref").items()}
    assert set((ref["0.weight"].int() & 0xFFFF).tolist()) >= set(AWKWARD)
    for _ in range(2):
        model[0].weight.data.view(-1)[: 3 * len(AWKWARD) : 3] = awkward.flip(0)
        live = bits(model)
        with selected.swapped("ref"):
            swapped = bits(model)["0.weight"].view(-1)
            assert torch.equal(swapped[::3], ref["0.weight"])
            for unselected in (1, 2):
                assert torch.equal(swapped[unselected::3], live["0.weight"].view(-1)[unselected::3])
        assert same(bits(model), live)
        assert same({name: as_bits(values) for name, values in selected.slot("ref").items()}, ref)


@pytest.mark.invariant("A swap restores exact bits, also after an exception.")
def test_the_live_bits_come_back_after_an_exception() -> None:
    model = build()
    selected = SelectedWeights(model, mask_of(model), slots=("ref",))
    move(selected)
    live = bits(model)

    def fail() -> None:
        with selected.swapped("ref"):
            assert not same(bits(model), live)
            raise KeyError("inside")

    for _ in range(2):  # and the slot can be swapped again
        with pytest.raises(KeyError, match="inside"):
            fail()
        assert same(bits(model), live)


@pytest.mark.parametrize(
    "act",
    [
        SelectedWeights.write_back,
        SelectedWeights.state_dict,
        lambda selected: selected.capture("warmup"),
        lambda selected: selected.swapped("ref").__enter__(),
    ],
    ids=["write_back", "state_dict", "capture", "swapped"],
)
def test_what_would_mix_two_models_is_refused_while_swapped(act: Callable[[SelectedWeights], object]) -> None:
    model = build()
    selected = SelectedWeights(model, mask_of(model), slots=("ref",))
    move(selected)
    live = bits(model)
    with selected.swapped("ref"), pytest.raises(AssertionError, match="'ref' is"):
        act(selected)
    assert same(bits(model), live)


def test_a_slot_costs_one_entry_a_selected_weight_in_the_models_dtype() -> None:
    model = build()
    mask = mask_of(model)
    none, one, two = (
        SelectedWeights(build(), mask, slots=slots).num_bytes for slots in ((), ("ref",), ("ref", "warmup"))
    )
    k, whole = mask.num_selected, len(mask.indices["0.bias"])
    # masters and gradient 4 each, indices 2 and 8 a block (none where a tensor is selected whole), bf16 slots 2
    assert none == 8 * k + 2 * (k - whole) + 8
    assert (one - none, two - one) == (2 * k, 2 * k)


def test_capture_keeps_the_present_and_later_training_leaves_it_alone() -> None:
    model = build()
    selected = SelectedWeights(model, mask_of(model), slots=("ref",))
    move(selected)
    selected.capture("ref")
    captured, present = copy.deepcopy(selected.slot("ref")), copy.deepcopy(model)
    move(selected)
    assert same(captured, selected.slot("ref"))
    with selected.swapped("ref"):
        assert same(bits(model), bits(present))
