"""Thoughts in a completion: they are trained on, but an answer or a verdict stands outside them."""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Marker:
    """A pair of literal texts that a thought stands between; case does not matter."""

    opens: str
    closes: str


# Every form of tag whose name has one of these stems marks a thought: no list of names is whole.
_STEMS = (
    "think|thought|reason|reflect|analy[sz]|scratch|ponder|monolog|deliberat|brainstorm|contemplat|ruminat"
)
_TAG = re.compile(
    r"(?P<left><[|｜]?|\[|◁)\s{0,9}(?P<turn>/[|｜]?|(?:begin|start|end)[_▁-](?:of[_▁-])?)?\s{0,9}"
    rf"(?P<name>[\w:.▁-]{{0,40}}?(?:{_STEMS})[\w:.▁-]{{0,40}})"
    r"(?:\s[\w:-]{1,40}=[^<>]{0,200})?\s{0,9}(?:[|｜]?>|\]|▷)",
    re.IGNORECASE | re.ASCII,  # ASCII: otherwise an "i" also takes a dotless one, which is in no table.
)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
DEFAULT = (
    Marker("[THINK]", "[/THINK]"),  # also if it is never closed: other words in brackets may be headings
    Marker("<|inner_prefix|>", "<|inner_suffix|>"),
    Marker("<|channel>thought", "<channel|>"),
)
"""The markers that are no tags of a thought's name."""

# The channels of gpt-oss: what is not in the final one is a thought. The second form has lost its special tokens.
_CHANNEL = re.compile(r"<\|start\|>\s*assistant|<\|channel\|>", re.IGNORECASE)
_FINAL = re.compile(
    r"<\|channel\|>\s*final\b[^<]{0,200}(?:<\|constrain\|>[^<]{0,200})?<\|message\|>", re.IGNORECASE
)
_END_OF_MESSAGE = re.compile(r"<\|(?:return|end|start|channel|call)\|>", re.IGNORECASE)
_BARE_CHANNEL = re.compile(r"\s*analysis(?=[A-Z\"'(“‘])")
_BARE_FINAL = "assistantfinal"
_DEEPEST = 100
_LONGEST = 400  # characters of a mark
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

    def spoken(self, text: str, prompt: object = "", template: object = None) -> str:
        """Return what a completion of a prompt says to its reader: nothing if it ends inside a thought."""
        inside = self.begins_inside(prompt, template)
        return without_thoughts(text, self.markers, begins_inside=inside) or ""


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
    literals: dict[str, set[str]] = {}
    for marker in markers:
        literals.setdefault(_key(marker.opens), set()).add(_key(marker.closes))
    found = [_Mark(text, each, markers) for each in _pattern(markers).finditer(text)]
    ends = {mark.key: mark.start for mark in found if not mark.opens}
    fences = [fence.start() for fence in _FENCE.finditer(text)]
    kept: list[str] = []
    inside: list[set[str] | None] = (
        [None] if begins_inside else []
    )  # awaited; any mark ends the prompt's thought
    place = 0
    for mark in found:
        before = bisect_left(fences, mark.start)
        fenced = (before - bisect_left(fences, place)) % 2 == 1 and before < len(fences)
        if mark.is_mention or (fenced and not inside):
            continue
        between = text[place : mark.start]
        if mark.opens:
            if not mark.is_sure and ends.get(mark.key, -1) < mark.start:
                continue
            if not inside:
                kept.append(between)
            if not inside or between.strip():  # a marker that is only repeated opens nothing more
                inside.append({mark.key, *literals.get(mark.key, ())})
            place = mark.end
            if len(inside) > _DEEPEST:
                return None
        elif not inside:
            kept, place = [], mark.end
        else:
            awaited = [at for at, ending in enumerate(inside) if ending is None or mark.key in ending]
            if awaited:
                del inside[awaited[-1] :]
                place = mark.end
    return None if inside else "".join(kept) + text[place:]


def opens_thought(prompt: str, markers: Sequence[Marker] = DEFAULT) -> bool:
    """Whether a rendered prompt ends with an opened thought, as some chat templates do."""
    end = prompt.rstrip()[-_LONGEST:]
    marks = [_Mark(end, found, markers) for found in _pattern(markers).finditer(end)]
    return bool(marks) and marks[-1].end == len(end) and marks[-1].opens and marks[-1].is_sure


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


class _Mark:
    """A place where a text may open or close a thought. Marks of one thought have one `key`.

    `is_sure`: it opens a thought even if nothing closes it. A word in brackets may be a heading, and a word right after
    another a type's, as in `List<Reason>`.
    """

    def __init__(self, text: str, found: re.Match[str], markers: Sequence[Marker]) -> None:
        self.start, self.end = found.span()
        self.key = _key(found[0])
        tag, literal = _TAG.fullmatch(found[0]), found[0].casefold()
        named = any(marker.opens.strip().casefold() == literal for marker in markers)
        closes = any(marker.closes.strip().casefold() == literal for marker in markers)
        self.opens = named or (not closes and tag is not None and not _closes(tag))
        before, after = text[max(0, self.start - 1) : self.start], text[self.end : self.end + 1]
        self.is_mention = (before, after) in {("`", "`"), ('"', '"'), ("'", "'"), ("“", "”")}
        follows_word = before.isalnum() and "think" not in literal
        self.is_sure = named or not (literal.startswith("[") or follows_word)


def _closes(tag: re.Match[str]) -> bool:
    return (tag["turn"] or "").casefold().startswith(("/", "end"))


def _key(text: str) -> str:
    """The form and the name of a tag, the same for its beginning and its end; another marker is its own."""
    tag = _TAG.fullmatch(text.strip())
    if tag is None:
        return text.strip().casefold()
    bar = (tag["left"] + (tag["turn"] or "")).rstrip("_▁-").endswith(("|", "｜")) or tag["left"] in (
        "<|",
        "<｜",
    )
    return f"{tag['left'][0]}{'|' if bar else ''}{tag['name'].casefold()}"


def _pattern(markers: Sequence[Marker]) -> re.Pattern[str]:
    literals = {text.strip() for marker in markers for text in (marker.opens, marker.closes)}
    longest_first = sorted(literals, key=lambda text: (-len(text), text))
    return re.compile("|".join([*map(re.escape, longest_first), _TAG.pattern]), _TAG.flags)


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
