"""A recipe that names no evaluation set holds rows out; one that does is unchanged, to the hash."""

from pathlib import Path

import pytest

from allo.errors import UserError
from allo.files.artifacts import sha256_json
from allo.files.rounds import of_round
from allo.pipeline import stages_of, value_at
from allo.recipe import Recipe, load_recipe, save_recipe

SETS = "evaluate: {sets: {t: {task: gsm8k, split: test}}}\n"
PAIRS = "{pairs: p.jsonl}"


def recipe(folder: Path, text: str, *more: str) -> Recipe:
    (folder / "recipe.yaml").write_text(f"name: a\nmodel: m\n{text}")
    return load_recipe(folder / "recipe.yaml", list(more))


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        ("data: {task: gsm8k, limit: 10}\n", "9c96837ddcf62802"),
        (
            f"data: {PAIRS}\nlocate: null\nscore: null\nforget: null\nimprove: {{density: 1.0}}\n",
            "24ef8f56af0ecb4a",
        ),
        ("data: {mixture: [{task: ecqa}, {task: qasc}]}\nrounds: 2\n", "4167801a904f226d"),
    ],
)
def test_with_evaluation_sets_stages_keep_the_configuration_that_they_had(
    tmp_path: Path, text: str, digest: str
) -> None:
    """The digests are those of the version before rows could be held out and functions could judge.

    Of an old run, only what judges runs again, and what begins a further round. The preset has the defaults of that
    version.
    """
    read = recipe(tmp_path, f"preset: paper\n{text}{SETS}")
    stages = {
        stage.name: [value_at(stage.recipe(read), key) for key in stage.keys]
        for stage in stages_of(read)
        if stage.name.split("/")[-1] not in ("judge", "evaluate", "begin")
    }
    assert sha256_json(stages)[:16] == digest
    assert "held_out" not in save_recipe(read)


@pytest.mark.parametrize("evaluate", ["", "evaluate:\n", "evaluate: {}\n", "evaluate: {sets: {}}\n"])
@pytest.mark.parametrize(("data", "sets"), [(PAIRS, ()), ("{file: p.jsonl}", ("held_out",))])
def test_without_sets_rows_are_held_out(
    tmp_path: Path, evaluate: str, data: str, sets: tuple[str, ...]
) -> None:
    read = recipe(tmp_path, f"data: {data}\n{evaluate}")
    assert (read.data.held_out, read.set_names) == ("auto", sets)
    assert recipe(tmp_path, save_recipe(read).split("model: m\n")[1]) == read
    assert of_round(read, 2).data.held_out == "auto"


@pytest.mark.parametrize("held_out", [0, 1, 40, 0.1])
@pytest.mark.parametrize("evaluate", ["", SETS])
def test_a_number_or_a_share_is_kept_with_or_without_sets(
    tmp_path: Path, held_out: float, evaluate: str
) -> None:
    read = recipe(tmp_path, f"data: {PAIRS}\n{evaluate}", f"data.held_out={held_out}")
    assert read.data.held_out == held_out
    assert type(read.data.held_out) is type(held_out)
    assert read.evaluate.sets.keys() == ({"t"} if evaluate else set())


def test_answers_to_held_out_prompts_may_be_as_long_as_samples(tmp_path: Path) -> None:
    sample = "data: {file: p.jsonl}\nsample: {max_new_tokens: 20}\n"
    assert recipe(tmp_path, sample).evaluate.max_new_tokens == 20
    assert recipe(tmp_path, f"{sample}evaluate: {{max_new_tokens: 9}}\n").evaluate.max_new_tokens == 9
    assert recipe(tmp_path, sample + SETS).evaluate.max_new_tokens == 1024


@pytest.mark.parametrize("held_out", ["-1", "1.0", "1.5", "0.0", "true", "some", "[]", "1e12"])
def test_other_values_are_refused_by_their_key(tmp_path: Path, held_out: str) -> None:
    with pytest.raises(UserError, match=r"recipe.yaml:3: data.held_out: give a number of prompts"):
        recipe(tmp_path, f"data: {{pairs: p.jsonl, held_out: {held_out}}}\n")


def test_a_set_may_not_have_the_name_of_the_held_out_prompts(tmp_path: Path) -> None:
    sets = "evaluate: {sets: {held_out: {file: f.jsonl}}}\n"
    assert recipe(tmp_path, f"data: {PAIRS}\n{sets}").data.held_out is None
    with pytest.raises(UserError, match=r"name of data.held_out: give it another"):
        recipe(tmp_path, f"data: {{pairs: p.jsonl, held_out: 3}}\n{sets}")


def test_held_out_prompts_without_an_answer_to_measure_are_refused(tmp_path: Path) -> None:
    nothing = "evaluate: {greedy: false, num_generations: 0}\n"
    assert recipe(tmp_path, f"data: {PAIRS}\n{nothing}").set_names == ()  # pairs need no answers
    with pytest.raises(UserError, match="set 'held_out' has no completion to measure"):
        recipe(tmp_path, f"data: {{file: p.jsonl}}\n{nothing}")
