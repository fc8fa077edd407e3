"""Masks of two folders, selected in some of their tensors: exactly the top k of the masked scores, k of all weights."""

import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import converted
import tiny
from allo import cli
from allo.errors import UserError
from allo.models.load import tensor_kinds
from allo.models.start import trained_names
from allo.weights.layout import Layout
from allo.weights.mask_files import FROM_FOLDERS, mask_from_checkpoints
from allo.weights.param_mask import ParamMask
from allo.weights.selected import SelectedWeights
from allo.weights.selection import num_to_select, select

DENSITY = 0.02
TIES = 8  # different scores, so that thousands tie


def scores() -> dict[str, Tensor]:
    """Scores with many ties; those of the two excluded tensors are the largest."""
    torch.manual_seed(0)
    shapes = {f"layers.{n}.{part}.weight": (40, 30) for n in range(6) for part in ("q_proj", "up_proj")}
    found = {name: torch.randint(0, TIES, shape).float() for name, shape in shapes.items()}
    return found | {"embed.weight": torch.full((100, 30), 99.0), "norm.weight": torch.full((30,), 99.0)}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for folder in ("base", "tuned"):
        (tmp_path / folder).mkdir()
    changes = scores()
    save_file(
        {name: torch.zeros_like(one) for name, one in changes.items()}, tmp_path / "base/model.safetensors"
    )
    save_file(changes, tmp_path / "tuned/model.safetensors")
    return tmp_path


def mask(path: Path, **own: Any) -> ParamMask:
    given = {"density": DENSITY, "out": path / "mask.safetensors", **own}
    return mask_from_checkpoints(path / "base", path / "tuned", **given)


def assert_same(found: ParamMask, wanted: dict[str, Tensor]) -> None:
    assert found.indices.keys() == wanted.keys()
    assert all(torch.equal(found.indices[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "patterns",
    [
        {"include": ["*q_proj*"]},
        {"exclude": ["embed*", "norm*"]},
        {"include": ["layers.*"], "exclude": ["*.1.*"]},
    ],
    ids=str,
)
def test_the_mask_is_the_top_k_of_the_masked_scores_with_k_of_all(
    folders: Path, patterns: dict[str, list[str]]
) -> None:
    changes = scores()
    allowed = {
        name: one
        for name, one in changes.items()
        if ("include" not in patterns or ("q_proj" in name or patterns["include"] == ["layers.*"]))
        and not any(part in name for part in ("embed", "norm"))
        and not ("exclude" in patterns and ".1." in name and "*.1.*" in patterns["exclude"])
    }
    assert 0 < len(allowed) < len(changes) - 1
    k = num_to_select(DENSITY, sum(one.numel() for one in changes.values()))
    found = mask(folders, **patterns)
    assert found.num_selected == k and found.density == pytest.approx(DENSITY, abs=1e-4)
    assert_same(found, select(lambda: allowed.items(), k=k))
    assert found.shapes.keys() == changes.keys(), "a mask is one of the whole model"
    assert found.metadata["num_allowed"] == str(sum(one.numel() for one in allowed.values()))
    assert {key: found.metadata.get(key) for key in ("include", "exclude")} == {
        key: ", ".join(patterns[key]) if key in patterns else None for key in ("include", "exclude")
    }


@pytest.mark.parametrize("criterion", FROM_FOLDERS)
def test_every_criterion_selects_k_of_all_in_the_allowed_tensors(folders: Path, criterion: str) -> None:
    found = mask(folders, criterion=criterion, include=["*.up_proj.weight"])
    assert found.num_selected == num_to_select(DENSITY, sum(one.numel() for one in scores().values()))
    assert all(name.endswith(".up_proj.weight") for name in found.indices)


@pytest.mark.parametrize("granularity", ["row", "column", "block(8)"])
def test_whole_groups_are_those_of_the_allowed_tensors(folders: Path, granularity: str) -> None:
    """As if the other tensors had the score zero."""
    found = mask(folders, granularity=granularity, include=["*q_proj*"])
    tuned = {name: one if "q_proj" in name else 0 * one for name, one in scores().items()}
    save_file(tuned, folders / "tuned/model.safetensors")
    wanted = mask(folders, granularity=granularity)
    assert found.num_selected > 0
    assert_same(found, wanted.indices)


def test_every_allowed_weight_can_be_selected_and_no_further(folders: Path) -> None:
    total = sum(one.numel() for one in scores().values())
    found = mask(folders, include=["norm.weight"], density=30 / total)
    assert_same(found, {"norm.weight": torch.arange(30, dtype=torch.int32)})
    with pytest.raises(UserError, match=f"include: 30 of the model's {total:,} weights are left"):
        mask(folders, include=["norm.weight"], density=31 / total)


def test_a_refusal_leaves_no_file(folders: Path) -> None:
    for own in ({"include": ["*qproj*"]}, {"exclude": ["*"]}, {"include": ["linear"]}):
        with pytest.raises(UserError, match=r"names none|0 of the model's|known by a model's layers"):
            mask(folders, **own)
    assert not (folders / "mask.safetensors").exists()


def test_too_few_changes_are_counted_in_the_allowed_tensors(folders: Path) -> None:
    save_file(
        {name: 0 * one for name, one in scores().items()} | {"embed.weight": scores()["embed.weight"]},
        folders / "tuned/model.safetensors",
    )
    with pytest.warns(
        UserWarning, match="only 0 weights differ between .* in the tensors that may be selected"
    ):
        found = mask(folders, include=["*q_proj*"])
    assert found.metadata["num_changed"] == "0"


def test_without_patterns_the_file_is_as_before(folders: Path) -> None:
    mask(folders, out=folders / "a.safetensors")
    mask(folders, out=folders / "b.safetensors", include=[], exclude=[])
    mask(folders, out=folders / "c.safetensors", include=["*"])
    a, b, c = ((folders / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert b"num_allowed" not in a and b"num_allowed" in c


# The command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    sys.argv[1:] = arguments
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr()
    assert left.value.code in (0, None), said.err
    return said.out + said.err


@pytest.fixture
def models(tmp_path: Path) -> Path:
    model = tiny.model(tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param))
    model.save_pretrained(tmp_path / "tuned")
    return tmp_path


def test_the_command_knows_kinds_and_patterns(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["allo"])
    base, tuned, out = (str(models / name) for name in ("base", "tuned", "mask.safetensors"))
    options = (
        "--include",
        "linear",
        "--include",
        "*norm.weight",
        "--exclude",
        "lm_head.*",
        "--density",
        "0.05",
    )
    run(capsys, "mask", "from-checkpoints", base, tuned, "--out", out, *options)
    found = ParamMask.load(out)
    linear = set(tensor_kinds(models / "base")["linear"])
    allowed = linear - {"lm_head.weight"} | {name for name in found.shapes if "norm" in name}
    assert found.indices.keys() <= allowed
    assert found.num_selected == num_to_select(0.05, found.num_weights)
    shown = run(capsys, "mask", "info", out)
    assert "include            linear, *norm.weight" in shown and "exclude            lm_head.*" in shown


def test_the_command_loads_transformers_only_for_a_kind_of_layers(folders: Path) -> None:
    code = (
        "import sys; sys.argv[1:] = sys.argv[1:]; from allo import cli\n"
        "try: cli.main()\n"
        "except SystemExit as left: assert not left.code, left.code\n"
        "assert 'transformers' not in sys.modules"
    )
    options = ["--density", "0.01", "--include", "*q_proj*", "--out", str(folders / "mask.safetensors")]
    places = ["mask", "from-checkpoints", str(folders / "base"), str(folders / "tuned")]
    subprocess.run([sys.executable, "-c", code, *places, *options], check=True)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setattr(sys, "argv", ["allo"])
    return partial(run, capsys)


def changed_most_outside(base: Path, trained: Collection[str], folder: Path) -> Path:
    """The folder with every weight changed, and most those that a run does not train."""
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    changed = {
        name: one + (torch.randn_like(one) if name in trained else 99) for name, one in tensors.items()
    }
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("family", [*converted.WRAPPERS, "gemma4_text", "mistral"])
def test_a_mask_counts_what_a_run_of_the_folder_trains(
    family: str, tmp_path: Path, command: Callable[..., str]
) -> None:
    """No towers, no buffers, and a tied weight that is stored twice counts once."""
    make = converted.doubled if family in converted.TIED else converted.saved
    base, out = make(family, tmp_path / "base"), str(tmp_path / "mask.safetensors")
    wanted = Layout.of(converted.plain(family, base)).shapes
    tuned = changed_most_outside(base, wanted.keys(), tmp_path / "tuned")
    said = command("mask", "from-checkpoints", str(base), str(tuned), "--density", "0.05", "--out", out)
    assert "are not trained by a run, and no density counts them" in said
    found = ParamMask.load(out)
    assert found.shapes == wanted
    assert found.num_selected == num_to_select(0.05, sum(map(math.prod, wanted.values())))
    assert SelectedWeights(converted.plain(family, base), found).num_selected == found.num_selected


def test_of_a_folder_whose_model_is_not_known_every_weight_counts_and_that_is_said(
    models: Path, command: Callable[..., str]
) -> None:
    (models / "base" / "config.json").write_text('{"model_type": "none"}')
    base, tuned, out = (str(models / name) for name in ("base", "tuned", "mask.safetensors"))
    said = command("mask", "from-checkpoints", base, tuned, "--density", "0.05", "--out", out)
    assert "counts as trained" in said and "none" in said
    assert ParamMask.load(out).shapes.keys() == load_file(models / "base" / "model.safetensors").keys()


def test_a_pattern_may_name_the_tower_but_selects_nothing_there(
    tmp_path: Path,
) -> None:
    base = converted.saved("gemma3", tmp_path / "base")
    trained = trained_names(base)
    kept = {"trained": trained, "density": DENSITY, "out": tmp_path / "mask.safetensors"}
    mask_from_checkpoints(base, base, exclude=["vision"], criterion="magnitude", **kept)
    with pytest.raises(UserError, match="include: 0 of the model's"):
        mask_from_checkpoints(base, base, include=["vision"], criterion="magnitude", **kept)
