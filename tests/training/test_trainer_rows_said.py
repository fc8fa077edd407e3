"""Rows given to a trainer say what is trained on: ids that are another text's, and what a template drops, are refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from allo.errors import UserError
from allo.training.selected_trainer import SelectedTrainer
from allo.training.trainer import ForgetTrainer, ImproveTrainer, SftTrainer
from tiny import arguments, full_mask, model
from tokenizers_of_kinds import CHATML, byte_level

TOKENIZER = byte_level(CHATML, eos="<|im_end|>")
ASKED = [{"role": "user", "content": "Name a tree."}]
PAIR: dict[str, Any] = {"prompt": "Name a tree. ", "chosen": "Oak.", "rejected": "Rock."}
DONE: dict[str, Any] = {"prompt": "Name a tree. ", "completion": "Oak."}
KINDS = [(ImproveTrainer, PAIR), (ForgetTrainer, DONE), (SftTrainer, DONE)]


def rows_of(
    kind: type[SelectedTrainer],
    rows: list[dict[str, Any]],
    folder: Path,
    tokenizer: Any = TOKENIZER,
    **own: Any,
) -> Any:
    policy = model(vocab_size=len(tokenizer))
    return kind(policy, arguments(folder), rows, tokenizer, mask=full_mask(policy), **own).train_dataset


def ids_of(text: str, tokenizer: PreTrainedTokenizerBase = TOKENIZER) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("said", ["Elm.", "Oak. And", "Oa", "Oak.<|im_end|>Elm."])
@pytest.mark.parametrize(
    ("kind", "row", "column"),
    [
        (ImproveTrainer, PAIR, "chosen_token_ids"),
        (ImproveTrainer, PAIR, "rejected_token_ids"),
        (ForgetTrainer, DONE, "completion_ids"),
        (SftTrainer, DONE, "completion_ids"),
    ],
)
def test_ids_of_another_text_are_refused_by_row(
    kind: type[SelectedTrainer], row: dict[str, Any], column: str, said: str, tmp_path: Path
) -> None:
    given = [row, {**row, "prompt": "Another. ", column: ids_of(said)}]
    with pytest.raises(
        UserError, match=rf"^prompt train_dataset-1: the `{column}` do not decode to .*Remove them"
    ):
        rows_of(kind, given, tmp_path)
    with pytest.raises(UserError, match=rf"^prompt eval_dataset-1: the `{column}`"):
        rows_of(kind, [row], tmp_path, eval_dataset=given)


@pytest.mark.parametrize("end", ["", "<|im_end|>", "<|endoftext|>"])
def test_a_texts_own_ids_are_taken_with_any_end(end: str, tmp_path: Path) -> None:
    ids = [
        *ids_of("O"),
        *ids_of("ak."),
        *ids_of(end),
    ]  # as a model may sample them: other pieces than the text's
    (row,) = rows_of(ImproveTrainer, [{**PAIR, "chosen_token_ids": ids}], tmp_path)
    assert row["chosen_ids"] == ids
    (row,) = rows_of(ForgetTrainer, [{**DONE, "completion_ids": ids}], tmp_path)
    assert row["completion_ids"] == ids


def test_a_runs_pairs_given_to_another_model_are_refused(tmp_path: Path) -> None:
    other = byte_level(CHATML, eos="<|im_end|>")
    other.add_tokens(["Name", "Oak", "Rock"])
    own = {"chosen_token_ids": ids_of("Oak.", other), "rejected_token_ids": ids_of("Rock.", other)}
    line = {**PAIR, "prompt_id": "mine-7", "chosen_finished": True, "rejected_finished": True, **own}
    assert rows_of(ImproveTrainer, [line], tmp_path, other)
    with pytest.raises(UserError, match=r"^prompt mine-7: the `chosen_token_ids` do not decode to"):
        rows_of(ImproveTrainer, [line], tmp_path)


NO_DEVELOPER = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'developer' %}")


@pytest.mark.parametrize(("kind", "row"), KINDS)
def test_what_a_template_leaves_out_is_refused_by_row(
    kind: type[SelectedTrainer], row: dict[str, Any], tmp_path: Path
) -> None:
    dropping = byte_level(NO_DEVELOPER, eos="<|im_end|>")
    told = [{"role": "developer", "content": "Be terse."}, *ASKED]
    plain, with_role = ({**row, "prompt": prompt} for prompt in (ASKED, told))
    assert len(rows_of(kind, [plain, with_role], tmp_path)) == 2
    with pytest.raises(
        UserError, match=r"^prompt train_dataset-1: .* does not write the `developer` message"
    ):
        rows_of(kind, [plain, with_role], tmp_path, dropping)
    with pytest.raises(UserError, match=r"^prompt train_dataset-1: .* does not write `tools`"):
        rows_of(kind, [plain, {**plain, "tools": [{"name": "look"}]}], tmp_path)
