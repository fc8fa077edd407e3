"""The benchmarks: rows of a folder and of the hub, their wording, and verifiers on their own gold answers."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest

from allo import tasks
from allo.errors import UserError
from allo.files.records import Prompt
from allo.tasks.answers import Verified, verify_choice, verify_final_answer
from allo.tasks.answers.final_answer import last_boxed

FREE_FORM = {
    "id": "gsm8k-train-0",
    "question": "Ann has 2 hens. She buys 3 more. How many has she?",
    "answer": "5",
    "solution": "She has 2 + 3 = 5 hens.",
}
CHOICE = {
    "id": "qasc-test-7",
    "question": "What melts?",
    "choices": ["ice", "sand", "the U.S. coast"],
    "answer": "ice",
}
INSTRUCTIONS = ["alpaca_eval", "arena_hard"]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


def judge(prompt: Prompt, text: str) -> Verified:
    assert prompt.answer is not None
    if prompt.choices:
        return verify_choice(text, prompt.answer, prompt.choices)
    return verify_final_answer(text, prompt.answer)


@pytest.mark.parametrize("name", ["gsm8k/train.jsonl", "gsm8k/train.jsonl.gz"])
def test_a_free_form_row_in_words(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, [FREE_FORM])
    (prompt,) = tasks.load("gsm8k", "train", folder=tmp_path)
    assert prompt == Prompt(
        id="gsm8k-train-0",
        prompt="Question: Ann has 2 hens. She buys 3 more. How many has she?\n"
        'Think step by step, and end with "The answer is" and the final answer.\n',
        answer="5",
        solution="She has 2 + 3 = 5 hens.\nThe answer is 5.",
        task="gsm8k",
    )


def test_two_rows_with_one_id_are_named(tmp_path: Path) -> None:
    write(tmp_path, "gsm8k/train.jsonl", [FREE_FORM, {**FREE_FORM, "id": "other"}, FREE_FORM])
    with pytest.raises(
        UserError, match=r"train\.jsonl:3: the id 'gsm8k-train-0' is that of .*train\.jsonl:1 too"
    ):
        list(tasks.load("gsm8k", "train", folder=tmp_path))


def test_the_plain_file_is_preferred_to_its_gzip(tmp_path: Path) -> None:
    write(tmp_path, "gsm8k/train.jsonl.gz", [{**FREE_FORM, "answer": "old"}])
    write(tmp_path, "gsm8k/train.jsonl", [FREE_FORM])
    (prompt,) = tasks.load("gsm8k", "train", folder=tmp_path)
    assert prompt.answer == "5"


def test_a_choice_row_in_words_without_a_rationale(tmp_path: Path) -> None:
    write(tmp_path, "qasc/test.jsonl.gz", [CHOICE])
    (prompt,) = tasks.load("qasc", "test", folder=tmp_path)
    assert prompt.prompt == (
        "Question: What melts?\nOptions:\n- ice\n- sand\n- the U.S. coast\n"
        'Think step by step, and end with "The answer is" and the right option.\n'
    )
    assert prompt.solution == "The answer is ice."
    assert prompt.choices == CHOICE["choices"]


@pytest.mark.parametrize("answer", CHOICE["choices"])
def test_a_demonstration_verifies(tmp_path: Path, answer: str) -> None:
    write(tmp_path, "ecqa/train.jsonl", [{**CHOICE, "answer": answer, "solution": "Sand does not melt."}])
    (prompt,) = tasks.load("ecqa", "train", folder=tmp_path)
    assert prompt.solution is not None
    assert judge(prompt, prompt.solution).correct


# Invented rows in the hub's columns; what they must become: answer, choices, rationale.
HUB_ROWS: dict[str, tuple[dict[str, Any], tuple[str, list[str] | None, str]]] = {
    "gsm8k": (
        {"question": "Q?", "answer": "Two boxes of 600 are 2*600=<<2*600=1200>>1200.\n#### 1,200"},
        ("1200", None, "Two boxes of 600 are 2*600=1200.\nThe answer is 1200."),
    ),
    "mawps": ({"id": "m", "question": "Q?", "result": "1_200"}, ("1200", None, "The answer is 1200.")),
    "ecqa": (
        {"q_text": "Q?", **{f"q_op{n}": f"o{n}" for n in range(1, 6)}, "q_ans": "o3", "taskA_pos": "As 3."},
        ("o3", ["o1", "o2", "o3", "o4", "o5"], "As 3.\nThe answer is o3."),
    ),
    "qasc": (
        {
            "question": "Q?",
            "choices": {"text": ["x", "y"], "label": ["A", "B"]},
            "answerKey": "B",
            "fact1": "One.",
            "fact2": "Two.",
            "combinedfact": "Three.",
        },
        ("y", ["x", "y"], "One.\nTwo.\nThree.\nThe answer is y."),
    ),
    "openbookqa": (
        {"question_stem": "Q?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"},
        ("x", ["x", "y"], "The answer is x."),
    ),
    "strategyqa": (
        {"qid": "s", "question": "Q?", "answer": False, "facts": "Tin floats. Tin sinks."},
        ("no", ["yes", "no"], "Tin floats. Tin sinks.\nThe answer is no."),
    ),
    "math": (
        {"problem": "Q?", "solution": "Not $\\boxed{2}$ but $\\boxed{\\frac{1}{2}}$.", "level": "Level 1"},
        (
            "\\frac{1}{2}",
            None,
            "Not $\\boxed{2}$ but $\\boxed{\\frac{1}{2}}$.\nThe answer is \\frac{1}{2}.",
        ),
    ),
}


@pytest.mark.parametrize("task", HUB_ROWS)
def test_hub_rows_become_prompts(monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    row, (answer, choices, solution) = HUB_ROWS[task]
    asked = []

    def load_dataset(hub: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((hub, config, split))
        return [row, row]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    first, second, *others = tasks.load(task, "test")
    assert (first.id, second.id) == (f"{task}-test-0", f"{task}-test-1")
    assert (first.answer, first.choices, first.solution) == (answer, choices, solution)
    assert asked[0][2] == ("validation" if task == "qasc" else "test")  # the hub hides QASC's test answers
    assert len({prompt.id for prompt in others}) == len(others) == 2 * len(asked) - 2
    assert len(asked) == len(set(asked)) == (7 if task == "math" else 1)  # MATH has a part for each subject


def test_a_solution_that_boxes_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"problem": "Q?", "solution": "It is 2."}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [row])
    with pytest.raises(
        UserError, match=r"hendrycks_math\[algebra, test\], row 0: .*the solution boxes no answer"
    ):
        list(tasks.load("math", "test"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("$\\boxed{2}$", "2"),
        ("$\\boxed{1}$ is not $\\boxed{ (3, 5] }$.", "(3, 5]"),
        ("$\\boxed{\\text{a}_{1}^{2}}$.", "\\text{a}_{1}^{2}"),
        ("so $x = \\boxed 9$.", "9"),
        ("$\\boxed{\\frac{1}{2}$", None),
        ("nothing", None),
    ],
)
def test_the_last_box_is_read_with_its_braces(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


# Invented rows in the columns of the public tools' files.
BASELINE_ROWS: dict[str, dict[str, Any]] = {
    "alpaca_eval": {"instruction": "Name a tree. ", "output": "Oak.", "generator": "g", "dataset": "d"},
    "arena_hard": {
        "uid": "u1",
        "model": "g",
        "messages": [
            {"role": "user", "content": "Name a tree. "},
            {"role": "assistant", "content": {"answer": "Oak."}},
        ],
    },
}


@pytest.fixture
def baseline_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder in place of the hub; a set's file is named by the last part of its hub path."""
    write(tmp_path, "gpt-4-0314.jsonl", [BASELINE_ROWS["arena_hard"]])
    (tmp_path / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps([BASELINE_ROWS["alpaca_eval"]]))

    def download(_: str, file: str, *, repo_type: str) -> str:
        assert repo_type == "dataset"
        return str(tmp_path / Path(file).name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path


@pytest.mark.usefixtures("baseline_files")
@pytest.mark.parametrize(("task", "name"), [("alpaca_eval", "alpaca_eval-test-0"), ("arena_hard", "u1")])
def test_an_instruction_is_asked_unchanged_and_has_no_right_answer(task: str, name: str) -> None:
    (prompt,) = tasks.load(task, "test")
    assert prompt == Prompt(id=name, prompt="Name a tree. ", solution="Oak.", task=task)


@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_an_instruction_of_a_folder_is_that_of_the_hub(tmp_path: Path, task: str) -> None:
    write(tmp_path, f"{task}/test.jsonl.gz", [{"id": "i", "question": "Name a tree. ", "answer": "Oak."}])
    (prompt,) = tasks.load(task, "test", folder=tmp_path)
    assert prompt == Prompt(id="i", prompt="Name a tree. ", solution="Oak.", task=task)


@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_instructions_have_one_split(task: str) -> None:
    with pytest.raises(UserError, match="has no split 'train'; it has `test` alone"):
        list(tasks.load(task, "train"))


@pytest.mark.parametrize(("rows", "expected"), [([{"instruction": "I"}], "output"), ({"a": 1}, "an array")])
def test_a_changed_baseline_file_is_an_error(baseline_files: Path, rows: Any, expected: str) -> None:
    (baseline_files / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=f"alpaca_eval_gpt4_baseline.json.*{expected}.*local folder"):
        list(tasks.load("alpaca_eval", "test"))


def test_a_baseline_file_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("no such file")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"lmarena-ai/arena-hard-auto.*no such file.*local folder"):
        list(tasks.load("arena_hard", "test"))


def test_tabmwp_without_a_folder_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"folder only.*`data_folder`.*tabmwp/test\.jsonl"):
        tasks.load("tabmwp", "test")
    write(tmp_path, "tabmwp/test.jsonl", [FREE_FORM, CHOICE])
    numbers, options = tasks.load("tabmwp", "test", folder=tmp_path)
    assert (numbers.choices, options.choices) == (None, CHOICE["choices"])
    assert "the final answer" in numbers.prompt and "the right option" in options.prompt


def test_changed_hub_columns_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"stem": "Q?"}])
    with pytest.raises(
        UserError, match=r"allenai/openbookqa\[main, train\], row 0: .*question_stem.*found stem"
    ):
        list(tasks.load("openbookqa", "train"))


def test_an_unreachable_hub_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"openai/gsm8k.*no route.*local folder"):
        list(tasks.load("gsm8k", "train"))


def test_bad_folders_are_errors_that_name_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the tasks are alpaca_eval, arena_hard, ecqa"):
        tasks.load("gsm", "train", folder=tmp_path)
    with pytest.raises(UserError, match=r"nowhere: there is no such folder; expected .*gsm8k/train\.jsonl"):
        tasks.load("gsm8k", "train", folder=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"gsm8k: there is no such folder; expected .*gsm8k/train\.jsonl"):
        tasks.load("gsm8k", "train", folder=tmp_path)
    write(tmp_path, "gsm8k/train.jsonl.gz", [FREE_FORM])
    write(tmp_path, "gsm8k/test.jsonl", [FREE_FORM])
    with pytest.raises(UserError, match=r"no split 'dev'; expected .*\. Splits found: test, train\."):
        tasks.load("gsm8k", "dev", folder=tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no gzip" + data])
def test_a_damaged_file_is_an_error(tmp_path: Path, damage: Any) -> None:
    write(tmp_path, "gsm8k/train.jsonl.gz", [FREE_FORM] * 50)
    path = tmp_path / "gsm8k" / "train.jsonl.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"train\.jsonl\.gz: damaged gzip data"):
        list(tasks.load("gsm8k", "train", folder=tmp_path))


def test_a_row_without_its_answer_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "gsm8k/train.jsonl", [FREE_FORM, {"id": "1", "question": "Q?"}])
    with pytest.raises(UserError, match=r"train\.jsonl:2: lacks `answer`; found `id`, `question`"):
        list(tasks.load("gsm8k", "train", folder=tmp_path))


def test_tasks_and_prompts_import_neither_torch_nor_datasets() -> None:
    script = (
        "import sys, allo.tasks.prompts\n"
        "for task in allo.tasks.TASKS.values(): __import__(task.function.partition(':')[0])\n"
        "print({'torch', 'datasets', 'transformers', 'sympy'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
