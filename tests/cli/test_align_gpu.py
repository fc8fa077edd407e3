"""`allo align --gpu`: the written recipe fits, for the reason that it gives; nothing is trained here."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from allo.cli import align as command
from allo.cli import app
from allo.errors import UserError
from allo.plan import plan
from allo.recipe import Recipe, load_recipe
from start_rows import rows, write
from tiny_run import LAB

WRITTEN = Path("runs/pairs-lab/align.yaml")


class ReachedTheRunError(Exception):
    pass


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Recipe, str]]:
    """The command on pairs, up to the run itself; it returns the written recipe and what was said."""
    write(tmp_path / "pairs.jsonl", rows("pairs"))
    monkeypatch.chdir(tmp_path)

    def stop(recipe: object, **_: object) -> None:
        raise ReachedTheRunError

    monkeypatch.setattr(command, "run_all", stop)

    def call(*words: str) -> tuple[Recipe, str]:
        done = CliRunner().invoke(app, ["align", str(LAB), "pairs.jsonl", *words])
        if isinstance(done.exception, UserError):
            raise done.exception
        assert isinstance(done.exception, ReachedTheRunError), done.exception
        return load_recipe(WRITTEN), done.output

    return call


def rows_a_step(recipe: Recipe) -> dict[str, int]:
    stages = {stage: getattr(recipe, stage).training for stage in ("locate", "forget", "improve")}
    return {
        stage: one.per_device_train_batch_size * one.gradient_accumulation_steps
        for stage, one in stages.items()
    }


@pytest.mark.slow
def test_every_stage_of_the_written_recipe_fits(written: Callable[..., tuple[Recipe, str]]) -> None:
    plain, _ = written()
    stages = {stage.stage: stage.total for stage in plan(plain).stages}
    limit = stages["improve"] * 6 // 10
    fitted, said = written("--gpu", f"{limit / 1000:.3f}KB")
    planned = plan(fitted, limit=limit)
    assert all(map(planned.fits, planned.stages))
    too_large = {stage for stage, total in stages.items() if total > limit}
    differing = {stage for stage in stages if getattr(plain, stage) != getattr(fitted, stage)}
    assert "improve" in too_large and differing == too_large, "a stage that fits keeps its settings"
    assert rows_a_step(fitted) == rows_a_step(plain)
    comments = " ".join(WRITTEN.read_text().replace("#", " ").split())
    for stage in too_large:
        reason = f"{stage} takes {stages[stage] / 10**6:.1f} MB without"
        assert reason in " ".join(said.split())
        assert reason.capitalize().replace("mb", "MB") in comments


def test_a_large_gpu_changes_no_setting(written: Callable[..., tuple[Recipe, str]]) -> None:
    fitted, said = written("--gpu", "24GB")
    assert "every stage fits into 24.0 GB; at most " in said
    plain, _ = written()
    assert fitted == plain


@pytest.mark.slow
def test_a_gpu_that_is_too_small_is_refused_before_anything_is_written(
    written: Callable[..., tuple[Recipe, str]],
) -> None:
    with pytest.raises(UserError, match=r"does not fit into .* under any setting.*lower max_length"):
        written("--gpu", "100KB")
    assert not Path("runs").exists()


@pytest.mark.slow  # plans every stage several times
def test_a_setting_that_does_not_fit_is_refused(written: Callable[..., tuple[Recipe, str]]) -> None:
    batch = "improve.training.per_device_train_batch_size"
    with pytest.raises(UserError, match=r"--set .*: --gpu needs .* there .*remove one of them"):
        written("--gpu", "20MB", "--set", f"{batch}=64")
    assert not Path("runs").exists()
