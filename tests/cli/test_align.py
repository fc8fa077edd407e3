"""`allo align`: a model and a file are enough, each decision is said, and nobody's work is overwritten."""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from allo.cli import align as command
from allo.cli import app
from allo.errors import UserError
from allo.recipe import load_recipe
from start_rows import rows, write
from tiny_run import LAB

SHORT = [
    word for stage in ("locate", "forget", "improve") for word in ("--set", f"{stage}.training.max_steps=2")
]
SAMPLED = [
    word
    for each in ("sample.num_generations=4", "sample.max_new_tokens=40", "evaluate.num_generations=1")
    for word in ("--set", each)
]


def fill(folder: Path) -> None:
    for kind in ("pairs", "rated", "feedback", "problems", "prompts"):
        write(folder / f"{kind}.jsonl", rows(kind))
    (folder / "own.py").write_text(
        "def short(prompts, completions, **columns):\n    return [-float(len(text)) for text in completions]\n"
        "def long(prompts, completions, **columns):\n    return [float(len(text)) for text in completions]\n"
    )


def align(*words: str) -> str:
    """Run the command; return what it printed, or raise what it raised."""
    done = CliRunner().invoke(app, ["align", *words], catch_exceptions=False)
    return done.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of every kind in the working folder."""
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class ReachedTheRunError(Exception):
    pass


@pytest.fixture
def only_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The command up to the run itself; it returns what was said."""

    def stop(recipe: object, **_: object) -> None:
        raise ReachedTheRunError

    monkeypatch.setattr(command, "run_all", stop)

    def call(*words: str) -> str:
        done = CliRunner().invoke(app, ["align", *words])
        assert isinstance(done.exception, ReachedTheRunError), done.exception
        return done.output

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with a finished run of pairs, and what the command said."""
    folder = tmp_path_factory.mktemp("aligned")
    fill(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder, align(str(LAB), "pairs.jsonl", "--out", "runs/mine", *SHORT)


@pytest.mark.slow
def test_a_model_and_a_file_are_enough(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, said = finished
    monkeypatch.chdir(folder)
    assert (folder / "runs/mine/model/model.safetensors").is_file()
    assert said.index("preference pairs") < said.index("sft") < said.index("Reward accuracy")
    assert "allo run runs/mine/align.yaml" in said
    assert load_recipe("runs/mine/align.yaml") == load_recipe("runs/mine/recipe.yaml")
    assert "- `allo align lab pairs.jsonl` (allo" in Path("runs/mine/model-card.md").read_text()
    again = align(str(LAB), "pairs.jsonl", "--out", "runs/mine", *SHORT)
    resumed = CliRunner().invoke(app, ["run", "runs/mine/align.yaml"], catch_exceptions=False).output
    for output in (again, resumed):
        assert output.count("done already, skipped") == 8 and " ...\n" not in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "more", "measure"),
    [
        ("rated.jsonl", (), "Reward accuracy"),
        ("feedback.jsonl", (), "Reward AUC"),
        ("problems.jsonl", SAMPLED, "sampled"),
        ("prompts.jsonl", (*SAMPLED, "--reward", "own.py:short"), "reward"),
    ],
)
def test_each_kind_of_rows_ends_in_a_measured_model(
    folder: Path, file: str, more: tuple[str, ...], measure: str
) -> None:
    said = align(str(LAB), file, "--out", "runs/mine", *SHORT, *more)
    assert measure in said and "the model is in runs/mine/model" in said
    loaded = AutoModelForCausalLM.from_pretrained("runs/mine/model")
    start = AutoModelForCausalLM.from_pretrained(LAB)
    assert any(not torch.equal(*two) for two in zip(loaded.parameters(), start.parameters(), strict=True))
    assert f"`allo align lab {file}`" in Path("runs/mine/model-card.md").read_text()
    assert (folder / "runs/mine/report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "key"),
    [
        ([str(LAB), "rated.jsonl"], "data.pairs"),
        ([str(LAB), "prompts.jsonl", "--reward", "own.py:short"], "data"),
        ([str(LAB), "pairs.jsonl", "--set", "improve.density=0.2"], "improve.density"),
    ],
)
def test_other_work_in_the_folder_is_refused(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, words: list[str], key: str
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in (folder / "runs/mine").glob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=rf"runs/mine: holds a run with other settings: .*{key}.*--out DIR.*allo run"
    ):
        align(*words, "--out", "runs/mine", *SHORT)
    assert before == {path: path.read_bytes() for path in (folder / "runs/mine").glob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        ("pairs", (), {"pairs": "pairs.jsonl"}),
        ("rated", (), {"pairs": "rated.jsonl"}),
        ("feedback", (), {"feedback": "feedback.jsonl"}),
        ("problems", (), {"file": "problems.jsonl"}),
        ("problems", ("--reward", "own.py:short"), {"file": "problems.jsonl"}),
        ("prompts", ("--reward", "own.py:short"), {"file": "prompts.jsonl"}),
        ("prompts", ("--reward", "own.py:short", "--reward", "own.py:long"), {"file": "prompts.jsonl"}),
        ("prompts", ("--set", "judge.reward_model=ranker"), {"file": "prompts.jsonl"}),
    ],
)
def test_each_kind_of_rows_gets_its_recipe(
    only_written: Callable[..., str], kind: str, more: tuple[str, ...], expected: dict[str, str]
) -> None:
    said = only_written(str(LAB), f"{kind}.jsonl", *more)
    recipe = load_recipe(f"runs/{kind}-lab/align.yaml")
    named = {key: str(value) for key in ("pairs", "feedback", "file") if (value := getattr(recipe.data, key))}
    assert named == expected
    assert recipe.judge.function == [value for option, value in pairwise(more) if option == "--reward"]
    assert recipe.data.held_out == "auto"
    assert said.startswith(f"data: {kind}.jsonl has ")
    assert recipe.max_length == 128 and "the model has no more positions" in said
    assert not recipe.chat and "the model has no chat template" in said
    assert recipe.dtype == "float32"
    assert recipe.data.is_ready or recipe.sample.max_new_tokens == 64


def test_a_small_model_is_float32_where_the_cpu_is_slow_in_bf16(
    only_written: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = shutil.copytree(LAB, folder / "stored")
    config = json.loads((stored / "config.json").read_text()) | {"dtype": "bfloat16"}
    (stored / "config.json").write_text(json.dumps(config))
    for slow, dtype in ((False, "bfloat16"), (True, "float32")):
        monkeypatch.setattr("allo.plan.starting.is_slow_in_bf16", lambda device, slow=slow: slow)
        said = only_written(str(stored), "pairs.jsonl", "--out", f"out-{dtype}")
        assert load_recipe(f"out-{dtype}/align.yaml").dtype == dtype
        assert ("this CPU is slow in bfloat16" in said) is slow


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompts.jsonl"], r"prompts.jsonl: has prompts without `answer`.*--reward FILE.py:NAME"),
        (["pairs.jsonl", "--reward", "own.py:short"], r"--reward: pairs.jsonl has preference pairs.*remove --reward"),
        (["prompts.jsonl", "--reward", "own.py"], r"--reward own.py: not of the form FILE.py:NAME"),
        (["prompts.jsonl", "--reward", "own:short"], r"--reward own:short: not of the form FILE.py:NAME"),
        (["prompts.jsonl", "--reward", ""], r"--reward '': not of the form FILE.py:NAME"),
        (["prompts.jsonl", "--set", "judge.function=own"], r"judge.function.0: not of the form FILE.py:NAME"),
        (["absent.jsonl"], r"absent.jsonl: there is no such file"),
        (["pairs.jsonl", "--out", "own.py"], r"--out own.py: there is a file of this name"),
        (["pairs.jsonl", "--out", "runs/a b"], r"--out runs/a b: .*runs/a-b"),
        (["pairs.jsonl", "--set", "improve.desnity=1"], r"improve.desnity: unknown key; did you mean 'density'"),
        (["pairs.jsonl", "--gpu", "24XB"], r"--gpu 24XB"),
    ],
)  # fmt: skip
def test_what_cannot_be_aligned_is_refused_before_anything_is_written(
    folder: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        align(str(LAB), *words)
    assert not (folder / "runs").exists()


def test_a_dry_run_shows_the_recipe_and_the_rows_and_writes_nothing(folder: Path) -> None:
    before = set(folder.rglob("*"))
    said = align(str(LAB), "pairs.jsonl", "--dry-run")
    assert (
        "data: {pairs: pairs.jsonl}" in said
        and "12 pairs trained on" in said
        and "nothing was written" in said
    )
    assert set(folder.rglob("*")) == before


def test_bad_rows_are_named_before_the_model_is_read_or_left_out(
    only_written: Callable[..., str], folder: Path
) -> None:
    with (folder / "pairs.jsonl").open("a") as rows:
        rows.write('{"prompt": "Q", "chosen": "", "rejected": "b"}\n')
    with pytest.raises(UserError, match=r"pairs.jsonl:\d+: `chosen` has no completion(?s:.)*--skip-bad"):
        align("no/such/model", "pairs.jsonl")
    said = only_written(str(LAB), "pairs.jsonl", "--skip-bad")
    assert load_recipe("runs/pairs-lab/align.yaml").data.skip_bad, said


def test_fewer_steps_than_the_rows_make_are_said(only_written: Callable[..., str]) -> None:
    assert "; improve stops at its max_steps 2" in only_written(
        str(LAB), "pairs.jsonl", "--set", "improve.training.max_steps=2"
    )


def test_what_set_gives_stays_and_is_not_said_as_a_decision(only_written: Callable[..., str]) -> None:
    given = ["max_length=96", "improve.training.learning_rate=3e-4", "forget=null"]
    said = only_written(str(LAB), "pairs.jsonl", *(word for each in given for word in ("--set", each)))
    recipe = load_recipe("runs/pairs-lab/align.yaml")
    assert recipe.improve and recipe.improve.training.learning_rate == 3e-4
    assert (recipe.max_length, recipe.forget) == (96, None)
    assert "max_length" not in said and "forget" not in said
    assert "locate.training.learning_rate" in said and "improve.training.learning_rate" not in said


def test_an_edited_recipe_is_kept_beside_the_new_one(only_written: Callable[..., str], folder: Path) -> None:
    only_written(str(LAB), "pairs.jsonl")
    path = folder / "runs/pairs-lab/align.yaml"
    commented = path.read_text() + "# my note\n"
    path.write_text(commented)
    assert "with the same settings" in only_written(str(LAB), "pairs.jsonl")
    assert path.read_text() == commented, "a comment changes no setting"
    edited = commented + "seed: 7\n"
    path.write_text(edited)
    assert "align.before.yaml" in only_written(str(LAB), "pairs.jsonl")
    assert path.with_name("align.before.yaml").read_text() == edited
    assert load_recipe(path).seed == 0


def test_a_wrong_key_of_training_is_refused_before_the_model_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allo.plan.starting.for_model", None)
    with pytest.raises(UserError, match=r"improve\.training\.max_step: unknown key; did you mean max_steps"):
        align(str(LAB), "pairs.jsonl", "--set", "improve.training.max_step=4")
    assert not (folder / "runs").exists()


def test_settings_change_while_nothing_is_finished(only_written: Callable[..., str]) -> None:
    only_written(str(LAB), "pairs.jsonl")
    run = Path("runs/pairs-lab")
    shutil.copy(run / "align.yaml", run / "recipe.yaml")
    (run / ".00-sft.begun").write_text("{}")
    only_written(str(LAB), "pairs.jsonl", "--set", "improve.density=0.2")
    assert load_recipe(run / "align.yaml").improve.density == 0.2
