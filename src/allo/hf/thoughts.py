"""The thoughts of a model, as its tokenizer declares them and its chat template opens them."""

import sys
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from allo.core.thoughts import Thoughts, declared_markers, opens_thought
from allo.hf.tokenization import prompt_text
from allo.records import Prompt


def thoughts_of(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]) -> Thoughts:
    """Return how to read thoughts in completions of the prompts.

    A chat template ends every conversation alike, so the first one says whether the template opens a thought.
    """
    declared = getattr(tokenizer, "response_template", None)
    markers = declared_markers({"response_template": declared})
    chat = next((prompt.prompt for prompt in prompts if isinstance(prompt.prompt, list)), None)
    if chat is None:
        return Thoughts(markers)
    return Thoughts(markers, opens_thought(prompt_text(tokenizer, chat, sys.maxsize), markers))
