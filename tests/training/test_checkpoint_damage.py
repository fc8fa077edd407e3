"""A damaged training checkpoint is not gone on from: the one before it is, to the same end."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_checkpointing import assert_same_state, improver, interrupted

from allo.training.checkpointing import keep_tensors, kept_tensors, last_sound_checkpoint, mark_complete
from allo.training.run import remove_checkpoints, train

pytestmark = pytest.mark.invariant("A damaged checkpoint is known, and the one before it is taken.")

FILES = (
    *("selected.safetensors", "optimizer.safetensors", "scheduler.safetensors", "rng.safetensors"),
    *("trainer_state.json", "complete"),
)


def flip(file: Path, share: float = 0.9) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * share)] ^= 1
    file.write_bytes(content)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "flipped header": lambda file: flip(file, 0.02),
    "truncated": halve,
    "empty": lambda file: file.write_bytes(b""),
    "NULs": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "missing": Path.unlink,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, list[dict[str, float]]]:
    trainer = improver(tmp_path_factory.mktemp("whole"))
    return trainer, train(trainer)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_any_file_is_found_and_the_one_before_is_taken(
    name: str, damage: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoints(tmp_path)
    damage(tmp_path / "checkpoint-4" / name)
    assert last_sound_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()
    said = capsys.readouterr().err.replace("\n", "")
    cut_short = (name, damage) == ("complete", Path.unlink)  # a checkpoint without its mark
    assert said.startswith(f"{tmp_path / 'checkpoint-4'}: damaged (") != cut_short


_MADE: list[tuple[Path, bytes]] = []


def make_checkpoints(folder: Path) -> None:
    """Those of a run that was stopped after step 5, made once."""
    if not _MADE:
        interrupted(folder / "made", stop=5)
        for file in sorted((folder / "made").rglob("*")):
            if file.is_file():
                _MADE.append((file.relative_to(folder / "made"), file.read_bytes()))
    for name, content in _MADE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("damaged", [["4"], ["2", "4"]])
def test_the_end_is_that_of_the_undamaged_run(damaged: list[str], whole: tuple, tmp_path: Path) -> None:
    """From the checkpoint before, and without any from the start: bit for bit."""
    make_checkpoints(tmp_path)
    flip(tmp_path / f"checkpoint-{damaged[-1]}" / "selected.safetensors")
    if len(damaged) > 1:
        halve(tmp_path / "checkpoint-2" / "optimizer.safetensors")
    trainer, logged = whole
    resumed = improver(tmp_path)
    assert train(resumed) == logged
    assert_same_state(resumed, trainer)


MARKS = [
    b"null",
    b"[]",
    b"{}",
    b'{"files": {}}',
    b'{"files": []}',
    b"\xff",
    b"[" * 9999,
    b'{"files": {"a": "b"}}',
]


@pytest.mark.parametrize("content", MARKS)
def test_a_mark_of_another_form_marks_nothing(content: bytes, tmp_path: Path) -> None:
    make_checkpoints(tmp_path)
    (tmp_path / "checkpoint-4" / "complete").write_bytes(content)
    assert last_sound_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_a_damaged_best_checkpoint_is_not_counted_on(tmp_path: Path) -> None:
    """A run whose end needs the best one goes on from before it."""
    make_checkpoints(tmp_path)
    state = tmp_path / "checkpoint-4" / "trainer_state.json"
    content = json.loads(state.read_text()) | {"best_model_checkpoint": "elsewhere/checkpoint-2"}
    state.write_text(json.dumps(content))
    mark = tmp_path / "checkpoint-4" / "complete"
    mark.unlink()
    mark_complete(mark.parent)
    assert last_sound_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    flip(tmp_path / "checkpoint-2" / "selected.safetensors")
    assert last_sound_checkpoint(tmp_path) is None


def test_what_only_looks_like_a_checkpoint_is_in_no_ones_way(tmp_path: Path) -> None:
    make_checkpoints(tmp_path)
    (tmp_path / "checkpoint-x").write_text("a file")
    (tmp_path / "checkpoint-6").write_text("a file")
    assert last_sound_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    remove_checkpoints(tmp_path)
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_kept_tensors_are_taken_whole_or_not_at_all(
    damage: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, tensors = tmp_path / "kept.safetensors", {"a": torch.arange(90.0), "b": torch.ones(2, 3)}
    keep_tensors(file, tensors, key="made from this")
    kept = kept_tensors(file, key="made from this")
    assert kept is not None and all(torch.equal(kept[name], tensors[name]) for name in tensors)
    assert kept_tensors(file, key="made from that") is None
    assert capsys.readouterr().err == ""
    damage(file)
    assert kept_tensors(file, key="made from this") is None
    assert (capsys.readouterr().err != "") == file.exists()


def test_no_flipped_bit_of_kept_tensors_is_taken(tmp_path: Path) -> None:
    file, tensors = tmp_path / "kept.safetensors", {"a": torch.arange(9.0)}
    keep_tensors(file, tensors)
    whole = file.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 2
        file.write_bytes(damaged)
        kept = kept_tensors(file)
        assert kept is None or (kept.keys() == {"a"} and torch.equal(kept["a"], tensors["a"]))
