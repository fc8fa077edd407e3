"""Rows given to a trainer: every form that `data.pairs` reads from a file, with errors that name the row."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from allo.errors import UserError
from allo.models.rows import counted_pairs
from allo.tasks.pairs import read_pairs
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from tiny import TOKENIZER, arguments, full_mask, model, pairs

CHAT = copy.deepcopy(TOKENIZER)
CHAT.chat_template = (
    "{% for m in messages %}{% if m.role == 'user' %}Problem: {{ m.content }}\n"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


ASKED = [user("Tom has 3 pens.")]
RIGHT, WRONG = [assistant("The answer is 3.")], [assistant("The answer is 9.")]
FORMS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Tom has 3 pens.\n", "chosen": "The answer is 3.", "rejected": "First 9."},
    "text without prompt": {
        "chosen": "Tom has 3 pens. First 3.",
        "rejected": "Tom has 3 pens. The answer is 9.",
    },
    "messages": {"prompt": ASKED, "chosen": RIGHT, "rejected": WRONG},
    "messages without prompt": {"chosen": ASKED + RIGHT, "rejected": ASKED + WRONG},
    "messages that repeat their prompt": {
        "prompt": ASKED,
        "chosen": ASKED + RIGHT,
        "rejected": ASKED + WRONG,
    },
    "a chat as prompt of texts": {"prompt": ASKED, "chosen": "The answer is 3.", "rejected": "First 9."},
    "unfinished": {
        "prompt": "Tom has 3 pens.\n",
        "chosen": "The answer is 3.",
        "rejected": "First",
        "rejected_finished": False,
    },
}


def trainer(kind: type[SelectedTrainer], rows: Any, folder: Path, **own: Any) -> SelectedTrainer:
    policy = model()
    return kind(policy, arguments(folder), rows, CHAT, mask=full_mask(policy), **own)


@pytest.mark.parametrize("as_dataset", [False, True], ids=["list", "dataset"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_in_memory_are_read_as_those_of_a_file(form: str, as_dataset: bool, tmp_path: Path) -> None:
    rows = [FORMS[form]] * 2
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected, _ = counted_pairs(CHAT, [vars(pair) for pair in read_pairs(file)], max_length=64)
    found = trainer(ImproveTrainer, Dataset.from_list(rows) if as_dataset else rows, tmp_path)
    assert [{name: row[name] for name in expected[0]} for row in found.train_dataset] == expected
    text = CHAT.decode(expected[0]["prompt_ids"])
    assert "has 3 pens." in text and "answer" not in text
    assert ("Problem:" in text) == ("messages" in form or "chat" in form)


@pytest.mark.parametrize("kind", [SftTrainer, ForgetTrainer])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "completion": RIGHT},
        {"completion": ASKED + RIGHT},
        {"messages": ASKED + RIGHT},
        {"prompt": ASKED, "completion": "The answer is 3."},
    ],
    ids=["messages", "without prompt", "a conversation", "text"],
)
def test_completions_have_the_same_forms(
    kind: type[SelectedTrainer], row: dict[str, Any], tmp_path: Path
) -> None:
    (found,) = trainer(kind, [row], tmp_path).train_dataset
    assert "has 3 pens." in CHAT.decode(found["prompt_ids"])
    completion = CHAT.decode(found["completion_ids"])
    assert "answer is 3." in completion and "pens" not in completion


@pytest.mark.parametrize("form", FORMS)
def test_what_pairs_reject_is_forgotten(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [FORMS[form]] * 2
    expected = trainer(ImproveTrainer, rows, tmp_path).train_dataset
    capsys.readouterr()
    for given in (rows, iter(rows), Dataset.from_list(rows)):
        found = trainer(ForgetTrainer, given, tmp_path).train_dataset
        names = [("prompt_ids", "prompt_ids"), ("completion_ids", "rejected_ids")]
        assert [[row[own] for own, _ in names] for row in found] == [
            [row[other] for _, other in names] for row in expected
        ]
        said = " ".join(capsys.readouterr().err.split())
        assert said.count("2 rows: the completion is `rejected`, and `chosen` is not read") == 1
    ids = CHAT(" 3.", add_special_tokens=False).input_ids
    ((row,), text) = ([{**FORMS["text"], "rejected": " 3.", "rejected_token_ids": ids}], FORMS["text"])
    assert trainer(ForgetTrainer, [row], tmp_path).train_dataset[0]["completion_ids"] == ids
    with pytest.raises(UserError, match=r"^train_dataset, row 1: `rejected` stands beside"):
        trainer(ForgetTrainer, [text, {**text, "token_weights": [1.0]}], tmp_path)
    with pytest.raises(
        UserError, match=r"^train_dataset, row 0 is a pair, and train_dataset, row 1 a completion"
    ):
        trainer(ForgetTrainer, [text, {"prompt": "Tom", "chosen": "First 3."}], tmp_path)
    with pytest.raises(UserError, match=r"^train_dataset, row 0: lacks `completion`"):
        trainer(SftTrainer, [text], tmp_path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([FORMS["text"], {"prompt": "Tom", "chosen": "a"}], r"^train_dataset, row 1: .*rejected"),
        (
            [FORMS["text"], FORMS["text"], {"chosen": "a", "rejected": "b"}],
            r"^train_dataset, row 2: lacks `prompt`",
        ),
        ([FORMS["messages"] | {"chosen": [user("Tom?")]}], r"^train_dataset, row 0: `chosen`"),
        ([FORMS["text"] | {"prompt": 3}], r"^train_dataset, row 0: .*prompt"),
        ([FORMS["text"] | {"chosen": None}], r"^train_dataset, row 0: .*chosen"),
        (["Tom has 3 pens."], r"^train_dataset, row 0 is a str"),
        ("pairs.jsonl", r"^train_dataset is a str: give rows"),
        (
            DatasetDict(train=Dataset.from_list([FORMS["text"]])),
            r"^train_dataset is a DatasetDict: .*one split",
        ),
        ([], r"^there is no row to train on"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_the_row(rows: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        trainer(ImproveTrainer, rows, tmp_path)


def test_errors_name_the_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^eval_dataset, row 1: "):
        trainer(ImproveTrainer, pairs(), tmp_path, eval_dataset=[FORMS["text"], {"prompt": "Tom"}])
    found = trainer(ImproveTrainer, pairs(), tmp_path)
    with pytest.raises(UserError, match=r"^eval_dataset, row 0: "):
        found.evaluate([{"prompt": "Tom"}])


def test_pairs_that_teach_nothing_and_unread_columns_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    equal = FORMS["text"] | {"rejected": FORMS["text"]["chosen"]}
    rows = [FORMS["text"], equal, FORMS["text"] | {"rejected": "First 8."}]
    found = trainer(ImproveTrainer, [row | {"score_of_a_rater": 3} for row in rows], tmp_path)
    assert len(found.train_dataset) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "train_dataset: 1 row dropped: `chosen` equals `rejected`" in said
    assert "train_dataset: ignored columns: " in said and "score_of_a_rater" in said


@pytest.mark.parametrize("field", ["tools", "images", "documents"])
def test_a_column_that_would_change_the_prompt_is_never_dropped(field: str, tmp_path: Path) -> None:
    row = FORMS["text"] | {field: [{"name": "look_up"}]}
    with pytest.raises(UserError, match=rf"^train_dataset, row 0: .*{field}"):
        trainer(ImproveTrainer, [row], tmp_path)


def test_a_runs_own_records_are_taken_as_they_are(tmp_path: Path) -> None:
    """A sample that ended at once has no text, only its end."""
    rows = [{"prompt": "Tom has 3 pens.", "chosen": "The answer is 3.", "rejected": ""}]
    (row,) = trainer(ImproveTrainer, rows, tmp_path, records=True).train_dataset
    assert row["rejected_ids"] == [CHAT.eos_token_id]
    with pytest.raises(UserError, match=r"^train_dataset, row 0: `rejected` has no completion"):
        trainer(ImproveTrainer, rows, tmp_path)


SIZE = model().get_input_embeddings().num_embeddings
OWN = CHAT(" 3.", add_special_tokens=False).input_ids
IDS = {"prompt": "Tom has 3 pens.\n", "completion": " 3."}


@pytest.mark.parametrize("ids", [[5, SIZE], [5, -1], [2**40], ["5"], [5.5], [True], "55", [[5]]], ids=str)
@pytest.mark.parametrize("kind", [SftTrainer, ForgetTrainer])
def test_a_completions_ids_that_the_model_does_not_have_are_refused_by_row(
    kind: type[SelectedTrainer], ids: Any, tmp_path: Path
) -> None:
    rows = [IDS, IDS | {"completion_ids": [*OWN, SIZE - 1]}, IDS | {"completion_ids": ids}]
    assert trainer(kind, rows[:2], tmp_path).train_dataset[1]["completion_ids"] == [*OWN, SIZE - 1]
    with pytest.raises(UserError, match=r"^(train_dataset, row|prompt train_dataset-)\s?2: .*completion_ids"):
        trainer(kind, rows, tmp_path)
    with pytest.raises(UserError, match=r"^(eval_dataset, row|prompt eval_dataset-)\s?2: .*completion_ids"):
        trainer(kind, rows[:2], tmp_path, eval_dataset=rows)


@pytest.mark.parametrize("ids", [[5, SIZE], [5, -1], ["5"]], ids=str)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_pairs_ids_that_the_model_does_not_have_are_refused_by_row(
    side: str, ids: Any, tmp_path: Path
) -> None:
    equal = FORMS["text"] | {"rejected": FORMS["text"]["chosen"]}  # is dropped, and still has a number
    with pytest.raises(
        UserError, match=rf"^(train_dataset, row|prompt train_dataset-)\s?2: .*{side}_token_ids"
    ):
        trainer(ImproveTrainer, [equal, FORMS["text"], FORMS["text"] | {f"{side}_token_ids": ids}], tmp_path)


@pytest.mark.parametrize("weights", [["1"], [float("nan")], [float("inf")], 1.0], ids=str)
def test_token_weights_that_are_no_numbers_are_refused_by_row(weights: Any, tmp_path: Path) -> None:
    rows = [IDS, IDS | {"completion_ids": [5], "token_weights": weights}]
    with pytest.raises(UserError, match=r"^train_dataset, row 1: .*token_weights"):
        trainer(ForgetTrainer, rows, tmp_path)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused_before_training(tmp_path: Path) -> None:
    policy = model(vocab_size=SIZE - 20)
    with pytest.raises(UserError, match="20 tokens for which the model has no embedding"):
        ImproveTrainer(policy, arguments(tmp_path), [FORMS["text"]], CHAT, mask=full_mask(policy))


@pytest.mark.parametrize("prompt", [IDS["prompt"], ASKED], ids=["text", "messages"])
def test_ids_that_end_a_turn_of_an_unfinished_completion_are_refused(prompt: Any, tmp_path: Path) -> None:
    row = {"prompt": prompt, "completion": " 3.", "finished": False}
    cut, ended = ({**row, "completion_ids": ids} for ids in (OWN, [*OWN, CHAT.eos_token_id]))
    assert trainer(SftTrainer, [cut], tmp_path).train_dataset[0]["completion_ids"] == OWN
    with pytest.raises(
        UserError, match=r"^prompt train_dataset-1: .*ends a completion, and `finished` is false"
    ):
        trainer(SftTrainer, [cut, ended], tmp_path)
