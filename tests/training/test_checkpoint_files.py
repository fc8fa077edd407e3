"""The files of a checkpoint: what draws, marks and kept tensors come back as, and which checkpoint is the last."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from allo.files.artifacts import read_json, sha256_file, write_json
from allo.training import checkpointing
from allo.training.checkpointing import (
    CheckpointedTrainer,
    keep_tensors,
    kept_tensors,
    last_sound_checkpoint,
    mark_complete,
    remove_checkpoint,
    whole_checkpoints,
)
from allo.weights.shards import ONE


def draws() -> list[Any]:
    return [random.random(), np.random.rand(), np.random.normal(), torch.rand(1).item()]


def test_random_draws_go_on_as_they_would_have(tmp_path: Path) -> None:
    np.random.normal()  # numpy keeps the second of two normals
    saving = SimpleNamespace(args=SimpleNamespace(should_save=True))
    CheckpointedTrainer._save_rng_state(saving, str(tmp_path))
    expected = draws()
    assert draws() != expected
    CheckpointedTrainer._load_rng_state(saving, str(tmp_path))
    assert draws() == expected


@pytest.mark.parametrize("saves", [True, False])
def test_only_the_process_that_saves_writes_a_checkpoint(saves: bool, tmp_path: Path) -> None:
    state = SimpleNamespace(state_dict=lambda: {"weight": torch.ones(2)})
    trainer = SimpleNamespace(
        args=SimpleNamespace(should_save=saves, save_only_model=False, output_dir=str(tmp_path / "own")),
        optimizer=state,
        lr_scheduler=state,
        selected=SimpleNamespace(state_dict=state.state_dict, ranks=ONE),
        _saves_part=saves,
        _own=lambda name: name,
        loss_state=lambda: {"total": 2.5},
    )
    folder = tmp_path / "new" / "checkpoint-1"
    CheckpointedTrainer.save_model(trainer, str(folder), _internal_call=True)
    CheckpointedTrainer.save_model(trainer, str(folder), _internal_call=True)  # into a folder that is there
    folder.mkdir(parents=True, exist_ok=True)
    CheckpointedTrainer._save_optimizer_and_scheduler(trainer, str(folder))
    CheckpointedTrainer._save_rng_state(trainer, str(folder))
    names = {path.name for path in folder.iterdir()}
    every = {f"{name}.safetensors" for name in ("selected", "loss", "optimizer", "scheduler", "rng")}
    assert names == (every if saves else set())
    if saves:
        loaded: dict[str, Any] = {}
        trainer.optimizer = SimpleNamespace(load_state_dict=loaded.update)
        trainer.selected = SimpleNamespace(load_state_dict=loaded.update, ranks=ONE)
        trainer.load_loss_state = loaded.update
        CheckpointedTrainer._load_from_checkpoint(trainer, str(folder))
        assert loaded.keys() == {"weight", "total"} and loaded["total"] == 2.5


def test_the_whole_model_goes_to_the_trainers_own_folder_unless_another_is_named(tmp_path: Path) -> None:
    saved: list[Path] = []
    writer = SimpleNamespace(save_pretrained=saved.append)
    trainer = SimpleNamespace(
        args=SimpleNamespace(should_save=True, output_dir=str(tmp_path / "own")),
        model=writer,
        processing_class=writer,
        selected=SimpleNamespace(ranks=ONE),
    )
    CheckpointedTrainer.save_model(trainer)
    CheckpointedTrainer.save_model(trainer, str(tmp_path / "other"))
    assert saved == [tmp_path / "own"] * 2 + [tmp_path / "other"] * 2


def checkpoint(folder: Path, step: int, *, best: str | None = None) -> Path:
    """A complete checkpoint of a step, as far as its mark says."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"w": torch.tensor([float(step)])}, path / "selected.safetensors")
    write_json(path / "trainer_state.json", {"best_model_checkpoint": best})
    mark_complete(path)
    return path


def test_a_mark_has_the_digest_of_every_file(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 3)
    names = ["selected.safetensors", "trainer_state.json"]
    assert read_json(path / "complete") == {"files": {name: sha256_file(path / name) for name in names}}


def test_checkpoints_are_in_order_of_their_steps(tmp_path: Path) -> None:
    paths = {step: checkpoint(tmp_path, step) for step in (10, 9, 100)}
    for name in ("checkpoint-7x", "checkpoint-", "my-checkpoint-5"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "complete", {})
    assert list(whole_checkpoints(tmp_path).items()) == [(step, paths[step]) for step in (9, 10, 100)]
    assert last_sound_checkpoint(tmp_path) == paths[100]
    assert last_sound_checkpoint(tmp_path / "nowhere") is None
    assert {path.name for path in tmp_path.iterdir()} == {
        *("checkpoint-9", "checkpoint-10", "checkpoint-100", "my-checkpoint-5")
    }, "what is no checkpoint is removed"


def test_every_process_finds_the_same_checkpoint_and_only_the_first_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (checkpoint(tmp_path, step) for step in (1, 2))
    (second / "selected.safetensors").write_bytes(b"other")
    (tmp_path / "checkpoint-3").mkdir()
    monkeypatch.setattr(checkpointing, "rank", lambda: 1)
    assert last_sound_checkpoint(tmp_path) == first
    assert second.exists() and (tmp_path / "checkpoint-3").exists() and capsys.readouterr().err == ""
    monkeypatch.setattr(checkpointing, "rank", lambda: 0)
    assert last_sound_checkpoint(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def damaged(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what is said of a damaged checkpoint, between the brackets."""
    assert last_sound_checkpoint(path.parent) is None
    said = capsys.readouterr().err.replace("\n", "")
    assert said.startswith(f"{path}: damaged (")
    return said.removeprefix(f"{path}: damaged (").partition("); removed")[0]


def test_the_first_fault_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "a", 1)
    (path / "selected.safetensors").unlink()
    assert damaged(path, capsys) == "selected.safetensors is missing"
    path = checkpoint(tmp_path / "b", 1)
    (path / "trainer_state.json").write_text("{}")
    assert damaged(path, capsys) == "trainer_state.json has changed since it was written"
    for name in ("selected.safetensors", "trainer_state.json"):
        path = checkpoint(tmp_path / name, 1)
        mark = read_json(path / "complete")
        del mark["files"][name]
        write_json(path / "complete", mark)
        assert damaged(path, capsys) == f"its mark lacks {name}"
    path = checkpoint(tmp_path / "c", 1)
    (path / "complete").write_text("[]")
    said = damaged(path, capsys)
    assert said.startswith(str(path / "complete")) and not said.endswith(".")


def test_a_best_checkpoint_is_looked_for_beside_it_wherever_the_run_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = checkpoint(tmp_path / "a", 2, best="/elsewhere/checkpoint-2")
    assert last_sound_checkpoint(tmp_path / "a") == own
    later = checkpoint(tmp_path / "b", 2, best="/elsewhere/checkpoint-1")
    assert damaged(later, capsys).startswith("the best checkpoint, checkpoint-1, is damaged: ")
    best, later = (checkpoint(tmp_path / "c", step, best="x/checkpoint-1") for step in (1, 2))
    assert last_sound_checkpoint(tmp_path / "c") == later
    (best / "selected.safetensors").unlink()
    assert last_sound_checkpoint(tmp_path / "c") is None
    said = capsys.readouterr().err.replace("\n", "")
    assert "the best checkpoint, checkpoint-1, is damaged: selected.safetensors is missing" in said


def test_a_mark_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[Path] = []
    path = checkpoint(tmp_path, 1)
    monkeypatch.setattr(checkpointing, "remove", removed.append)
    remove_checkpoint(path)
    assert removed == [path / "complete", path]
    file = tmp_path / "checkpoint-2"
    file.write_text("")
    remove_checkpoint(file)
    assert removed[2:] == [file]


def test_kept_tensors_have_a_key_and_none_is_a_key_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, tensors = tmp_path / "kept.safetensors", {"a": torch.arange(3.0)}
    assert kept_tensors(path) is None
    keep_tensors(path, tensors)
    for found in (kept_tensors(path), kept_tensors(path, key="")):
        assert found is not None and torch.equal(found["a"], tensors["a"])
    assert kept_tensors(path, key="of something") is None and capsys.readouterr().err == ""
    save_file(tensors, path)  # without a digest
    assert kept_tensors(path) is None
    path.write_bytes(b"no tensors")
    assert kept_tensors(path) is None
    assert capsys.readouterr().err == f"{path}: damaged; it is computed again\n" * 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.safetensors"]
