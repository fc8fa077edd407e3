"""A model's thoughts, as its tokenizer declares them and its chat template opens them."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from allo.files.records import Prompt
from allo.models.templates import Chat
from allo.tasks.answers.thoughts import Thoughts, declared_markers, opens_thought


def thoughts_of(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]) -> Thoughts:
    """Return how to read thoughts in completions of the prompts.

    A chat template ends all conversations with the same settings alike. The first one for each setting therefore
    shows whether the template opens a thought.
    """
    declared = getattr(tokenizer, "response_template", None)
    markers = declared_markers({"response_template": declared})
    openings: dict[str, str] = {}
    for prompt in prompts:
        settings = repr(prompt.template)
        if not isinstance(prompt.prompt, str) and settings not in openings:
            chat = Chat(tokenizer, prompt.prompt, prompt.template, f"prompt {prompt.id}")
            openings[settings] = chat.opening()
    opened = (settings for settings, text in openings.items() if opens_thought(text, markers))
    return Thoughts(markers, frozenset(opened))
