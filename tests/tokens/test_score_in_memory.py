"""`allo.score`: the scores and weights that a run's stage gives, one record a row."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaForCausalLM

import allo
from allo.errors import UserError
from allo.files.artifacts import read_jsonl
from allo.files.records import Wrong
from allo.models.load import load_model, load_tokenizer
from allo.pipeline import run_all
from tiny_run import LAB, tiny

TOKENIZER = load_tokenizer(LAB)
ROW: dict[str, Any] = {
    "prompt": "Problem: Tom has 7 pens.\n",
    "completion": "First 7 - 5 = 2. The answer is 2.",
    "right": ["First 7 + 5 = 12. The answer is 12."],
}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return load_model(LAB, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("scorer", ["edit", "confidence", "privileged"])
def test_the_records_are_those_of_the_stage(model: LlamaForCausalLM, scorer: str, tmp_path: Path) -> None:
    """With the ids that were sampled and the right samples that the stage knows."""
    recipe = tiny(tmp_path, "sft=null", f"score.scorer={scorer}", "score.marked=first")
    run = run_all(recipe, until="score")
    stage = {row["id"]: row for row in pq.read_table(run.token_scores).to_pylist()}
    wrong = read_jsonl(run.wrong, Wrong)
    rows = [
        {
            "prompt": one.prompt,
            "completion": one.completion,
            "finished": one.finished,
            "completion_ids": one.token_ids,
            "right": one.right,
            "solution": one.solution,
        }
        for one in wrong
    ]
    found = allo.score(model, rows, TOKENIZER, scorer=scorer, marked="first", max_length=recipe.max_length)
    assert len(found) == len(wrong) > 3
    for one, record in zip(wrong, found, strict=True):
        assert record.token_ids == stage[one.id]["token_ids"]
        assert record.scores == pytest.approx(stage[one.id]["scores"], abs=1e-4)
        assert record.weights == stage[one.id]["weights"]


def test_the_records_fit_the_forgetting_trainers_rows(model: LlamaForCausalLM, tmp_path: Path) -> None:
    from transformers import TrainingArguments

    [record] = allo.score(model, [ROW], TOKENIZER, scorer="edit")
    row = {key: ROW[key] for key in ("prompt", "completion")}
    trainer = allo.ForgetTrainer(
        load_model(LAB, dtype=torch.float32, device="cpu"),
        TrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True),
        [row | {"completion_ids": record.token_ids, "token_weights": record.weights}],
        TOKENIZER,
        mask=allo.ParamMask.full({name: tuple(p.shape) for name, p in model.named_parameters()}),
    )
    assert trainer.num_items(list(trainer.train_dataset)) == sum(record.weights) > 0


def test_the_model_is_only_read(model: LlamaForCausalLM) -> None:
    model.train()
    allo.score(model, [ROW], TOKENIZER, scorer="confidence")
    assert model.training
    model.eval()
    allo.score(model, [ROW], TOKENIZER, scorer="confidence")
    assert not model.training


@pytest.mark.parametrize("scorer", ["implicit", "contrastive", "rewriter", "advantage", "right_confidence"])
def test_a_scorer_that_needs_a_run_is_refused(model: LlamaForCausalLM, scorer: str) -> None:
    with pytest.raises(UserError, match=f"'{scorer}' needs data that only a run has.*confidence"):
        allo.score(model, [ROW], TOKENIZER, scorer=scorer)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        (
            {},
            {"scorer": "confidenec"},
            "'confidenec' is no scorer.*privileged, confidence, entropy, edit, uniform, random",
        ),
        ({"right": "First 7 + 5"}, {"scorer": "edit"}, "row 0: `right` must be a list"),
        ({"solution": ["a"]}, {"scorer": "edit"}, "row 0: `solution` must be one text"),
        ({}, {"scorer": "edit", "max_length": 5}, "row 0: .* max_length 5"),
        ({"completion": 3}, {"scorer": "edit"}, "row 0"),
        ({"right": []}, {"scorer": "privileged"}, "shows the right solution"),
        ({}, {"scorer": lambda rows, context: [[0.5]]}, "1 scores for the 13 tokens"),
        ({}, {"scorer": lambda rows, context: [[1.5] * 13]}, "score 1.5"),
        ({}, {"scorer": lambda rows, context: []}, "scores of 0 completions for 1"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_its_name(
    model: LlamaForCausalLM, changes: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        allo.score(model, [ROW | changes], TOKENIZER, **settings)


def test_no_row_gives_no_record(model: LlamaForCausalLM) -> None:
    assert allo.score(model, [], TOKENIZER, scorer="confidence") == []


def test_a_model_by_its_name_scores_with_its_own_tokenizer(model: LlamaForCausalLM) -> None:
    [expected] = allo.score(model, [ROW], TOKENIZER, scorer="confidence")
    for name in (LAB, str(LAB)):
        assert allo.score(name, [ROW], scorer="confidence") == [expected]
    with pytest.raises(UserError, match="no/such/model"):
        allo.score("no/such/model", [ROW], scorer="edit")
