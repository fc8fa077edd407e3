"""Rewriters of chats: a prompt's settings of the chat template hold from the run's samples to the scores."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from allo.files.artifacts import RunFolder, write_jsonl
from allo.files.records import Message, Wrong
from allo.models.load import load_tokenizer
from allo.recipe import load_recipe
from allo.rewriter.cases import Run, right_cases, wrong_cases
from allo.rewriter.data import DataSettings, make_data
from allo.rewriter.row import read_rewrites
from allo.rewriter.train import read_settings, trainer_of
from allo.tokens.rewriter import Rewriter, rewriting
from tiny import LABORATORY, model
from tiny_run import RECIPE, overrides

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}{% if aloud %}Tom has 7 pens.\n{% endif %}{% endif %}"
)
ALOUD = {"chat_template_kwargs": {"aloud": True}}
WRONG = Wrong("p-0", "p", [Message(role="user", content="2 + 3?")], "6", True, "5", ["5"], template=ALOUD)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_rewriter_is_trained_on_the_prompt_that_it_scores_with(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(LABORATORY)
    tokenizer.chat_template = TEMPLATE
    folder = RunFolder(tmp_path)
    write_jsonl(folder.wrong, [WRONG])
    run = Run(load_recipe(RECIPE, overrides(tmp_path, "sft=null")), folder, tokenizer, {})
    make_data(run, DataSettings("gold", identity=0.5), tmp_path / "rows.jsonl")
    rows = read_rewrites(tmp_path / "rows.jsonl")
    assert [row.template for row in rows] == [ALOUD] * 2  # the rewrite, and a right sample as it is
    policy = model()
    trainer = trainer_of(policy, tokenizer, rows, read_settings(["device=cpu"]), folder=tmp_path / "work")
    rewriter = Rewriter(policy, tokenizer, max_length=512)
    (case,) = wrong_cases(run)
    prompt_ids = rewriting(rewriter, case.wrong, [5]).prompt_ids
    assert trainer.train_dataset[0]["prompt_ids"] == prompt_ids
    assert prompt_ids != rewriting(rewriter, replace(case.wrong, template=None), [5]).prompt_ids
    assert [case.wrong.template for case in right_cases(run)] == [ALOUD]
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["template"] == ALOUD
