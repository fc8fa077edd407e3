"""A model's thoughts, as its tokenizer declares them and its chat template opens them."""

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from allo.files.records import Prompt
from allo.models.templates import Chat, Turn
from allo.tasks.answers.thoughts import Thoughts, conversation, declared_markers, is_marker, opens_thought


def thoughts_of(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]) -> Thoughts:
    """Return how to read thoughts, and the ends, in completions of the prompts.

    Each conversation is rendered: whether a template opens a thought may depend on any message.
    """
    declared = getattr(tokenizer, "response_template", None)
    markers = declared_markers({"response_template": declared})
    turns: dict[str, Turn] = {}
    for prompt in prompts:
        name = conversation(prompt.prompt, prompt.template)
        if not isinstance(prompt.prompt, str) and name not in turns:
            turns[name] = Chat(tokenizer, prompt.prompt, prompt.template, f"prompt {prompt.id}").turn()
    opened = (name for name, turn in turns.items() if opens_thought(turn.prompt, markers))
    ends = _ends(tokenizer, {turn.close for turn in turns.values()})
    return Thoughts(markers, frozenset(opened), tuple(end for end in ends if not is_marker(end, markers)))


def _ends(tokenizer: PreTrainedTokenizerBase, closes: Iterable[str]) -> list[str]:
    """Special tokens, and the tokens and texts with which the chat template closes an answer, the longest first."""
    added = tokenizer.added_tokens_decoder.values()
    ends = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    tokens = sorted({*ends, *map(str, added)}, key=len, reverse=True)
    for close in closes:
        ends |= {part.strip() for part in re.split(f"({'|'.join(map(re.escape, tokens))})", close)}
    return sorted(filter(str.strip, ends), key=lambda end: (-len(end), end))
