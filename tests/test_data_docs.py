"""docs/data.md is executed: its files are read as a run reads them, and its tables say what the code does."""

import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import datasets
import pytest
import yaml

from allo import tasks
from allo.files.records import Feedback, Pair
from allo.files.row_files import FILE_TYPES
from allo.recipe import Recipe
from allo.recipe.tasks import TASKS
from allo.tasks import alpaca_eval, arena_hard, base
from allo.tasks.pairs import pairs_and_reading, read_pairs
from allo.tasks.prompts import PromptSource, read_prompts
from allo.tasks.sources import Sources, training_pairs, training_prompts
from tiny_run import tiny

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"`(\S+\.jsonl)`:\n\n```json\n(.*?)```", PAGE, re.DOTALL))
FILES = dict(re.findall(r"```(?:yaml|python)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
TABMWP = {
    "7": {
        "question": "How many in all?", "choices": None, "answer": "3", "solution": "1 + 2 = 3.",
        "table_title": "Hens", "table": "Ann | 1\nTom | 2",
    },
    "8": {
        "question": "Who has more?", "choices": ["Ann", "Tom"], "answer": "Tom", "solution": "2 > 1.",
        "table_title": None, "table": "Ann | 1\nTom | 2",
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files."""
    for name, text in {**ROWS, **FILES}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(name: str) -> Recipe:
    """The tiny recipe with a file's blocks; of `improve` the loss alone, as its other keys are the tiny recipe's."""
    read = yaml.safe_load(FILES[name])
    loss = read.pop("improve", {}).get("loss", "dpo")
    blocks = [f"{key}={json.dumps(block)}" for key, block in read.items()]
    return tiny(Path("runs"), "data_folder=.", *blocks, f"improve.loss={loss}", "sft=null")


def test_the_prompts_are_read_as_the_page_says(folder: Path) -> None:
    hens, melt, chat = read_prompts(PromptSource(file=folder / "problems.jsonl"))
    assert (hens.answer, hens.choices, hens.solution) == ("5", None, "2 + 3 = 5. The answer is 5.")
    assert melt.choices == ["ice", "sand"] and melt.answer in melt.choices
    assert isinstance(chat.prompt, list)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "ids"), [("file.yaml", {"hens", "melt", "chat"}), ("task.yaml", {"g1"}), ("mixture.yaml", {"e1", "q1"})]
)  # fmt: skip
def test_a_recipe_takes_its_prompts_from_the_files(name: str, ids: set[str]) -> None:
    Path("ecqa").mkdir()
    Path("ecqa/train.jsonl").write_text(ROWS["qasc/train.jsonl"].replace("q1", "e1"))
    found = {prompt.id for prompt in training_prompts(recipe(name))}
    assert found <= ids
    assert len(found) == (2 if name == "file.yaml" else len(ids))  # its limit is 2


@pytest.mark.usefixtures("folder")
def test_labelled_feedback_is_read_in_each_format() -> None:
    text, chat, whole = Sources(recipe("feedback.yaml")).feedback()
    assert text == Feedback("feedback-1", "Name a tree.\n", "Oak.", label=True)
    assert (chat.prompt, chat.completion, chat.label) == (
        [{"role": "user", "content": "Name a bird."}],
        "Trout.",
        False,
    )
    assert (whole.completion, whole.label) == ("Trout.", True)


@pytest.mark.usefixtures("folder")
def test_the_pairs_are_read_in_each_format() -> None:
    text, chat, whole = training_pairs(recipe("pairs.yaml"))
    assert text == Pair("pairs-1", "Name a tree.\n", "Oak.", "Granite.")
    assert (chat.prompt, chat.chosen) == ([{"role": "user", "content": "Name a bird."}], "Wren.")
    assert (whole.prompt, whole.chosen, whole.rejected) == ("Q: Name a fish.\nA:", " Trout.", " Wren.")
    assert whole.chosen_finished and not whole.rejected_finished
    assert len(read_pairs(Path("pairs.jsonl"))) == 3


@pytest.mark.usefixtures("folder")
def test_pairs_in_other_forms_are_the_same_pair() -> None:
    pairs, reading = pairs_and_reading(Path("other_forms.jsonl"))
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {("Oak.", "Granite.")}
    asked = [{"role": "user", "content": "Name a tree."}]
    assert [pair.prompt for pair in pairs] == [asked, asked, "Name a tree.\nOne word."]
    assert sum(reading.mapped.values()) == 4  # ShareGPT's row also has its prompt in another column


@pytest.mark.usefixtures("folder")
def test_rated_completions_are_paired_by_the_recipes_margin() -> None:
    sources = Sources(recipe("rated.yaml"))
    assert [(pair.chosen, pair.rejected) for pair in sources.pairs()] == [
        ("Oak.", "Granite."),
        ("Elm.", "A bush."),
        ("Wren.", "Trout."),
    ]
    assert sources.readings()["data.pairs"].dropped == {
        "no two of its completions may be paired by their scores": 1
    }


def test_the_recipe_of_the_hub_names_a_data_set_and_its_split(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in ROWS["pairs.jsonl"].splitlines()]
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, _, split: asked.append((hub, split)) or rows)
    assert len(Sources(recipe("hub.yaml")).pairs()) == 3
    assert asked == [("HuggingFaceH4/ultrafeedback_binarized", "train_prefs")]


def test_every_type_of_file_is_in_the_table() -> None:
    (table,) = re.findall(r"## Files, folders and the hub\n(.*?)\n## ", PAGE, re.DOTALL)
    assert set(re.findall(r"`(\.[a-z.]+)`", table)) == set(FILE_TYPES)


def test_the_folders_rows_become_prompts(folder: Path) -> None:
    for name in [name for name in ROWS if "/" in name]:
        task, split = name.removesuffix(".jsonl").split("/")
        (prompt,) = tasks.load(task, split, folder=folder)
        row = json.loads(ROWS[name])
        assert row["question"] in prompt.prompt
        assert row["answer"] in (prompt.solution or "")
        assert prompt.answer == (None if task == "alpaca_eval" else row["answer"])


def test_tabmwps_own_rows_become_a_folders(folder: Path) -> None:
    (command,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    _, script, source, target = shlex.split(command)
    Path(source).write_text(json.dumps(TABMWP))
    subprocess.run([sys.executable, script, source, target], check=True)
    number, option = tasks.load("tabmwp", "test", folder=folder / Path(target).parts[0])
    assert base.question_of(number.prompt) == (
        'Read the following table regarding "Hens" and answer a question:\nAnn | 1\nTom | 2\nHow many in all?'
    )
    assert (number.answer, number.choices) == ("3", None)
    assert base.question_of(option.prompt).endswith(
        "Please select from the following options: ['Ann', 'Tom']"
    )
    assert (option.answer, option.choices) == ("Tom", ["Ann", "Tom"])


def test_the_table_names_every_benchmark_with_its_hub_id() -> None:
    cells = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in PAGE.splitlines()]
    hubs = {row[0]: row[2] for row in cells if len(row) == 6 and row[0] in TASKS}
    assert set(hubs) == {task.name for task in TASKS.values() if not task.is_generated}
    for task, hub in hubs.items():
        module = import_module(TASKS[task].function.partition(":")[0])
        assert hub == (module.HUB.id if task != "tabmwp" else "none")
    for task, answer, _, splits, use, _ in (row for row in cells if len(row) == 6 and row[0] in hubs):
        record = TASKS[task]
        assert answer.startswith("none: a model judges") is not record.has_answers
        assert use.startswith("trained on") is record.trained_on
        assert all(split in splits for split in record.splits) or splits == "those of the folder"
    for module in (alpaca_eval, arena_hard):
        assert f"`{module.BASELINE}`" in PAGE


def test_the_held_out_pair_is_not_trained_on(folder: Path) -> None:
    read = recipe("held_out.yaml")
    assert read.data.held_out == 1
    sources = Sources(read)
    (held_out,), kept = sources.held_out_pairs(), sources.pairs()
    assert len(kept) == 2 and held_out not in kept
