"""Trackers: each stage has a run of its own with its steps and an image of its mask; nothing leaves the machine."""

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allo.errors import UserError
from allo.pipeline import run_all
from allo.recipe import Recipe, load_recipe
from allo.training.trackers import check_trackers, density_image
from allo.weights.param_mask import MaskRow
from start_rows import rows, write
from tiny_run import steps, write_recipe

SECRET = "hf_abcdefghijklmnopqrstuvwxyz012345"


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        find_spec(package) is None, reason=f"{package} is not installed (extra trackers)"
    )


def recipe(folder: Path, tracker: str | list[str]) -> Recipe:
    write(folder / "pairs.jsonl", rows("pairs", 12))
    training = steps(4, report_to=tracker)
    file = write_recipe(
        folder,
        data={"pairs": str(folder / "pairs.jsonl"), "held_out": None},
        locate={"criterion": "magnitude"},
        score={"scorer": "edit"},
        forget=training,
        improve=training,
    )
    return load_recipe(file, [f"out={folder}"])


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a secret and without a network."""

    def refuse(*where: Any) -> None:
        raise AssertionError(f"a tracker calls {where[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    return tmp_path


def holds_the_secret(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@needs("tensorboard")
def test_tensorboard_gets_a_run_a_stage_with_steps_and_an_image(
    alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_all(recipe(alone, "tensorboard"), until="improve")
    said = capsys.readouterr()
    assert said.out == "" and f"tensorboard --logdir {run.path / 'tensorboard'}" in " ".join(said.err.split())
    assert sorted(path.name for path in (run.path / "tensorboard").iterdir()) == ["forget", "improve"]
    for stage in ("forget", "improve"):
        found = EventAccumulator(str(run.path / "tensorboard" / stage)).Reload()
        assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3]
        (image,) = found.Images("mask/density")
        assert image.width > image.height > 0 or image.height > image.width > 0
    before = {path: path.read_bytes() for path in run.path.rglob("*.tfevents.*")}
    run_all(recipe(alone, "tensorboard"), until="improve")
    assert before == {path: path.read_bytes() for path in run.path.rglob("*.tfevents.*")}
    run_all(recipe(alone, "tensorboard"), until="improve", force="improve")
    again = EventAccumulator(str(run.path / "tensorboard" / "improve")).Reload()
    assert [event.step for event in again.Scalars("train/loss")] == [1, 2, 3], (
        "an earlier curve is not mixed in"
    )
    assert holds_the_secret(alone) == []


@needs("trackio")
def test_trackio_gets_a_run_a_stage_named_by_run_and_stage(
    alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    run_all(recipe(alone, "trackio"), until="improve")
    said = capsys.readouterr()
    assert said.out == "" and "trackio show --project allo" in " ".join(said.err.split())
    assert sorted(SQLiteStorage.get_runs("allo")) == ["mine/forget", "mine/improve"]
    logs = SQLiteStorage.get_logs("allo", "mine/improve")
    assert [row["train/global_step"] for row in logs if "train/loss" in row] == [1, 2, 3]
    assert any("mask/density_map" in row for row in logs)
    assert holds_the_secret(alone) == []


@pytest.mark.parametrize("tracker", ["tensorbord", "neptune", ["wandb", "nothing"]])
def test_an_unknown_or_absent_tracker_is_refused_before_anything_runs(
    tmp_path: Path, tracker: str | list[str]
) -> None:
    with pytest.raises(UserError, match=r"forget\.training\.report_to: "):
        run_all(recipe(tmp_path, tracker))
    assert not (tmp_path / "mine" / "00-sft").exists()


def test_none_is_no_tracker() -> None:
    check_trackers([])


def test_the_image_has_a_cell_a_tensor_white_where_nothing_trains() -> None:
    image = density_image(
        [
            MaskRow("-", "embed", 0, 10),
            MaskRow("0", "q", 5, 10),
            MaskRow("0", "v", 0, 10),
            MaskRow("1", "q", 1, 10),
        ]
    )
    assert image.shape == (3 * 16, 3 * 16, 3) and image.dtype == np.uint8
    kinds, layers = ("embed", "q", "v"), ("-", "0", "1")
    colors = {
        (kind, layer): tuple(image[16 * kinds.index(kind) + 3, 16 * layers.index(layer) + 3])
        for kind in kinds
        for layer in layers
    }
    assert colors["embed", "-"] == colors["v", "0"] == (255, 255, 255)
    assert colors["q", "0"] == (8, 48, 107) and colors["q", "1"] > colors["q", "0"]
    assert colors["v", "1"] == (208, 208, 208)
