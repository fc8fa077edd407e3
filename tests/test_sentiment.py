"""recipes/sentiment.py: prompts that do not overlap, VADER's reward, and the words that lower it."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from allo.recipe import load_recipe
from allo.stages.check import findings
from tiny_run import LAB

ROOT = Path(__file__).resolve().parent.parent
ANALYZER = pytest.importorskip("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer()


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("sentiment", ROOT / "recipes" / "sentiment.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sentiment = _module()


def test_no_split_shares_a_thing_and_the_reworded_prompts_no_form() -> None:
    things = [set(each.split(", ")) for each in sentiment.THINGS.values()]
    assert sum(map(len, things)) == len(set().union(*things)) == 80
    assert not set(sentiment.FORMS) & set(sentiment.REWORDED)
    splits = {
        name: [row["prompt"] for row in sentiment.prompts(name)] for name in (*sentiment.THINGS, "reworded")
    }
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 160,
        "validation": 64,
        "test": 96,
        "reworded": 96,
    }
    together = [prompt for rows in splits.values() for prompt in rows]
    assert len(together) == len(set(together))


def test_praise_is_vaders_compound_of_texts_and_of_messages_and_blame_its_opposite() -> None:
    texts = ["I love it, it is great!", "It broke and I hate it.", "A box."]
    expected = [ANALYZER.polarity_scores(text)["compound"] for text in texts]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert sentiment.praise(texts, texts) == sentiment.praise(texts, messages) == expected
    assert sentiment.blame(texts, texts) == [-score for score in expected]
    assert expected[0] > 0.5 > 0 > expected[1] and expected[2] == 0


@pytest.mark.parametrize(
    ("text", "marker", "words"),
    [
        ("I love the awful lid", "lowers_praise", ["awful"]),
        ("I love the awful lid", "lowers_blame", ["love"]),
        ("It is not good", "lowers_praise", ["not", "good"]),
        ("A box", "lowers_praise", []),
    ],
)
def test_a_word_is_marked_if_the_answer_without_it_has_a_higher_reward(
    text: str, marker: str, words: list[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(LAB)
    vocabulary = {word: number for number, word in enumerate(text.split())}
    # One token a word, with the space before it.
    spelt = [f" {word}" if number else word for word, number in vocabulary.items()]
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(spelt[each] for each in ids))
    row = SimpleNamespace(tokens=SimpleNamespace(completion_ids=list(vocabulary.values())))
    [scores] = getattr(sentiment, marker)([row], SimpleNamespace(tokenizer=tokenizer))
    assert [word for word, score in zip(vocabulary, scores, strict=True) if score == 0] == words


def test_the_recipe_is_checked_on_any_model(tmp_path: Path) -> None:
    sets = [f"model={LAB}", "chat=false", "max_length=120", "sample.max_new_tokens=20", f"out={tmp_path}"]
    found = findings(load_recipe(ROOT / "recipes" / "sentiment_smollm2.yaml", sets))
    [asked] = [rows for rows in found.asked if rows.key == "data"]
    assert len(asked.ids) == 160
    assert any("praise was tried" in words for words in found.tried["data"])
