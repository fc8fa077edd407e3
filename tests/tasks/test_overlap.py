"""Evaluation problems among the training problems, counted as exact and near matches."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allo import tasks
from allo.recipe.tasks import TASKS
from allo.stages.overlap import overlaps
from allo.tasks.base import question_of, word
from allo.tasks.overlap import SHARE, SPAN, Overlap, overlap
from allo.tasks.prompts import PromptSource, read_prompts
from allo.tasks.sources import Sources, prompts_of
from benchmarks.tasks.overlap import SETS, row
from tiny_run import tiny

TEXTS = st.lists(st.sampled_from(["one", "two", "three", "four"]), min_size=1, max_size=20).map(" ".join)
LONG = " ".join(f"word{number}" for number in range(20))


@given(problems=st.lists(TEXTS, max_size=6), training=st.lists(TEXTS, max_size=6))
def test_exact_counts_equal_texts_and_near_counts_them_too(problems: list[str], training: list[str]) -> None:
    found = overlap(problems, training)
    assert found.num == len(problems)
    assert found.exact == sum(problem in training for problem in problems)
    assert found.exact <= found.near <= found.num


def test_capitals_punctuation_and_spaces_make_no_difference() -> None:
    assert overlap(["How many?  In all: 5 hens."], ["how MANY in all, 5 hens"]) == Overlap(1, 1, 1)
    assert overlap(["How many in all: 5 hens."], ["How many in all: 6 hens."]) == Overlap(1, 0, 0)


def test_a_problem_is_near_if_enough_of_its_spans_occur() -> None:
    spans = len(LONG.split()) - SPAN + 1
    for kept in range(len(LONG.split()) + 1):
        beginning = " ".join(LONG.split()[:kept])
        seen = max(0, kept - SPAN + 1)
        assert overlap([LONG], [beginning]).near == (seen >= SHARE * spans)


def test_spans_of_several_training_problems_add_up() -> None:
    words = LONG.split()
    halves = [" ".join(words[:14]), " ".join(words[7:])]
    assert overlap([LONG], halves) == Overlap(1, 0, 1)
    assert overlap([LONG], halves[:1]).near == overlap([LONG], halves[1:]).near == 0


@pytest.mark.parametrize("choices", [None, ["ice", "Question: what?"]])
def test_a_question_is_found_again_in_its_wording(choices: list[str] | None) -> None:
    question = "What melts?\nOptions are few."
    assert question_of(word(question, choices)) == question
    assert question_of([{"role": "user", "content": word(question, choices).strip()}]) == question


def test_a_text_without_wording_is_the_question() -> None:
    assert question_of("Name a tree.\n") == "Name a tree.\n"


def _write(path: Path, *questions: str) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = [{"id": question, "question": question, "answer": "5"} for question in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.invariant("Questions of every source and pair count as trained on.")
def test_questions_of_every_source_count(tmp_path: Path) -> None:
    _write(tmp_path / "gsm8k" / "train.jsonl", "A?", "B?", "C?", "D?")
    _write(tmp_path / "mawps" / "train.jsonl", "E?", "F?")
    _write(tmp_path / "gsm8k" / "test.jsonl", "A?", "B?", "C?", "D?", "E?", "F?")
    recipe = tiny(
        tmp_path / "run",
        f"data_folder={tmp_path}",
        "data={task: gsm8k, limit: 1}",
        "sft.sources=[{task: mawps, limit: 1}]",
        "evaluate.sets={test: {task: gsm8k, split: test}}",
    )
    sets = {"test": prompts_of(recipe, recipe.evaluate.sets["test"])}
    assert overlaps(Sources(recipe), sets)["test"] == Overlap(
        6, 2, 2
    )  # A of the problems, E of the demonstrations
    assert overlaps(Sources(recipe.model_copy(update={"rounds": 3})), sets)["test"].exact == 2
    assert overlaps(Sources(recipe.model_copy(update={"sft": None})), sets)["test"].exact == 1


@pytest.mark.invariant("Questions of every source and pair count as trained on.")
def test_ready_pairs_count(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": word("A?", None), "chosen": "a", "rejected": "b"}) + "\n")
    _write(tmp_path / "gsm8k" / "test.jsonl", "A?", "B?")
    recipe = tiny(tmp_path / "run", "sft=null", f"data={{pairs: {pairs}}}")
    sets = {"test": read_prompts(PromptSource(task="gsm8k", split="test", folder=tmp_path, chat=True))}
    assert overlaps(Sources(recipe), sets)["test"] == Overlap(2, 1, 1)


def test_the_laboratory_shares_no_test_problem_with_training() -> None:
    training, test = (list(tasks.load("planted_flaws", split)) for split in ("train", "test"))
    questions = [question_of(prompt.prompt) for prompt in test]
    assert overlap(questions, [question_of(prompt.prompt) for prompt in training]).exact == 0
    assert overlap(questions, [question_of(prompt.prompt) for prompt in test]).exact == len(test)


def test_the_record_counts_against_each_training_set() -> None:
    test = ["What is it?", "Who is it?"]
    found = row("ecqa", test, ["what is it"], {"others": test, "none": []})
    assert found == {
        "test set": "ecqa",
        "problems": 2,
        "own train split: exact": 1,
        "own train split: near": 1,
        "others: exact": 2,
        "others: near": 2,
        "none: exact": None,  # nothing to compare with is not nothing found
        "none: near": None,
    }
    assert set(SETS) == {name for name, task in TASKS.items() if not task.is_generated}


def test_rows_are_read_once_for_every_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "A?", "chosen": "a", "rejected": "b"}) + "\n")
    sources = Sources(tiny(tmp_path / "run", "sft=null", f"data={{pairs: {pairs}}}"))
    (pair,) = sources.pairs()
    monkeypatch.setattr("allo.tasks.sources.pairs_and_reading", None)
    assert overlaps(sources, {"held_out": [pair], "test": []})["held_out"] == Overlap(1, 1, 1)
