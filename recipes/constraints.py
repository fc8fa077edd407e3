"""Everyday questions with a rule for the answer that a program checks: prompts, and the function that judges.

Topics of a split are in no other split. A split's level names the rules: `test` has one that SmolLM2-135M keeps now and
then, `test-two` two of those at once, `test-new` two that no prompt of `train-two` has together, and `test-rare` one that
it hardly ever keeps. `train` and `validation` have the same levels.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

# A topic, and a word that an answer about it is likely to have.
TOPICS = {
    "train": "honey:bees, bread:flour, rain:clouds, bicycles:wheels, tea:leaves, libraries:books, trains:station, cheese:milk, "
    "gardens:plants, football:ball, winter:snow, dogs:animals, coffee:beans, mountains:high, the moon:night, newspapers:news, "
    "bridges:river, pizza:dough, swimming:water, maps:places, candles:light, farms:crops, dreams:sleep, soap:clean, "
    "markets:food, guitars:strings, volcanoes:lava, birthdays:cake, paper:trees, the heart:blood, glasses:eyes, wind:air",
    "validation": "chocolate:sweet, forests:trees, hospitals:doctors, kites:wind, salt:sea, clocks:time, cats:pets, hats:head, "
    "deserts:sand, photographs:camera, islands:water, soup:vegetables",
    "test": "apples:fruit, beaches:sand, schools:students, airplanes:fly, rice:food, museums:art, horses:ride, summer:sun, "
    "the sun:light, chess:pieces, shoes:feet, rivers:water, butter:milk, letters:write, singing:voice, tents:camping",
}
FORMS = ("Tell me about {}.", "Explain {} to a child.", "Why do people care about {}?")
WORD = re.compile(r"\w+")
SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)")
BULLET = re.compile(r"^\s*(?:\*[^*]|-).*$", re.MULTILINE)
FEWEST_WORDS = 3  # a shorter text answers nothing, though it has no comma


@dataclass(frozen=True)
class Rule:
    """A rule in words, with `{}` for its value; the check of `(answer, value)`; and values, or None for the topic's word."""

    words: str
    holds: Callable[[str, Any], bool]
    values: tuple[Any, ...] | None = ("",)


def _times(text: str, word: str) -> int:
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


def _only_keys(text: str, keys: Sequence[str]) -> bool:
    try:
        found = json.loads(re.sub(r"^```(?:json)?|```$", "", text, flags=re.IGNORECASE))
    except ValueError:
        return False
    return isinstance(found, dict) and sorted(found) == sorted(keys)


RULES = {
    "most_words": Rule(
        "Use at most {} words.", lambda text, most: len(WORD.findall(text)) <= most, (15, 20, 30)
    ),
    "sentences": Rule(
        "Answer in exactly {} sentences.", lambda text, num: len(SENTENCE_END.findall(text)) == num, (2, 3)
    ),
    "bullets": Rule(
        "Answer with exactly {} bullet points that begin with *.",
        lambda text, num: len(BULLET.findall(text)) == num,
        (3, 4),
    ),
    "use": Rule('Use the word "{}" at least twice.', lambda text, word: _times(text, word) >= 2, None),
    "avoid": Rule('Do not use the word "{}".', lambda text, word: _times(text, word) == 0, ("and", "of")),
    "no_commas": Rule("Do not use any commas.", lambda text, _: "," not in text),
    "begin": Rule(
        'Begin the answer with the word "{}".',
        lambda text, word: [each.lower() for each in WORD.findall(text)[:1]] == [word.lower()],
        ("Well", "Today"),
    ),
    "end": Rule(
        'End the answer with the words "{}" and nothing after them.',
        lambda text, words: text.strip('"').lower().endswith(words.lower()),
        ("That is all.", "Any questions?"),
    ),
    "lower_case": Rule("Write in lower case only.", lambda text, _: text.islower()),
    "question": Rule("Answer with a question.", lambda text, _: text.endswith("?")),
    "json": Rule(
        "Answer with a JSON object that has the keys {} and no other.",
        _only_keys,
        (("name", "use"), ("topic", "reason")),
    ),
}
COMMON = ("most_words", "sentences", "bullets", "use", "avoid", "no_commas")
RARE = tuple(name for name in RULES if name not in COMMON)
NEW = (("most_words", "use"), ("sentences", "no_commas"), ("bullets", "avoid"))
TWO = (
    ("most_words", "avoid"),
    ("most_words", "no_commas"),
    ("sentences", "use"),
    ("sentences", "avoid"),
    ("bullets", "use"),
    ("bullets", "no_commas"),
    ("use", "no_commas"),
    ("avoid", "no_commas"),
)
LEVELS = {
    "": [(name,) for name in COMMON],
    "two": list(TWO),
    "new": list(NEW),
    "rare": [(name,) for name in RARE],
}


def prompts(split: str, *, folder: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yield the prompts of `train`, `validation` or `test`, or of one level of it, such as `test-two`."""
    part, _, level = split.partition("-")
    topics = enumerate(each.split(":") for each in TOPICS[part].split(", "))
    for (turn, (topic, word)), (other, names) in product(topics, enumerate(LEVELS[level])):
        # Each rule meets each form, and each of its values.
        rules = [(name, _value(RULES[name], word, turn // len(FORMS))) for name in names]
        asked = [RULES[name].words.format(_said(value)) for name, value in rules]
        question = FORMS[(turn + other) % len(FORMS)].format(topic)
        yield {
            "id": f"{split}/{topic}/{'+'.join(names)}",
            "prompt": " ".join([question, *asked]),
            "rules": rules,
        }


def keeps(prompts: Sequence[Any], completions: Sequence[Any], rules: Sequence[Any], **_: Any) -> list[bool]:
    """Return whether each completion is an answer of some words that keeps all its prompt's rules."""
    texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
    return [
        len(WORD.findall(text)) >= FEWEST_WORDS
        and all(RULES[name].holds(text.strip(), value) for name, value in own)
        for text, own in zip(texts, rules, strict=True)
    ]


def _value(rule: Rule, word: str, number: int) -> Any:
    return word if rule.values is None else rule.values[number % len(rule.values)]


def _said(value: Any) -> Any:
    return " and ".join(f'"{each}"' for each in value) if isinstance(value, tuple) else value
