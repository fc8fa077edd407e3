"""A trainer's mask: as given, from a file, or located by a criterion on its own rows before training."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import allo
from allo.errors import UserError
from allo.recipe.criteria import CRITERIA
from allo.recipe.locate import Locate
from allo.training import trainer_mask
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from allo.weights.param_mask import ParamMask
from tiny import TOKENIZER, arguments, every_third, full_mask, model, pairs, weights, wrongs


def improving(folder: Path, **own: Any) -> ImproveTrainer:
    return ImproveTrainer(model(), arguments(folder, max_steps=2), pairs(), TOKENIZER, **own)


def same(one: ParamMask, other: ParamMask) -> bool:
    return one.indices.keys() == other.indices.keys() and all(
        torch.equal(one.indices[name], other.indices[name]) for name in one.indices
    )


def test_without_a_word_a_tenth_of_the_weights_is_located(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = improving(tmp_path)
    assert trainer.mask.density == pytest.approx(0.1, abs=1e-4)
    begun, line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mask:")]
    assert "locating 0.1 of the weights by warmup_fused before training" in begun
    found = re.fullmatch(
        rf"mask: ([\d,]+) of [\d,]+ weights \(density 0\.1\), located by {Locate().criterion} on 16 pairs in [\d.]+ s: (.+)",
        line,
    )
    assert found and int(found[1].replace(",", "")) == trainer.mask.num_selected
    assert same(ParamMask.load(found[2]), trainer.mask)
    start = weights(model())
    trainer.train()
    for name, tensor in weights(trainer.model).items():
        moved = (tensor != start[name]).flatten().nonzero()[:, 0].tolist()
        assert set(moved) <= set(trainer.mask.indices.get(name, torch.empty(0)).tolist())


@pytest.mark.parametrize("criterion", ["warmup", "warmup_fused", "gradient", "fisher", "magnitude", "random"])
def test_a_criterion_locates_what_locate_does_and_leaves_the_model_as_it_was(
    criterion: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = improving(tmp_path / "trainer", mask=criterion, density=0.05)
    shared = arguments(
        tmp_path / "alone", max_steps=2, learning_rate=1e-6, lr_scheduler_type="cosine", warmup_steps=0.1
    )
    policy = model().train()
    before = weights(policy)
    expected = allo.locate(
        policy, pairs(), density=0.05, criterion=criterion, args=shared, processing_class=TOKENIZER
    )
    assert same(trainer.mask, expected) and expected.metadata["criterion"] == criterion
    assert policy.training
    for name, tensor in weights(policy).items():
        assert torch.equal(tensor, before[name]) and torch.equal(weights(trainer.model)[name], before[name])
    by = f"{criterion} on 16 pairs" if CRITERIA[criterion].sees_pairs else criterion
    assert f"(density 0.05), located by {by} in" in capsys.readouterr().err


def test_a_mask_located_before_by_the_same_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = improving(tmp_path, mask="magnitude")
    searched = trainer_mask.searched
    monkeypatch.setattr(trainer_mask, "searched", lambda *_, **__: pytest.fail("located again"))
    assert same(improving(tmp_path, mask="magnitude").mask, first.mask)
    assert "located before, by magnitude:" in capsys.readouterr().err
    monkeypatch.setattr(trainer_mask, "searched", searched)
    for own in ({"mask": "magnitude", "density": 0.2}, {"mask": "random"}):
        assert not same(improving(tmp_path, **own).mask, first.mask)


def test_a_files_mask_is_taken_and_importance_gives_one_of_a_density(tmp_path: Path) -> None:
    mask = every_third(model())
    mask.save(tmp_path / "mine.safetensors")
    for given in (tmp_path / "mine.safetensors", str(tmp_path / "mine.safetensors"), mask):
        assert same(improving(tmp_path, mask=given).mask, mask)


def test_every_weight_needs_no_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ({"mask": 1.0}, {"mask": 1}, {"mask": "warmup", "density": 1.0}):
        assert same(improving(tmp_path, **given).mask, full_mask(model()))
    assert "mask:" not in capsys.readouterr().err


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    mask = every_third(model())
    mask.save(tmp_path / "mine.safetensors")
    for own, says in (
        ({"mask": "warm_up"}, r"^mask: 'warm_up' is neither a file nor a criterion; .*warmup_fused"),
        ({"mask": tmp_path / "absent.safetensors"}, r"absent\.safetensors' is neither"),
        ({"mask": None}, r"^mask is a NoneType"),
        ({"mask": True}, r"^mask is a bool"),
        ({"mask": 0.1, "density": 0.2}, r"^density: the mask is given as a density, 0\.1"),
        ({"mask": mask, "density": 0.2}, r"^density: the mask has its own"),
        (
            {"mask": tmp_path / "mine.safetensors", "density": 0.2},
            "is a mask, which has a density of its own",
        ),
        ({"mask": 0.0}, "density"),
        ({"mask": 1.5}, "density"),
        ({"mask": "no_such.py:mine"}, "no such file"),
    ):
        with pytest.raises(UserError, match=says):
            improving(tmp_path, **own)


def test_completions_have_no_pairs_to_locate_by(tmp_path: Path) -> None:
    for kind in (ForgetTrainer, SftTrainer):
        with pytest.raises(UserError, match=r"^mask: a warm-up needs pairs, .*allo\.locate\(model, pairs\)"):
            kind(model(), arguments(tmp_path), wrongs(), TOKENIZER, mask=0.1)
        assert kind(model(), arguments(tmp_path), wrongs(), TOKENIZER, mask="magnitude").mask.num_selected


def test_forgetting_the_rejected_sides_locates_on_the_pairs(tmp_path: Path) -> None:
    expected = improving(tmp_path / "a", mask=0.02).mask
    rows = iter(pairs())
    trainer = ForgetTrainer(model(), arguments(tmp_path / "b", max_steps=2), rows, TOKENIZER, mask=0.02)
    assert same(trainer.mask, expected)
    assert len(trainer.train_dataset) == len(pairs())


def test_a_damaged_kept_mask_is_located_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = improving(tmp_path, mask="magnitude", density=0.05)
    file = tmp_path / trainer_mask.MASK_FILE
    file.write_bytes(file.read_bytes()[:100])
    again = improving(tmp_path, mask="magnitude", density=0.05)
    said = capsys.readouterr().err
    assert f"cannot be read and is located again: {file}" in said and "is damaged, or of another" in said
    assert same(again.mask, trainer.mask) and same(ParamMask.load(file), trainer.mask)
