"""The link `model` at the top of a run: it leads to the last training stage's model, and goes with it."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from allo.errors import UserError
from allo.files.artifacts import RunFolder
from allo.files.result_link import is_linked
from allo.pipeline import run_all
from allo.stages import improve, result
from allo.weights.checkpoints import Checkpoint
from tiny_run import tiny

QUICK = (
    *("sft=null", "data.limit=8", "locate.criterion=magnitude", "score.scorer=confidence"),
    *("evaluate.num_generations=0", "evaluate.kl=null", "evaluate.start=false"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(tiny(tmp_path_factory.mktemp("trained"), *QUICK), until="improve").path


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "tiny", symlinks=True))


def again(run: Path, *more: str, until: str = "improve", force: str | None = None) -> None:
    run_all(tiny(run.parent, *QUICK, *more), until=until, force=force)


def test_the_link_is_relative_and_holds_the_trained_weights_under_their_names(trained: Path) -> None:
    assert os.readlink(trained / "model") == "07-improve/model"
    stored = Checkpoint.open(trained / "07-improve" / "model")
    loaded = AutoModelForCausalLM.from_pretrained(trained / "model")
    names = dict(loaded.named_parameters())
    assert names.keys() == stored.stored.keys()
    assert all(torch.equal(names[name], stored.read(name).reshape(names[name].shape)) for name in names)
    AutoTokenizer.from_pretrained(trained / "model")


def test_a_moved_run_keeps_its_link(copied: Path) -> None:
    shutil.move(copied, copied.parent / "elsewhere")
    assert (copied.parent / "elsewhere" / "model" / "config.json").is_file()


def test_a_run_that_was_killed_before_its_link_gets_it(copied: Path) -> None:
    (copied / "model").unlink()
    again(copied)
    assert os.readlink(copied / "model") == "07-improve/model"


def test_a_second_run_leaves_the_link_and_checks_nothing(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (copied / "model").lstat().st_ino
    monkeypatch.setattr(result, "is_ready", None)
    again(copied)
    assert (copied / "model").lstat().st_ino == before


@pytest.mark.parametrize(
    ("more", "force"), [((), "improve"), (("improve.training.learning_rate=1e-6",), None)]
)
def test_the_link_is_gone_while_its_stage_is_done_again(
    copied: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], force: str | None
) -> None:
    def killed(*_: object) -> None:
        assert not (copied / "model").is_symlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(improve, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            again(copied, *more, force=force)
    assert not (copied / "model").is_symlink()
    again(copied, *more)
    assert (copied / "model" / "config.json").is_file()


def test_without_improving_the_link_leads_to_what_forgetting_left(copied: Path) -> None:
    again(copied, "improve=null", until="forget")
    assert os.readlink(copied / "model") == "06-forget/model"
    again(copied)
    assert os.readlink(copied / "model") == "07-improve/model"


def test_a_discarded_stage_takes_its_link_along(copied: Path) -> None:
    again(copied, "improve=null", until="sft")  # the recipe has no improve any more
    assert not (copied / "model").is_symlink()


def test_something_else_of_that_name_is_left_as_it_is(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "model").unlink()
    (copied / "model").mkdir()
    (copied / "model" / "mine.txt").write_text("mine")
    again(copied)
    assert (copied / "model" / "mine.txt").read_text() == "mine"
    assert f"The run's model is {copied / '07-improve' / 'model'}" in capsys.readouterr().err


def test_where_links_are_not_possible_it_says_where_the_model_is(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    (copied / "model").unlink()
    monkeypatch.setattr(Path, "symlink_to", refuses)
    again(copied)
    assert not (copied / "model").exists()
    said = capsys.readouterr().err
    assert "no link can be made here (Operation not permitted)" in said
    assert str(copied / "07-improve" / "model") in said


def test_a_folder_under_other_names_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "model").unlink()
    monkeypatch.setattr(result, "is_ready", lambda recipe: None)
    with pytest.raises(UserError, match=r"07-improve/model: transformers would load .* under other names"):
        again(copied)
    assert not (copied / "model").exists()


def test_with_rounds_the_link_leads_to_the_union(tmp_path: Path) -> None:
    run = run_all(tiny(tmp_path, *QUICK, "rounds=2", "score=null", "forget=null"), until="improve")
    assert is_linked(RunFolder(run.path), run.path / "07-improve" / "model")
    assert not list(run.path.glob("round-*/model"))
