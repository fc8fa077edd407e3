"""A model's weights are named as the checkpoint on disk names them, whatever transformers makes of them in memory."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter

import tiny
from allo.errors import UserError
from allo.models.load import load_model
from allo.weights.layout import Layout, saved_tensors, stored_tensors, trained_parameters
from allo.weights.param_mask import ParamMask
from allo.weights.selected import SelectedWeights
from converted import FAMILIES, WRAPPERS, built, plain, saved

KINDS = list(FAMILIES)


def on_disk(folder: Path) -> dict[str, Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def thirds(layout: Layout) -> ParamMask:
    """Every third entry of each tensor on disk, from another one on in each."""
    indices = {
        name: torch.arange(number % 3, torch.Size(shape).numel(), 3, dtype=torch.int32)
        for number, (name, shape) in enumerate(layout.shapes.items())
    }
    return ParamMask({name: where for name, where in indices.items() if len(where)}, shapes=layout.shapes)


@pytest.mark.parametrize("family", KINDS)
def test_the_layout_gives_the_checkpoint_that_was_loaded(tmp_path: Path, family: str) -> None:
    files = on_disk(saved(family, tmp_path))
    model = plain(family, tmp_path)
    found = dict(stored_tensors(model))
    assert found.keys() == files.keys()
    assert all(torch.equal(found[name].detach(), files[name]) for name in files)
    assert Layout.whole(model).shapes == {name: tuple(tensor.shape) for name, tensor in files.items()}


@pytest.mark.parametrize("family", KINDS)
def test_a_model_that_was_not_loaded_is_named_as_it_will_be_saved(tmp_path: Path, family: str) -> None:
    files = on_disk(saved(family, tmp_path))
    assert Layout.whole(built(family)).shapes == {name: tuple(each.shape) for name, each in files.items()}


@pytest.mark.parametrize("family", KINDS)
def test_every_entry_on_disk_is_one_entry_in_memory(tmp_path: Path, family: str) -> None:
    files = on_disk(saved(family, tmp_path))
    model = plain(family, tmp_path)
    layout, live = Layout.whole(model), saved_tensors(model)
    layout.check()
    indices = {name: torch.arange(tensor.numel(), dtype=torch.int32) for name, tensor in files.items()}
    found, values = layout.live(indices, {name: tensor.reshape(-1) for name, tensor in files.items()})
    for name, tensor in live.items():
        assert torch.equal(found[name], torch.arange(tensor.numel(), dtype=torch.int32)), name
    # Part of the entries, so that whole tensors take no shorter way.
    part = {name: where[::3] for name, where in indices.items()}
    found, values = layout.live(part, {name: tensor.reshape(-1)[::3] for name, tensor in files.items()})
    assert sum(map(len, found.values())) == sum(map(len, part.values()))
    for name, where in found.items():
        assert bool((where[1:] > where[:-1]).all()), name
        assert torch.equal(live[name].detach().reshape(-1)[where.long()], values[name]), name


@pytest.mark.parametrize("family", ["mixtral", "gpt_neox", "granitemoe", "phimoe", "gemma3", "qwen2_5_vl"])
def test_a_mask_on_disk_trains_exactly_these_entries(tmp_path: Path, family: str) -> None:
    model, before = plain(family, saved(family, tmp_path)), on_disk(tmp_path)
    mask = thirds(Layout.of(model))
    selected = SelectedWeights(model, mask)
    assert selected.num_selected == mask.num_selected
    # A bias of keys has no gradient but rounding, of which a smaller eps would make whole steps.
    settings = {"lr": 0.01, "weight_decay": 0.0, "eps": 1e-4}
    optimizer = torch.optim.AdamW(selected.parameters(), **settings)
    dense = plain(family, tmp_path)
    live = Layout.of(dense).live_mask(mask).indices
    weights = trained_parameters(dense)
    reference = torch.optim.AdamW(weights.values(), **settings)
    ids = torch.arange(9, 25).view(2, 8)
    for _ in range(3):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        selected.write_back()
        selected.zero_grad()
        start = {name: param.detach().clone() for name, param in weights.items()}
        dense(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        for name, param in weights.items():
            chosen = torch.zeros(param.numel(), dtype=torch.bool)
            chosen[live.get(name, torch.empty(0)).long()] = True
            param.grad = torch.where(chosen.view(param.shape), param.grad, 0.0)
        reference.step()
        reference.zero_grad()
        for name, param in weights.items():
            unchosen = torch.ones(param.numel(), dtype=torch.bool)
            unchosen[live.get(name, torch.empty(0)).long()] = False
            param.data.view(-1)[unchosen] = start[name].view(-1)[unchosen]
    after = dict(stored_tensors(model))
    expected = dict(stored_tensors(dense))
    moved = 0
    for name, tensor in after.items():
        torch.testing.assert_close(tensor.detach(), expected[name].detach(), rtol=1e-4, atol=1e-6)
        others = torch.ones(tensor.numel(), dtype=torch.bool)
        others[mask.indices.get(name, torch.empty(0)).long()] = False
        assert torch.equal(tensor.detach().reshape(-1)[others], before[name].reshape(-1)[others]), name
        moved += int((tensor.detach() != before[name]).sum())
    assert moved > mask.num_selected / 4


@pytest.mark.parametrize("family", WRAPPERS)
def test_the_tower_of_a_wrapper_is_none_of_its_weights(tmp_path: Path, family: str) -> None:
    model = plain(family, saved(family, tmp_path))
    names = Layout.of(model).shapes
    assert names.keys() < on_disk(tmp_path).keys()
    assert not [name for name in names if "vision" in name or "visual" in name or "projector" in name]
    text = model.get_decoder()
    trained = sum(param.numel() for param in trained_parameters(model).values())
    head = model.get_output_embeddings().weight
    tied = head is model.get_input_embeddings().weight
    assert trained == sum(param.numel() for param in text.parameters()) + (0 if tied else head.numel())


@pytest.mark.parametrize("family", ["gemma3", "gemma4_text"])
def test_a_mask_of_all_that_a_folder_stores_may_select_trained_weights_alone(
    tmp_path: Path, family: str
) -> None:
    model = plain(family, saved(family, tmp_path))
    whole, layout = Layout.whole(model).shapes, Layout.of(model)
    assert whole.keys() > layout.shapes.keys()
    selected = SelectedWeights(model, ParamMask(thirds(layout).indices, shapes=whole))
    assert selected.num_selected == thirds(layout).num_selected
    selected.release()
    other = max(whole.keys() - layout.shapes.keys())
    with pytest.raises(UserError, match=rf"selects entries of {other}, which a run does not train"):
        SelectedWeights(model, ParamMask({other: torch.zeros(1, dtype=torch.int32)}, shapes=whole))
    stray = ParamMask(thirds(layout).indices, shapes=whole | {"of.another.model": (2, 3)})
    with pytest.raises(UserError, match=r"made for another model: tensor of\.another\.model"):
        SelectedWeights(model, stray)


@pytest.mark.parametrize("family", [family for family in KINDS if family != "gpt_oss"])  # it has no SDPA
def test_a_family_is_loaded_with_the_names_of_its_folder(tmp_path: Path, family: str) -> None:
    files = on_disk(saved(family, tmp_path))
    model = load_model(tmp_path, dtype=torch.float32, device="cpu")
    found = dict(stored_tensors(model))
    assert found.keys() <= files.keys()
    assert all(torch.equal(found[name].detach(), files[name]) for name in found)
    assert Layout.of(model).shapes.keys() <= found.keys()


def test_weights_saved_under_their_live_names_stay_there(tmp_path: Path) -> None:
    built("qwen3_moe").save_pretrained(tmp_path, save_original_format=False)
    model = plain("qwen3_moe", tmp_path)
    assert Layout.whole(model).is_plain
    assert Layout.whole(model).shapes.keys() == on_disk(tmp_path).keys()


def test_a_model_that_is_stored_as_it_lies_is_converted_nowhere() -> None:
    policy = tiny.model()
    assert Layout.of(policy).is_plain
    assert Layout.of(policy).shapes == tiny.shapes(policy)
    mask = tiny.every_third(policy)
    assert Layout.of(policy).live_mask(mask) is mask
    assert Layout.of(nn.Linear(2, 2)).shapes == {"weight": (2, 2), "bias": (2,)}


class Doubled(ConversionOps):
    """Stores twice each weight."""

    def convert(self, input_dict: dict[str, list[Tensor]], **_: object) -> dict[str, Tensor]:
        return {"up_proj": 2 * next(iter(input_dict.values()))[0]}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


class Halved(Doubled):
    """Stores half of the weights."""

    def convert(self, input_dict: dict[str, list[Tensor]], **_: object) -> dict[str, Tensor]:
        return {"up_proj": next(iter(input_dict.values()))[0][:4].clone()}


class Repeated(Doubled):
    """Stores the first half twice."""

    def convert(self, input_dict: dict[str, list[Tensor]], **_: object) -> dict[str, Tensor]:
        half = next(iter(input_dict.values()))[0].chunk(2)[0]
        return {"up_proj": torch.cat([half, half])}


class Failing(Doubled):
    def convert(self, input_dict: dict[str, list[Tensor]], **_: object) -> dict[str, Tensor]:
        raise KeyError("num_heads")


@pytest.mark.parametrize("operation", [Doubled, Halved, Repeated])
def test_a_conversion_that_is_no_bijection_is_refused(operation: type[ConversionOps]) -> None:
    policy = converted_by(operation)
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.up_proj.*do not hold the same weights one to one"):
        Layout.of(policy).check()


def test_a_conversion_that_fails_is_refused_with_its_reason() -> None:
    with pytest.raises(UserError, match=r"cannot write .*KeyError: 'num_heads'"):
        Layout.of(converted_by(Failing))


def converted_by(operation: type[ConversionOps]) -> PreTrainedModel:
    policy = tiny.model()
    policy._weight_conversions = [WeightConverter("up_proj", "up_proj", operations=[operation()])]
    return policy
