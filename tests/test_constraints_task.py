"""recipes/constraints.py: prompts whose topics and combinations do not overlap, and rules that a program checks."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from allo.recipe import load_recipe
from allo.stages.check import findings
from tiny_run import LAB

ROOT = Path(__file__).resolve().parent.parent
SPLITS = [
    f"{part}{level}" for part in ("train", "validation", "test") for level in ("", "-two", "-new", "-rare")
]


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("constraints", ROOT / "recipes" / "constraints.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["constraints"] = module  # dataclasses look up their own module
    spec.loader.exec_module(module)
    return module


constraints = _module()


def _kept(text: str, *rules: tuple[str, Any]) -> bool:
    [verdict] = constraints.keeps([""], [text], rules=[list(rules)])
    assert constraints.keeps([""], [[{"role": "assistant", "content": text}]], rules=[list(rules)]) == [
        verdict
    ]
    return verdict


def test_no_split_shares_a_topic_and_no_level_a_combination() -> None:
    topics = [[each.split(":")[0] for each in names.split(", ")] for names in constraints.TOPICS.values()]
    assert sum(map(len, topics)) == len(set().union(*topics)) == 60
    combinations = [frozenset(names) for level in constraints.LEVELS.values() for names in level]
    assert len(combinations) == len(set(combinations))
    rows = [row for split in SPLITS for row in constraints.prompts(split)]
    assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == len(rows)


def test_each_rule_meets_each_form_and_each_of_its_values() -> None:
    for level in ("", "-two", "-rare"):
        met = {
            (name, row["prompt"].partition(topic)[0], value)
            for row in constraints.prompts(f"train{level}")
            for topic in [row["id"].split("/")[1]]
            for name, value in row["rules"]
            if constraints.RULES[name].values is not None
        }
        names = {name for name, _, _ in met}
        begins = {form.partition("{}")[0] for form in constraints.FORMS}
        assert met == {
            (name, begin, value)
            for name in names
            for begin in begins
            for value in constraints.RULES[name].values
        }


@pytest.mark.parametrize(
    ("rule", "value", "right", "wrong"),
    [
        ("most_words", 4, "It's a fruit.", "It is a fine fruit."),
        ("sentences", 2, 'It costs 2.50 a jar. "Buy it!"', "One jar. Two jars. Three jars."),
        ("bullets", 2, "Three uses:\n* tea\n - bread", "* tea\n* bread\n* cake"),
        ("use", "bees", "Bees are good. I like bees.", "A bee and its beeswax, and bees."),
        ("avoid", "bees", "It is from beeswax.", "It is from Bees."),
        ("no_commas", "", "Honey is sweet.", "Honey, which is sweet."),
        ("begin", "Well", "well, it is sweet", "It is well and sweet."),
        ("end", "That is all.", "It is sweet. That is all.", "That is all. It is sweet."),
        ("lower_case", "", "honey is sweet.", "Honey is sweet."),
        ("question", "", "Is it as sweet as honey?", "Is it sweet? It is sweet."),
        (
            "json",
            ("name", "use"),
            '```json\n{"use": "tea", "name": "honey"}\n```',
            '{"name": "honey for my tea"}',
        ),
    ],
)
def test_a_rule_tells_answers_that_keep_it_from_others(rule: str, value: Any, right: str, wrong: str) -> None:
    assert _kept(right, (rule, value)) and _kept(f" {right}\n", (rule, value))
    assert not _kept(wrong, (rule, value))


def test_every_rule_has_to_be_kept_and_a_text_of_fewer_words_is_no_answer() -> None:
    assert _kept("It is sweet", ("most_words", 4), ("no_commas", ""))
    assert not _kept("Oh, it is sweet", ("most_words", 4), ("no_commas", ""))
    assert not _kept("", ("no_commas", "")) and not _kept("It is", ("most_words", 4))


def test_the_recipe_is_checked_on_any_model() -> None:
    sets = [f"model={LAB}", "chat=false", "max_length=120", "sample.max_new_tokens=20"]
    found = findings(load_recipe(ROOT / "recipes" / "constraints_smollm2.yaml", sets))
    [asked] = [rows for rows in found.asked if rows.key == "data"]
    assert len(asked.ids) == 192
    assert any("keeps was tried" in words for words in found.tried["data"])


# Our rule, its value, IFEval's name for it with the arguments, and which of the two asks for more.
SHARED = [
    (
        "most_words",
        8,
        "length_constraints:number_words",
        {"num_words": 9, "relation": "less than"},
        "neither",
    ),
    ("bullets", 2, "detectable_format:number_bullet_lists", {"num_bullets": 2}, "neither"),
    (
        "use",
        "bees",
        "keywords:frequency",
        {"keyword": "bees", "frequency": 2, "relation": "at least"},
        "ours",
    ),
    ("avoid", "bees", "keywords:forbidden_words", {"forbidden_words": ["bees"]}, "neither"),
    ("no_commas", "", "punctuation:no_comma", {}, "neither"),
    ("end", "That is all.", "startend:end_checker", {"end_phrase": "That is all."}, "neither"),
    # Theirs asks for English as well.
    ("lower_case", "", "change_case:english_lowercase", {}, "theirs"),
    ("json", ("name", "use"), "detectable_format:json_format", {}, "ours"),
]
ANSWERS = (
    "Honey is made by bees, and bees like flowers. That is all.",
    "honey is made by the bees in the garden, and the bees like the flowers.",
    "Bees make honey from flowers in the garden.",
    "It comes from beeswax and from the bees.",
    "* It is made by bees.\n* It is sweet.",
    "Two uses:\n- in tea\n - on bread\nThat is all.",
    "**Honey**\n* It is sweet, and good.\n---\n* It is made by bees.",
    '{"name": "honey", "use": "in tea"}',
    '```json\n{"name": "honey", "use": "in tea"}\n```',
    '```\n{"use": 1, "name": []}\n```',
    '{"name": "honey for my tea"}',
    '{"name": "honey", "use": }',
    '"It is sweet and golden. That is all."',
    "That is all. It is sweet.",
)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "value", "name", "arguments", "asks_more"), SHARED)
def test_rules_agree_with_the_checkers_of_ifeval(
    rule: str,
    value: Any,
    name: str,
    arguments: dict[str, Any],
    asks_more: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nltk = pytest.importorskip("nltk")
    # Their import asks for data that these rules do not need.
    monkeypatch.setattr(nltk, "download", lambda *_, **__: False)
    registry = pytest.importorskip("lm_eval.tasks.ifeval.instructions_registry")
    langdetect = pytest.importorskip("langdetect")
    langdetect.DetectorFactory.seed = 0
    checker = registry.INSTRUCTION_DICT[name](name)
    checker.build_description(**arguments)
    ours = [_kept(text, (rule, value)) for text in ANSWERS]
    theirs = [bool(checker.check_following(text)) for text in ANSWERS]
    assert set(ours) == set(theirs) == {False, True}
    more, less = (theirs, ours) if asks_more == "theirs" else (ours, theirs)
    assert all(low for high, low in zip(more, less, strict=True) if high)
    assert (ours == theirs) == (asks_more == "neither")
