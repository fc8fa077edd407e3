"""Thoughts in a completion: trained on, but never part of the answer or the verdict."""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Marker:
    """The literal texts that open and close a thought, in any case."""

    opens: str
    closes: str


# A tag marks a thought if its name has one of these stems: no list of names is complete.
_STEMS = (
    "think|thought|reason|reflect|analy[sz]|scratch|ponder|monolog|deliberat|brainstorm|contemplat|ruminat"
)
_TAG = re.compile(
    r"(?P<left><[|｜]?|\[|◁)\s{0,9}(?P<turn>/[|｜]?|(?:begin|start|end)[_▁-](?:of[_▁-])?)?\s{0,9}"
    rf"(?P<name>[\w:.▁-]{{0,40}}?(?:{_STEMS})[\w:.▁-]{{0,40}})"
    r"(?:\s[\w:-]{1,40}=[^<>]{0,200})?\s{0,9}(?:[|｜]?>|\]|▷)",
    re.IGNORECASE | re.ASCII,  # ASCII: otherwise "i" also matches a dotless one, which is in no table
)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
DEFAULT = (
    Marker("[THINK]", "[/THINK]"),  # a thought even if never closed, as other bracketed words may be headings
    Marker("<|inner_prefix|>", "<|inner_suffix|>"),
    Marker("<|channel>thought", "<channel|>"),
)
"""The markers that are not tags with a thought's name."""

# In gpt-oss, all channels but the final one hold thoughts. The second form has lost its special tokens.
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
    """One model's thoughts: their markers, and the conversations after which its chat template opens one.

    `ends`: the tokens and texts that may end a sample without being a part of what it says.
    """

    markers: tuple[Marker, ...] = DEFAULT
    opened_after: frozenset[str] = frozenset()
    ends: tuple[str, ...] = ()

    def begins_inside(self, prompt: object, template: object = None) -> bool:
        """Return whether a completion of the prompt begins inside a thought; `template` has the settings of messages."""
        if isinstance(prompt, str):
            return opens_thought(prompt, self.markers)
        return conversation(prompt, template) in self.opened_after

    def spoken(self, text: str, prompt: object = "", template: object = None) -> str:
        """Return the part of a completion that its reader sees; nothing if it ends inside a thought."""
        inside = self.begins_inside(prompt, template)
        return without_thoughts(self.without_end(text), self.markers, begins_inside=inside) or ""

    def without_end(self, text: str) -> str:
        """Return a completion's text without what ends it."""
        while end := next(filter(text.rstrip().endswith, self.ends), ""):
            text = text.rstrip().removesuffix(end).rstrip()
        return text


def conversation(prompt: object, template: object) -> str:
    """Return the name in `Thoughts.opened_after` of a prompt's messages with `template`'s settings."""
    return repr((prompt, template))


USUAL = Thoughts()


def without_thoughts(
    text: str, markers: Sequence[Marker] = DEFAULT, *, begins_inside: bool = False
) -> str | None:
    """Return the text without its thoughts; None, for no answer, if the last thought is unfinished.

    A closing marker without an opening one ends a thought that the prompt opened, so all text before it is a thought.
    Set `begins_inside` if you know that the prompt opened one (see `opens_thought`): a text that was cut off inside
    it then has no answer. A marker in quotation marks or backticks is only a mention.
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
            if not inside or between.strip():  # a repeated marker opens nothing more
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
    """Return whether a rendered prompt ends with an opened thought, as some chat templates do."""
    end = prompt.rstrip()[-_LONGEST:]
    marks = [_Mark(end, found, markers) for found in _pattern(markers).finditer(end)]
    return bool(marks) and marks[-1].end == len(end) and marks[-1].opens and marks[-1].is_sure


def is_marker(text: str, markers: Sequence[Marker] = DEFAULT) -> bool:
    """Whether a text opens or closes a thought."""
    return _pattern(markers).search(text) is not None


def declared_markers(tokenizer_config: Mapping[str, Any]) -> tuple[Marker, ...]:
    r"""Return the markers of `DEFAULT` and those that a `tokenizer_config.json` declares for thoughts.

    transformers reads them from `response_template`. Only literal texts count, and patterns of a literal before
    `\s*`, since matching an arbitrary pattern from a model's folder might never end.
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
    """A place where a text may open or close a thought. Marks of one thought share a `key`.

    `is_sure`: it opens a thought even if nothing closes it. A bracketed word is not sure, since it may be a heading.
    Neither is a tag right after a word, which may be a type, as in `List<Reason>`.
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
    """Return a tag's form and name, the same for opening and closing; another marker is its own key."""
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
    """Return the literal markers for one end of a field."""
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
