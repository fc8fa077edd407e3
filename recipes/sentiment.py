"""Sentences about everyday things, rewarded by a lexicon of praise and blame: prompts, rewards and the truth about tokens.

The reward is a formula over words, so what a word adds to it is known: `lowers_praise` marks the words of an answer without
which its reward is higher, and is the scorer that knows the truth. Needs `pip install vaderSentiment`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from allo.tokens import Context, Scored

# Things of a split are met in no other split; forms of `reworded` are met in no other family.
THINGS = {
    "train": "kettle, backpack, desk lamp, pair of running shoes, umbrella, coffee grinder, tent, office chair, bicycle pump, "
    "wool scarf, frying pan, alarm clock, garden hose, suitcase, phone case, toothbrush, notebook, bread knife, yoga mat, "
    "pair of headphones, rain jacket, water bottle, vacuum cleaner, bookshelf, mattress, hair dryer, toaster, board game, "
    "camera, pillow, keyboard, lawn mower, cutting board, watch, fan, sofa, blender, pair of hiking boots, mirror, printer",
    "validation": "guitar, blanket, rice cooker, monitor, ladder, wallet, pair of sunglasses, drill, candle, teapot, router, "
    "carpet, skateboard, flat iron, radio, stroller",
    "test": "bicycle, raincoat, coffee mug, tripod, hammock, stapler, humidifier, pair of gloves, saucepan, doormat, fishing rod, "
    "flashlight, clipboard, kitchen scale, sleeping bag, wardrobe, tennis racket, cooler, extension cord, dictionary, ironing board, "
    "pair of slippers, thermometer, swivel stool",
}
FORMS = (
    "Write one sentence about the {} that you bought.",
    "Write one short sentence of a customer review of a {}.",
    "In one sentence, tell a colleague how the new {} is.",
    "Describe in one sentence a month with this {}.",
)
REWORDED = (
    "Someone asks whether to buy a {}. Answer in one sentence.",
    "Finish in one sentence: When I opened the box with the {},",
    "One sentence for a shop's page, by a person who owns the {}:",
    "A neighbour returns your {}. What does the neighbour say about it, in one sentence?",
)
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")


def prompts(split: str, *, folder: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yield the prompts of `train`, `validation`, `test`, or `reworded`: the things of `test` in other words."""
    forms = REWORDED if split == "reworded" else FORMS
    for thing in THINGS["test" if split == "reworded" else split].split(", "):
        for number, form in enumerate(forms):
            yield {"id": f"{split}/{thing}/{number}", "prompt": form.format(thing)}


def praise(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """Return VADER's compound score of each completion: from -1, all blame, to 1, all praise."""
    return [_analyzer().polarity_scores(_text(each))["compound"] for each in completions]


def blame(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """Return the opposite of `praise`."""
    return [-score for score in praise(prompts, completions)]


def lowers_praise(rows: list[Scored], context: Context) -> list[list[float]]:
    """Score a token 0 if the answer without its word has more `praise`, else 1."""
    return [_marked(row, context, praise) for row in rows]


def lowers_blame(rows: list[Scored], context: Context) -> list[list[float]]:
    """Score a token 0 if the answer without its word has more `blame`, else 1."""
    return [_marked(row, context, blame) for row in rows]


def _marked(row: Scored, context: Context, reward: Callable[..., list[float]]) -> list[float]:
    ids = row.tokens.completion_ids
    text = context.tokenizer.decode(ids, skip_special_tokens=True)
    words = [word.span() for word in WORD.finditer(text)]
    whole, *without = reward([], [text, *(text[:first] + text[last:] for first, last in words)])
    lower = [word for word, other in zip(words, without, strict=True) if other > whole]
    ends = [len(context.tokenizer.decode(ids[: i + 1], skip_special_tokens=True)) for i in range(len(ids))]
    return [
        0.0 if any(first < end and start < last for first, last in lower) else 1.0
        for start, end in pairwise([0, *ends])
    ]


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
