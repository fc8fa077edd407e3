"""Rows of token ids: sampled ids are kept, and what is dropped or cut is counted, by reason, and said."""

from pathlib import Path
from typing import Any

import pytest
from test_templates import laboratory

import tiny_run
from allo.console import console
from allo.errors import UserError
from allo.models.rows import Counts, counted_completions, counted_pairs
from allo.models.tokenization import prompt_ids
from allo.stages.check import check
from allo.training.trainer import ImproveTrainer
from tiny import TOKENIZER, pairs, trained
from tokenizers_of_kinds import CHATML, byte_level

LONG = "Name a tree. " * 40
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML
)


def pair(chosen: str, rejected: str, prompt: str = "Name a tree.\n", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def test_pairs_are_dropped_and_cut_by_reason() -> None:
    tokenizer = byte_level(CHATML)
    rows = [
        pair("Oak.", "Rock."),
        pair("Oak.", "Rock.", prompt=LONG),
        pair("Oak.", LONG),
        pair("Oak.", "", rejected_finished=False),
        pair("Oak.", "Oak."),
        pair("Oak.", "Oak.</s>"),  # the end is added to the one, and the other has it
        pair("Oak.", "Oak.", rejected_finished=False),  # differ by their end
        pair("Oak.", "Oak.", rejected_token_ids=[50, 51]),
    ]
    kept, counts = counted_pairs(tokenizer, rows, max_length=40)
    assert counts == Counts(long=1, empty=1, equal=2, cut=1)
    assert len(kept) == len(rows) - counts.dropped == 4
    assert kept[-1]["rejected_ids"] == [50, 51]
    assert counts.words(40) == (
        "4 rows are dropped (1 do not fit into max_length 40, 1 have a completion without tokens, 2 are pairs whose "
        "sides are the same tokens); 1 prompts lose their beginning to fit into max_length 40"
    )
    assert Counts().words(40) == ""


def test_completions_are_dropped_and_cut_by_reason() -> None:
    tokenizer = byte_level(CHATML)
    rows: list[dict[str, Any]] = [
        {"prompt": "Name a tree.\n", "completion": "Oak."},
        {"prompt": LONG, "completion": "Oak."},
        {"prompt": "Name a tree.\n", "completion": LONG},
        {"prompt": "Name a tree.\n", "completion": "", "finished": False},
        {"prompt": "Name a tree.\n", "completion": "", "completion_ids": [50], "token_weights": [0.0]},
        {
            "prompt": "Name a tree.\n",
            "completion": "Oak.",
            "completion_ids": [50, 51],
            "token_weights": [0, 1],
        },
    ]
    kept, counts = counted_completions(tokenizer, rows, max_length=40)
    assert counts == Counts(long=1, empty=1, unweighted=1, cut=1)
    assert kept[-1] == {
        "prompt_ids": prompt_ids(tokenizer, "Name a tree.\n"),
        "completion_ids": [50, 51],
        "token_weights": [0, 1],
    }
    rows[0] |= {"token_weights": [1.0], "id": "oak:1"}
    with pytest.raises(UserError, match="prompt oak:1: token_weights has 1 entries"):
        counted_completions(tokenizer, rows, max_length=40)


def test_nothing_left_says_why() -> None:
    tokenizer = byte_level(CHATML)
    with pytest.raises(UserError, match=r"2 were dropped \(2 are pairs whose sides are the same tokens\)"):
        counted_pairs(tokenizer, [pair("Oak.", "Oak.")] * 2, max_length=40)
    with pytest.raises(UserError, match="the data set is empty"):
        counted_pairs(tokenizer, [], max_length=40)


def test_a_row_that_the_template_refuses_is_named() -> None:
    asked: Any = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Name a tree."}]
    tokenizer = byte_level(REFUSES_SYSTEM)
    with pytest.raises(UserError, match=r"^prompt sys:7: .*System role not supported"):
        counted_pairs(tokenizer, [pair("Oak.", "Rock.", prompt=asked, prompt_id="sys:7")], max_length=40)
    with pytest.raises(UserError, match=r"^row 2: .*System role not supported"):
        counted_pairs(tokenizer, [pair("Oak.", "Rock."), pair("Oak.", "It.", prompt=asked)], max_length=40)


def test_a_trainer_says_what_it_drops(tmp_path: Path) -> None:
    rows = pairs()
    rows[1] = {**rows[1], "rejected": rows[1]["chosen"]}
    with console.capture() as said:
        trainer = trained(ImproveTrainer, rows, tmp_path)
    assert trainer.num_dropped == 1
    assert trainer.counts.equal == 1
    assert "`chosen` equals `rejected`, which teaches nothing" in said.get()
    assert len(trainer.train_dataset) == len(rows) - 1
    assert TOKENIZER.chat_template is None


def test_a_template_that_refuses_a_row_is_found_before_the_first_stage(tmp_path: Path) -> None:
    model = laboratory(tmp_path / "model", REFUSES_SYSTEM)
    file = tmp_path / "sys.jsonl"
    messages = '[{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Name tree %d."}]'
    sides = '"chosen": [{"role": "assistant", "content": "Oak."}], "rejected": [{"role": "assistant", "content": "Rock."}]'
    file.write_text("".join(f'{{"prompt": {messages % row}, {sides}}}\n' for row in range(2)))
    recipe = tiny_run.tiny(tmp_path, f"model={model}", f"data={{pairs: {file}}}", "sft=null")
    with pytest.raises(UserError, match=r"^prompt .*sys.*: .*model: the chat template refuses .*System role"):
        check(recipe)
