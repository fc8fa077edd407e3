"""`ParamMask.load` of a run's importance: the mask of a density, and errors that say what to do."""

from pathlib import Path

import pytest
import torch

from allo.errors import UserError
from allo.weights.importance_map import ImportanceMap
from allo.weights.param_mask import ParamMask

SHAPES = {"a.weight": (6, 5), "b.bias": (10,)}
SCORES = {name: torch.arange(shape[0] * (shape[1:] or (1,))[0]).float() for name, shape in SHAPES.items()}


@pytest.fixture
def importance(tmp_path: Path) -> Path:
    top = ImportanceMap.top(
        lambda: iter(SCORES.items()), density=0.5, shapes=SHAPES, metadata={"criterion": "warmup"}
    )
    top.save(tmp_path / "04-importance.safetensors")
    return tmp_path / "04-importance.safetensors"


@pytest.mark.parametrize("density", [0.5, 0.25, 0.05])
def test_the_mask_of_a_density_is_that_of_the_importance(importance: Path, density: float) -> None:
    found = ParamMask.load(importance, density=density)
    expected = ImportanceMap.load(importance).mask_at(density)
    assert found.indices.keys() == expected.indices.keys() and found.metadata == expected.metadata
    assert all(torch.equal(found.indices[name], expected.indices[name]) for name in expected.indices)
    assert found.num_selected == density * 40
    assert ParamMask.load(str(importance), density=density).num_selected == found.num_selected


def test_importance_needs_a_density_and_no_larger_one_than_it_keeps(importance: Path) -> None:
    with pytest.raises(UserError, match=r"04-importance\.safetensors holds importance, .*density=0\.1\)"):
        ParamMask.load(importance)
    with pytest.raises(UserError, match="locate again with a larger density"):
        ParamMask.load(importance, density=0.6)
    with pytest.raises(UserError, match="density"):
        ParamMask.load(importance, density=0.0)


def test_a_mask_has_its_own_density_and_damage_is_reported_as_before(
    importance: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mask.safetensors"
    ParamMask.load(importance, density=0.25).save(file)
    assert ParamMask.load(file).density == 0.25
    with pytest.raises(UserError, match=r"is a mask, which has a density of its own: remove density=0\.1"):
        ParamMask.load(file, density=0.1)
    with pytest.raises(UserError, match="no such file"):
        ParamMask.load(tmp_path / "absent.safetensors", density=0.1)
    importance.write_bytes(importance.read_bytes()[:-40])
    with pytest.raises(UserError, match="truncated"):
        ParamMask.load(importance, density=0.1)
