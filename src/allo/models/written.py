"""Marks that show what a chat template writes, names that its source reads, and whether token ids are a text's."""

import re
from collections.abc import Mapping, Sequence
from functools import cache

from jinja2 import Environment, meta, nodes
from transformers import PreTrainedTokenizerBase

# Transformers gives a template a thought under the others of these names, too.
_THOUGHTS = frozenset({"reasoning_content", "thinking", "reasoning"})
# Tests and filters of a variable that a row may give, and that a template sets otherwise.
_GUARDS = ("defined", "undefined", "default", "d")
# Transformers' own tags around an answer.
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


@cache
def names_read(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the variables that a template reads, and the names that it may read of messages."""
    tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", source))
    own = {one.name for one in tree.find_all(nodes.Name) if one.ctx != "load"}
    guards = [one.node for one in tree.find_all((nodes.Test, nodes.Filter)) if one.name in _GUARDS]
    own -= {one.name for one in guards if isinstance(one, nodes.Name)}
    texts = {one.value for one in tree.find_all(nodes.Const) if isinstance(one.value, str)}
    known = texts | {one.attr for one in tree.find_all(nodes.Getattr)}
    known |= _THOUGHTS if known & _THOUGHTS else set()
    return frozenset(meta.find_undeclared_variables(tree) - own), frozenset(known)


def marked(message: Mapping[str, object], probe: str, marks: dict[str, str]) -> dict[str, object]:
    """Return a message with marks for its text and its calls, and add what each stands for to `marks`."""

    def new(what: str) -> str:
        mark = f"{probe}{len(marks):06}"
        marks[mark] = what
        return mark

    found, content, calls = dict(message), message.get("content"), message.get("tool_calls")
    if isinstance(calls, Sequence) and calls:
        found["tool_calls"] = [_marked_call(call, new("`tool_calls`")) for call in calls]
    if isinstance(content, str) and content.strip():
        found["content"] = new(
            f"the `{message.get('role')}` message{' beside `tool_calls`' if calls else ''}"
        )
    return found


def _marked_call(call: object, mark: str) -> object:
    """Return a call with the mark for its arguments, or for its name without any."""
    if not isinstance(call, Mapping):
        return mark
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _marked_call(call["function"], mark)}
    arguments = call.get("arguments")
    if isinstance(arguments, Mapping) and arguments:
        return {**call, "arguments": dict.fromkeys(arguments, mark)}
    return {**call, "name": mark}


def reads_as(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], text: str, *, stop: Sequence[str] = ()
) -> bool:
    """Return whether this tokenizer's `ids` decode to a sample's text, plus at most one end.

    An end is a special token, a string of `stop` or any one token, as a generation config may name any.
    """
    if not ids or not all(0 <= id < len(tokenizer) for id in ids):
        return False
    said, text = _said(tokenizer, ids).strip(), text.strip()
    if _said(tokenizer, ids[:-1]).strip() == text:
        return True
    if not said.startswith(text):
        return False
    rest = said[len(text) :]
    space = rest[: len(rest) - len(rest.lstrip())]
    if any(rest.lstrip().startswith(end.lstrip()) if end.strip() else end in space for end in stop):
        return True
    for token in (*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())):
        rest = rest.replace(token, "")
    return not rest.strip()


def _said(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
