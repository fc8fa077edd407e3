"""Pairs of a data set of the hub: read by split and configuration, and said."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from allo.errors import UserError
from allo.pipeline import value_at
from allo.recipe import Recipe
from allo.recipe.sources import Data
from allo.stages.card import origin_of
from allo.tasks.pairs import pairs_and_reading
from allo.tasks.prompts import PromptSource, prompts_and_reading
from allo.tasks.row_kinds import kind_of_rows
from allo.tasks.sources import Sources
from tiny_run import tiny

ASKED = {"role": "user", "content": "Name a tree, please."}
# The columns of UltraFeedback-binarized.
ROW: dict[str, Any] = {
    "prompt": ASKED["content"],
    "prompt_id": "a1b2",
    "chosen": [ASKED, {"role": "assistant", "content": "Oak."}],
    "rejected": [ASKED, {"role": "assistant", "content": "Rock."}],
    "messages": [ASKED, {"role": "assistant", "content": "Oak."}],
    "score_chosen": 8.5,
    "score_rejected": 2.0,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str | None, str]]:
    """Put a hub of two rows in place, and return what it is asked for: name, configuration and split."""
    found: list[tuple[str, str | None, str]] = []

    def load(hub: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        found.append((hub, config, split))
        if hub == "org/none":
            raise ValueError(
                "Config name is missing. Please pick one among the available configs: ['a', 'b']"
            )
        return [ROW, {**ROW, "prompt_id": "c3d4"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    return found


def recipe(*data: str) -> Recipe:
    return tiny(Path("runs"), "sft=null", *data)


def test_a_recipe_names_a_data_set_of_the_hub_with_its_split(asked: list[Any]) -> None:
    sources = Sources(recipe("data={pairs: org/ultra_binarized, split: train_prefs, held_out: 0}"))
    pairs = sources.pairs()
    assert asked == [("org/ultra_binarized", None, "train_prefs")]
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [([ASKED], "Oak.", "Rock.")] * 2
    assert [pair.prompt_id for pair in pairs] == ["a1b2", "c3d4"]
    (said, *_) = sources.readings()["data.pairs"].sentences
    assert said == "read from the hub: the data set org/ultra_binarized, split 'train_prefs'"


def test_a_configuration_reaches_the_hub_for_pairs_and_prompts(asked: list[Any]) -> None:
    _, reading = pairs_and_reading("org/x", config="en")
    assert "config 'en', split 'train'" in reading.origin
    for source in (PromptSource(hub="org/x", config="en"), PromptSource(file=Path("org/x"), config="en")):
        prompts, _ = prompts_and_reading(source)
        assert prompts[0].prompt == ASKED["content"] and prompts[0].id == "x-train-0"
    assert kind_of_rows("org/x", config="en") == "pairs"
    assert asked == [("org/x", "en", "train")] * 4


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{pairs: org/x, split: test}", "preference pairs of the data set org/x of the hub, split test"),
        (
            "{feedback: org/x, config: en}",
            "labelled completions of the data set org/x of the hub, config en, split train",
        ),
        ("{file: below/x.jsonl}", "prompts of the file x.jsonl"),
    ],
)
def test_the_card_names_a_data_set_of_the_hub_in_full(data: str, words: str) -> None:
    read = Data.model_validate(yaml.safe_load(data))
    assert origin_of(read) == words


@pytest.mark.parametrize(
    "data",
    [
        *("{task: gsm8k, config: main}", "{task: own.py:load, config: main}"),
        "{mixture: [{file: a.jsonl}, {file: b.jsonl}], config: main}",
    ],
)
def test_a_configuration_of_anything_else_is_refused(data: str) -> None:
    with pytest.raises(UserError, match="`config` is for a data set of the hub"):
        recipe(f"data={data}")


def test_a_recipe_without_a_configuration_has_the_hash_of_earlier_runs() -> None:
    keys = value_at(recipe("data={file: a.jsonl, held_out: 0}"), "data").keys()
    assert "config" not in keys and "split" in keys
    assert value_at(recipe("data={hub: org/x, config: en}"), "data")["config"] == "en"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Dataset scripts are no longer supported"),
        datasets.exceptions.DatasetGenerationError("x"),
    ],
)
def test_a_data_set_that_cannot_be_built_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*_: Any, split: str) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=f"org/x, split 'train': could not be loaded from the hub .{error}"):
        pairs_and_reading("org/x")


def test_what_the_hub_refuses_is_told_with_what_to_check(asked: list[Any]) -> None:
    with pytest.raises(
        UserError, match=r"org/none.*available configs: \['a', 'b'\].*the config and the network"
    ):
        pairs_and_reading("org/none")
