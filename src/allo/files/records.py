"""Records that pass between stages: frozen, one per line of a run's files.

A record's `token_ids` are the ids that the policy sampled, including the token that ended the completion: EOS, an end
of turn, or the one that completed a stop string. Every stage trains on and scores these ids. `text` is for people and
verifiers.

`token_ids` is None if the text comes from a server or the user; its ids are then made from the text. If a stop string
ended a server's sample, its ids are made at once, up to and including that string.
"""

from dataclasses import dataclass, field
from typing import Any, Required

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12


@with_config(ConfigDict(extra="allow"))
class Message(TypedDict, total=False):
    """One chat turn; the tokenizer's chat template renders a list of them. Absent fields have no key.

    Other keys are allowed, since a template may read them, such as `tool_plan`.
    """

    role: Required[str]
    content: Required[str]
    tool_calls: list[dict[str, Any]]
    reasoning_content: str
    thinking: str
    name: str
    tool_call_id: str


class Template(TypedDict, total=False):
    """The settings that a prompt's chat template renders in addition to the messages."""

    tools: list[dict[str, Any]]
    documents: list[dict[str, Any]]
    chat_template_kwargs: dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A problem as the model sees it, with the data that verifying an answer needs.

    `solution` is the text taught in fine-tuning, which ends with the final answer. `choices` are the options' texts.
    `columns` has a user's whole row, for functions of their own. `text` is the row's own prompt if it is a text that
    `chat: true` has made a message of.
    """

    id: str
    prompt: str | list[Message]
    answer: str | None = None
    solution: str | None = None
    choices: list[str] | None = None
    task: str | None = None
    template: Template | None = None
    columns: dict[str, Any] | None = None
    text: str | None = None

    @property
    def said(self) -> str:
        """The id and the beginning of the text, or of the last message, by which a user knows the row."""
        asked = self.prompt if isinstance(self.prompt, str) else self.prompt[-1].get("content")
        text = " ".join(str(asked or "").split())
        return f"{self.id[:60]!r} ({text if len(text) <= 60 else f'{text[:57]}...'})"


@dataclass(frozen=True)
class Completion:
    """One sampled continuation; `finished` says that EOS or a stop string ended it."""

    prompt_id: str
    index: int
    text: str
    finished: bool
    num_tokens: int
    token_ids: list[int] | None = None


@dataclass(frozen=True)
class Verdict:
    """A judged completion; `extracted` is the final answer that the verifier read."""

    prompt_id: str
    index: int
    text: str
    finished: bool
    correct: bool
    reward: float
    extracted: str | None
    verifier: str
    token_ids: list[int] | None = None


@dataclass(frozen=True)
class Pair:
    """One preference pair. TRL loads a line of `03-pairs.jsonl` directly if its prompt is text.

    TRL reads only the texts, and accepts no text as the answer to messages. `chosen_message` and `rejected_message`
    hold a completion with tool calls or thoughts, which the chat template renders.
    """

    prompt_id: str
    prompt: str | list[Message]
    chosen: str
    rejected: str
    chosen_finished: bool = True
    rejected_finished: bool = True
    chosen_token_ids: list[int] | None = None
    rejected_token_ids: list[int] | None = None
    template: Template | None = None
    chosen_message: Message | None = None
    rejected_message: Message | None = None


@dataclass(frozen=True)
class Feedback:
    """One labelled completion; `label` is true if it is good. TRL's `KTOTrainer` loads a line of `03-feedback.jsonl`
    directly if its prompt is text.

    `message` holds a completion that is more than its text, as in `Pair`.
    """

    prompt_id: str
    prompt: str | list[Message]
    completion: str
    label: bool
    finished: bool = True
    completion_ids: list[int] | None = None
    template: Template | None = None
    message: Message | None = None


@dataclass(frozen=True)
class Wrong:
    """One distinct wrong completion, with the right solutions that scorers may use.

    `message` holds a completion that is more than its text, as in `Pair`.
    """

    id: str
    prompt_id: str
    prompt: str | list[Message]
    completion: str
    finished: bool
    solution: str | None
    right: list[str]
    token_ids: list[int] | None = None
    template: Template | None = None
    message: Message | None = None


@dataclass(frozen=True)
class TokenScores:
    """Per-token scores of one wrong completion; each list has one entry per completion token.

    `token_ids` include EOS if the completion finished. `scores` are the probabilities in [0, 1] that a token is
    aligned (low: wrong). `weights` multiply the tokens' losses. `beside` holds other scorers' probabilities by name.
    """

    id: str
    token_ids: list[int]
    scores: list[float]
    weights: list[float]
    beside: dict[str, list[float]] = field(default_factory=dict)
