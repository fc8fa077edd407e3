"""The thoughts of a model, as its tokenizer declares them and its chat template opens them."""

import sys
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from allo.core.thoughts import Thoughts, declared_markers, opens_thought
from allo.hf.tokenization import prompt_text
from allo.records import Prompt


def thoughts_of(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]) -> Thoughts:
    """Return how to read thoughts in completions of the prompts.

    A chat template ends every conversation of the same settings alike, so the first one of each says whether the template
    opens a thought.
    """
    declared = getattr(tokenizer, "response_template", None)
    markers = declared_markers({"response_template": declared})
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        if isinstance(prompt.prompt, list):
            first.setdefault(repr(prompt.template), prompt)
    opened = {
        settings for settings, prompt in first.items() if opens_thought(_text(tokenizer, prompt), markers)
    }
    return Thoughts(markers, frozenset(opened))


def _text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    place = f"prompt {prompt.id}"
    return prompt_text(tokenizer, prompt.prompt, sys.maxsize, template=prompt.template, place=place)
