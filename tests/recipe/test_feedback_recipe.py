"""A recipe on labelled feedback: what cannot learn from it is refused before anything is read, with what to use."""

from pathlib import Path
from typing import Any

import pytest

from allo.compare.methods import chosen
from allo.compare.trials import Trial
from allo.errors import UserError
from allo.recipe import Recipe, load_recipe, save_recipe
from allo.recipe.scores import SCORERS
from allo.stages.settings import check_settings

MINIMAL = ["model=m", "name=n", "data.feedback=f.jsonl", "improve.loss=kto"]


def recipe(folder: Path, *more: str) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text("{}\n")
    return load_recipe(file, [*MINIMAL, *more])


def test_nothing_is_sampled_and_rows_are_held_out_without_sets(tmp_path: Path) -> None:
    found = recipe(tmp_path)
    assert found.data.is_ready and found.data.held_out == "auto" and found.set_names == ()
    file = tmp_path / "saved.yaml"
    file.write_text(save_recipe(found))
    assert load_recipe(file) == found


@pytest.mark.parametrize("loss", ["kto", "bco", "rft", "own.py:loss"])
def test_losses_of_single_completions_are_taken(loss: str, tmp_path: Path) -> None:
    keep = ["improve.keep=1.0"] if loss == "rft" else []
    assert recipe(tmp_path, f"improve.loss={loss}", *keep).improve


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["improve.loss=dpo"], "improve.loss dpo learns from pairs, and data.feedback has single labelled"),
        (
            ["improve.loss=simpo", "improve.keep=1.0"],
            "set it to kto or bco, or to rft for the good ones alone",
        ),
        (["improve.loss=sft", "improve.keep=1.0"], "improve.loss sft learns from solutions"),
        (["improve.anchor=1.0"], "improve.anchor adds the likelihood of a pair's chosen answer"),
        (["evaluate.likelihood_pairs=4"], "evaluate.likelihood_pairs measures pairs"),
        (["rounds=2"], "data.feedback is one set of rows, but rounds sample anew: set rounds to 1"),
        (["data.order=shuffled"], "labelled rows are taken in the order of their file"),
        (["data.pairs=p.jsonl"], "found pairs and feedback"),
        (["pair.margin=1.0"], "pair.margin chooses pairs"),
    ],
)
def test_what_needs_pairs_or_samples_is_refused(more: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        recipe(tmp_path, *more)
    assert message in str(refused.value)


@pytest.mark.parametrize("trainer", ["lora", "shira", "rloo", "grpo"])
def test_methods_to_compare_with_are_refused_with_the_reason(trainer: str, tmp_path: Path) -> None:
    more = ["forget=null", "score=null", f"improve.trainer={trainer}", "improve.loss=dpo"]
    reason = "samples by itself" if trainer in ("rloo", "grpo") else "learns from pairs"
    with pytest.raises(
        UserError, match=rf"improve\.trainer '{trainer}' {reason}, and data.feedback has single"
    ):
        recipe(tmp_path, *more)


@pytest.mark.parametrize("scorer", SCORERS)
def test_scorers_that_need_another_answer_are_refused(scorer: str, tmp_path: Path) -> None:
    more = ["score.rewriter=folder"] if scorer == "rewriter" else []
    is_refused = scorer in ("advantage", "edit", "privileged", "rewriter")
    for key in (f"score.scorer={scorer}", f"score.beside=[{scorer}]"):
        if scorer == "implicit" and "beside" in key:
            continue
        if not is_refused:
            assert recipe(tmp_path, key).score
            continue
        with pytest.raises(
            UserError, match=rf"scorer '{scorer}' compares .* set score\.scorer to one of implicit"
        ):
            recipe(tmp_path, key, *more)


def test_kto_without_feedback_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("{}\n")
    for data in ("data.pairs=p.jsonl", "data.file=p.jsonl"):
        with pytest.raises(
            UserError, match=r"improve\.loss kto learns from labelled completions: give them as"
        ):
            load_recipe(file, ["model=m", "name=n", data, "improve.loss=kto"])
    assert load_recipe(file, ["model=m", "name=n", "data.pairs=p.jsonl", "improve.loss=bco"]).improve


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["improve.reference=precomputed"], "improve.reference: kto compares completions after the prompts"),
        (
            [
                "improve.training.per_device_train_batch_size=1",
                "improve.training.gradient_accumulation_steps=1",
            ],
            "improve.training.per_device_train_batch_size: kto takes its reference point",
        ),
        (["improve.loss_settings={gamma: 1.0}"], "improve.loss_settings.gamma: kto takes no such setting"),
    ],
)
def test_settings_that_kto_cannot_have_are_refused_before_the_first_stage(
    more: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        check_settings(recipe(tmp_path, *more))
    assert str(refused.value).startswith(message)


def test_a_comparison_refuses_methods_of_pairs_by_name(tmp_path: Path) -> None:
    block: Any = "compare={validation: {task: gsm8k}, run: [dpo]}"
    base = recipe(tmp_path, block)
    assert base.compare is not None
    (method,) = chosen(base.compare, None)
    with pytest.raises(UserError, match=r"compare: method 'dpo' .*improve.loss dpo learns from pairs"):
        Trial(method, {"rate": 1.0}, 0, "test").recipe(base)
