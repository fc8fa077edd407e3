"""Thoughts in a completion: they are trained on, but an answer or a verdict stands outside them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Marker:
    """A pair of literal texts that a thought stands between; case does not matter."""

    opens: str
    closes: str


def _tag(name: str) -> Marker:
    return Marker(f"<{name}>", f"</{name}>")


DEFAULT: tuple[Marker, ...] = (
    *map(_tag, ("think", "thinking", "thought", "thoughts", "reasoning", "scratchpad", "seed:think")),
    Marker("[THINK]", "[/THINK]"),
    *(Marker(f"<|{name}|>", f"<|/{name}|>") for name in ("think", "thinking", "reasoning")),
    *(Marker(f"<|{name}|>", f"</|{name}|>") for name in ("think", "thinking")),
    *(Marker(f"<|{name}|>", f"<|end_{name}|>") for name in ("think", "thinking")),
    Marker("<|begin_of_thought|>", "<|end_of_thought|>"),
    Marker("<|START_THINKING|>", "<|END_THINKING|>"),
    Marker("<|inner_prefix|>", "<|inner_suffix|>"),
    Marker("<|channel>thought", "<channel|>"),
    Marker("◁think▷", "◁/think▷"),
)

# The channels of gpt-oss: what is not in the final one is a thought. The second form has lost its special tokens.
_CHANNEL = re.compile(r"<\|start\|>\s*assistant|<\|channel\|>", re.IGNORECASE)
_FINAL = re.compile(
    r"<\|channel\|>\s*final\b[^<]{0,200}(?:<\|constrain\|>[^<]{0,200})?<\|message\|>", re.IGNORECASE
)
_END_OF_MESSAGE = re.compile(r"<\|(?:return|end|start|channel|call)\|>", re.IGNORECASE)
_BARE_CHANNEL = re.compile(r"\s*analysis(?=[A-Z\"'(“‘])")
_BARE_FINAL = "assistantfinal"
_DEEPEST = 100
_FIELDS = ("thinking", "reasoning_content", "reasoning")  # of a tokenizer's `response_template`


@dataclass(frozen=True)
class Thoughts:
    """The thoughts of one model: their markers, and the settings (as `repr`) under which its chat template opens one."""

    markers: tuple[Marker, ...] = DEFAULT
    opened_under: frozenset[str] = frozenset()

    def begins_inside(self, prompt: object, template: object = None) -> bool:
        """Whether a completion of the prompt, a text or messages with `template`'s settings, begins inside a thought."""
        if isinstance(prompt, str):
            return opens_thought(prompt, self.markers)
        return repr(template) in self.opened_under


USUAL = Thoughts()


def without_thoughts(
    text: str, markers: Sequence[Marker] = DEFAULT, *, begins_inside: bool = False
) -> str | None:
    """Return the text without its thoughts; None if the last one is unfinished, so that there is no answer.

    A marker that closes a thought which nothing opened ends one that the prompt opened: all before it is a thought.
    Give `begins_inside` if you know that the prompt opened one (see `opens_thought`), so that a text which was cut
    before its end has no answer. A marker in quotation marks or backticks is a mention.
    """
    if _CHANNEL.search(text):
        return _final_channel(text)
    if _BARE_CHANNEL.match(text):
        _, final, rest = text.rpartition(_BARE_FINAL)
        return rest if final else None
    kept: list[str] = []
    inside = [""] if begins_inside else []  # the closing markers awaited; of the prompt's thought any closes
    place = 0
    closings: dict[str, set[str]] = {}
    for marker in markers:
        closings.setdefault(marker.opens.casefold(), set()).add(marker.closes.casefold())
    known = {*closings, *(closing for several in closings.values() for closing in several)}
    if not known:
        return text
    for found in _pattern(known).finditer(text):
        if _is_mention(text, found):
            continue
        written = found[0].casefold()
        between = text[place : found.start()]
        if written in closings:
            if not inside:
                kept.append(between)
                inside.append(written)
            elif between.strip():  # a marker that is only repeated opens nothing more
                inside.append(written)
            place = found.end()
            if len(inside) > _DEEPEST:
                return None
        elif not inside:
            kept, place = [], found.end()
        else:
            awaited = [at for at, opened in enumerate(inside) if not opened or written in closings[opened]]
            if awaited:
                del inside[awaited[-1] :]
                place = found.end()
    if inside:
        return None
    return "".join(kept) + text[place:]


def spoken(text: str) -> str:
    """Return what a completion says to its reader: nothing if it ends inside a thought."""
    return without_thoughts(text) or ""


def opens_thought(prompt: str, markers: Sequence[Marker] = DEFAULT) -> bool:
    """Whether a rendered prompt ends with an opened thought, as some chat templates do."""
    return prompt.rstrip().casefold().endswith(tuple(marker.opens.strip().casefold() for marker in markers))


def declared_markers(tokenizer_config: Mapping[str, Any]) -> tuple[Marker, ...]:
    r"""Return the markers of `DEFAULT` and those that a `tokenizer_config.json` declares for thoughts.

    transformers reads them from `response_template`. Only literal texts count, and patterns that are a literal
    before `\s*`: a pattern from a model's folder may never end.
    """
    template = tokenizer_config.get("response_template")
    fields = template.get("fields") if isinstance(template, dict) else None
    found = []
    for name in _FIELDS:
        field = fields.get(name) if isinstance(fields, dict) else None
        if isinstance(field, dict):
            found += [
                Marker(opens, closes)
                for opens in _literals(field, "open")
                for closes in _literals(field, "close")
            ]
    return tuple(dict.fromkeys((*DEFAULT, *found)))


def _final_channel(text: str) -> str | None:
    finals = list(_FINAL.finditer(text))
    if not finals:
        return None
    rest = text[finals[-1].end() :]
    end = _END_OF_MESSAGE.search(rest)
    return rest[: end.start()] if end else rest


def _pattern(markers: set[str]) -> re.Pattern[str]:
    longest_first = sorted(markers, key=lambda marker: (-len(marker), marker))
    # ASCII: otherwise an "i" also takes a dotless one, which is in no table.
    return re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE | re.ASCII)


def _is_mention(text: str, found: re.Match[str]) -> bool:
    before, after = text[max(0, found.start() - 1) : found.start()], text[found.end() : found.end() + 1]
    return (before, after) in {("`", "`"), ('"', '"'), ("'", "'"), ("“", "”")}


def _literals(field: Mapping[str, Any], name: str) -> list[str]:
    """The literal markers of one end of a field."""
    given = field.get(name)
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list):
        return [one.strip() for one in given if isinstance(one, str) and one.strip()]
    pattern = field.get(f"{name}_pattern")
    if not isinstance(pattern, str):
        return []
    escaped = pattern.removesuffix(r"\s*")
    literal = re.sub(r"\\([^\w\s])", r"\1", escaped).strip()
    bare = re.sub(r"\\[^\w\s]", "", escaped)
    return [literal] if literal and not re.search(r"[\\.^$*+?{}\[\]|()]", bare) else []
