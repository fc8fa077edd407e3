"""A plan for a size alone, its width, and the tokens and the time of each stage."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from allo.cli import app
from allo.errors import UserError
from allo.models.load import empty_model, read_config
from allo.pipeline.estimate import shares_said
from allo.plan import table
from allo.plan.duration import CHARACTERS, tokens_of, words
from allo.plan.memory import KINDS, Advised, Plan, StagePlan
from allo.plan.size import folder_of, parse_weights, shape_of
from allo.recipe import Recipe, load_recipe
from allo.tasks.sources import Sources
from start_rows import rows, write
from tiny_run import LAB

STAGES = ("sft", "sample", "locate", "score", "forget", "improve", "evaluate")


@pytest.mark.parametrize("size", ["100M", "135M", "0.5B", "1B", "3B", "8B", "70B", "405B"])
def test_a_size_stands_for_a_model_of_that_many_weights(size: str) -> None:
    weights = parse_weights(size)
    with folder_of(shape_of(weights)) as folder:
        model = empty_model(read_config(str(folder)))
    assert sum(each.numel() for each in model.parameters()) == pytest.approx(weights, rel=0.01)


def test_eight_billion_weights_have_the_shape_of_llama_3() -> None:
    shape = shape_of(parse_weights("8b"))
    assert (shape["num_hidden_layers"], shape["hidden_size"], shape["num_key_value_heads"]) == (32, 4096, 8)
    assert shape["intermediate_size"] == pytest.approx(14336, rel=0.01)


@pytest.mark.parametrize("text", ["8", "8GB", "B", "-8B", "0B", "1M", "9T", "8 billion", ""])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--size.*such as 8B"):
        parse_weights(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a recipe, --model MODEL, or a size"),
        (["--size", "8B", "--model", str(LAB)], "give one of them"),
        (["--model", str(LAB), "--tokens-per-second", "5"], "give a recipe"),
    ],
)
def test_a_plan_of_nothing_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)


def test_every_line_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    stages = tuple(
        StagePlan(
            name, "128 completions of 100000 + 100000 tokens", dict.fromkeys(KINDS, 10**12), host=10**12
        )
        for name in STAGES
    )
    settings: dict[str, Any] = {f"{name}.training.per_device_train_batch_size": 1 for name in STAGES}
    advice = {name: Advised(settings, stages[0]) for name in STAGES[:-1]} | {"evaluate": Advised()}
    unplanned = {"judge": "which loads a reward model of its own"}
    table.show(Plan(stages, 10**11, advice, unplanned), gpus=8)
    for rate in (None, 1234.5):
        print(table.times(dict.fromkeys(STAGES, 10**15), rate))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for word in (*KINDS, *STAGES, "1000.00", "host", "fits"):
        assert word in shown


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Recipe]:
    def make(kind: str, key: str, *more: str) -> Recipe:
        write(tmp_path / "rows.jsonl", rows(kind, 20))
        data = f"data={{{key}: {tmp_path / 'rows.jsonl'}, held_out: 0}}"
        path = tmp_path / "recipe.yaml"
        path.write_text(
            f"name: a\nmodel: {LAB}\nmax_length: 128\ndata: {{task: gsm8k}}\nsample: {{max_new_tokens: 64}}\n"
        )
        return load_recipe(path, [data, *more])

    return make


def test_passes_and_steps_multiply_the_tokens_of_training(recipe: Callable[..., Recipe]) -> None:
    def tokens(*more: str) -> dict[str, int]:
        asked = recipe("pairs", "pairs", *more)
        return tokens_of(asked, Sources(asked))

    once, twice = tokens(), tokens("improve.training.num_train_epochs=2")
    assert twice["improve"] == pytest.approx(2 * once["improve"], abs=1)
    assert twice["forget"] == once["forget"] == pytest.approx(once["improve"] / 2, rel=0.1), "one side of two"
    two_steps = tokens("improve.training.max_steps=2", "improve.training.gradient_accumulation_steps=1")
    assert two_steps["improve"] == pytest.approx(once["improve"] * 2 * 4 / 20, rel=0.01)


def test_a_search_that_warms_up_no_model_reads_its_rows_once_or_never(recipe: Callable[..., Recipe]) -> None:
    def read(criterion: str) -> int:
        asked = recipe(
            "pairs",
            "pairs",
            f"locate.criterion={criterion}",
            "forget=null",
            "locate.training.num_train_epochs=3",
        )
        return tokens_of(asked, Sources(asked))["locate"]

    assert read("warmup_fused") == read("bottom") == pytest.approx(3 * read("gradient"), abs=3)
    assert read("fisher") == read("taylor") == read("gradient") > 0
    assert read("magnitude") == read("random") == read("last") == 0


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ({}, ""),
        ({"locate": 0, "improve": 0}, ""),
        ({"locate": 49, "forget": 20, "improve": 31}, "by tokens: locate 49%, forget 20%, improve 31%"),
        (
            {"locate": 6, "improve": 4},
            "locate 60%, improve 40%. Finding the weights (locate) takes as long as",
        ),
        ({"locate": 6, "evaluate": 4}, "by tokens: locate 60%, evaluate 40%"),
        (
            {"sample": 9, "locate": 1, "improve": 1},
            "by tokens (without sample): locate 50%, improve 50%. Find",
        ),
    ],
)
def test_the_stages_shares_are_said_and_a_search_as_long_as_the_training(
    tokens: dict[str, int], said: str, recipe: Callable[..., Recipe]
) -> None:
    servers = "sample.servers={base_urls: ['http://127.0.0.1:1/v1']}"
    served = ["sample.backend=openai", "sample.model=a", servers]
    found = shares_said(recipe("problems", "file", *(served if "sample" in tokens else [])), tokens)
    assert said in found and ("long" in found) == ("Find" in said) and bool(found) == bool(said)


@pytest.mark.parametrize(
    ("ahead", "shares"),
    [
        (["locate", "round-2/forget", "report"], ["locate 60%", "forget 40%"]),
        (["forget"], []),
        (["judge", "pair"], []),
    ],
)
def test_only_the_shares_of_stages_that_are_ahead_are_said(
    ahead: list[str], shares: list[str], recipe: Callable[..., Recipe]
) -> None:
    said = shares_said(recipe("problems", "file"), {"sample": 90, "locate": 6, "forget": 4}, ahead)
    assert re.findall(r"\w+ \d+%", said) == shares


def test_samples_are_counted_at_their_longest(recipe: Callable[..., Recipe]) -> None:
    asked = recipe("problems", "file", "sample.num_generations=3")
    prompts = sum(len(row["prompt"]) // CHARACTERS + 1 for row in rows("problems", 20))
    assert tokens_of(asked, Sources(asked))["sample"] == pytest.approx(20 * 3 * 64 + prompts / 3, abs=1)


def test_tokens_divided_by_the_rate_are_the_time(recipe: Callable[..., Recipe]) -> None:
    asked = recipe("pairs", "pairs")
    tokens = tokens_of(asked, Sources(asked))
    said = table.times(tokens, sum(tokens.values()) / 7200)
    assert "2.0 hours" in said and "4 characters a token" in said
    without = table.times(tokens, None)
    assert "--tokens-per-second" in without and "hours" not in without


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 seconds"), (150, "2.5 minutes"), (9000, "2.5 hours"), (216000, "2.5 days")]
)
def test_a_time_has_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert words(seconds) == text


def test_rows_that_cannot_be_read_leave_the_plan_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: a\nmodel: {LAB}\nmax_length: 32\ndata: {{pairs: absent.jsonl}}\nforget: null\nlocate: null\n"
        "score: null\nimprove: {density: 1.0, training: {per_device_train_batch_size: 1}}\n"
    )
    said = CliRunner().invoke(app, ["plan", str(path)], catch_exceptions=False).stdout
    assert "improve" in said and "the rows cannot be read: absent.jsonl" in said
    machines = CliRunner().invoke(app, ["plan", str(path), "--json"], catch_exceptions=False).stdout
    assert json.loads(machines)["tokens"] is None
