"""Labelled completions are read in TRL's forms; labels that are no labels are refused, and what is kept is counted."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.files.artifacts import read_jsonl, write_jsonl
from allo.files.records import Feedback
from allo.tasks.feedback import Labels, bad_completions, feedback_of_rows, read_feedback

USER = [{"role": "user", "content": "Name a tree."}]
OAK = [{"role": "assistant", "content": "Oak."}]
GOOD = {"prompt": "Name a tree.\n", "completion": "Oak.", "label": True}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (GOOD, "Name a tree.\n"),
        ({"prompt": USER, "completion": OAK, "label": True}, USER),
        ({"prompt": USER, "completion": "Oak.", "label": True}, USER),
        ({"completion": USER + OAK, "label": True}, USER),
        ({"messages": USER + OAK, "label": True}, USER),
    ],
)
def test_each_form_is_one_prompt_and_one_completion(row: dict[str, Any], prompt: Any) -> None:
    (found,), _ = feedback_of_rows([row])
    assert (found.prompt, found.completion, found.label) == (prompt, "Oak.", True)


@pytest.mark.parametrize(
    ("label", "means"),
    [
        *((True, True), (False, False), (1, True), (0, False), (1.0, True), (0.0, False)),
        *(("true", True), ("False", False), (" TRUE ", True), ("0", False)),
    ],
)
def test_a_label_is_true_or_false_and_other_spellings_are_counted(label: Any, means: bool) -> None:
    (found,), reading = feedback_of_rows([GOOD | {"label": label}])
    assert found.label is means
    noted = sum(number for what, number in reading.mapped.items() if what.startswith("label given"))
    assert noted == (not isinstance(label, bool))


@pytest.mark.parametrize("label", [2, -1, 0.5, "good", "", "yes", [True], {"value": 1}, "1e0"])
def test_another_label_is_refused_at_its_place(label: Any) -> None:
    with pytest.raises(
        UserError, match=r"^rows, row 1: `label` .*must be true for a good completion or false"
    ):
        feedback_of_rows([GOOD, GOOD | {"label": label}])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "completion": "c"}, "lacks `label`; found `completion`, `prompt`"),
        ({"prompt": "p", "completion": "c", "label": None}, "`label`"),
        ({"prompt": "p", "label": True}, "lacks `completion`"),
        ({"completion": "c", "label": True}, "lacks `prompt`"),
        ({"prompt": "p", "completion": " ", "label": True}, "no completion after the prompt"),
        ({"completion": USER, "label": True}, "must end with an assistant's message"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "label": True}, "are a pair, not labelled feedback"),
        (GOOD | {"images": ["x"]}, "only text is trained on"),
        (
            {"prompt": USER, "completion": [OAK[0] | {"weight": 0}], "label": True},
            "an answer is trained on as a whole",
        ),
    ],
)
def test_a_row_of_another_form_is_refused_with_its_line(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "feedback.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}:2.*{re.escape(message)}"):
        read_feedback(file)


def test_repeats_and_disputes_are_counted_and_kept() -> None:
    rows = [GOOD, GOOD, GOOD | {"label": False}, GOOD | {"completion": "Granite.", "label": False}]
    found, reading = feedback_of_rows(rows)
    assert len(found) == 4 and reading.duplicates == 1
    assert reading.mapped == {"the same completion is labelled good and bad, and each label is kept": 3}
    assert Labels.of(found) == Labels(good=2, bad=2, prompts=1, both=1)


def test_each_bad_completion_is_forgotten_once_in_its_order() -> None:
    bad = [GOOD | {"completion": text, "label": False} for text in ("Granite.", "Basalt.", "Granite. ")]
    found, _ = feedback_of_rows([GOOD, *bad])
    wrong = bad_completions(found)
    assert [one.completion for one in wrong] == ["Granite.", "Basalt."]
    assert len({one.id for one in wrong}) == 2


def test_a_runs_file_reads_back_with_its_ids(tmp_path: Path) -> None:
    row = Feedback("p1", "Name a tree.\n", "Oak", label=True, finished=False, completion_ids=[5, 6])
    write_jsonl(tmp_path / "03-feedback.jsonl", [row])
    assert read_feedback(tmp_path / "03-feedback.jsonl")[0] == [row]
    assert read_jsonl(tmp_path / "03-feedback.jsonl", Feedback) == [row]


def test_a_text_prompt_becomes_a_message_in_a_chat() -> None:
    (found,), _ = feedback_of_rows([GOOD | {"system": "Be brief."}], chat=True)
    assert found.prompt == [{"role": "system", "content": "Be brief."}, *USER]
