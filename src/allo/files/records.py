"""What flows between stages: one frozen record a line of a run's files.

`token_ids` of a record are the very ids that the policy sampled, up to and with the token that ended the completion: EOS, an
end of turn, or the one that completed a stop string. Every stage trains on and scores these. `text` is for people and
verifiers. None: the text comes from a server or the user, and its ids are made from it. Of a server's sample that a stop
string ended they are made at once, up to and with that string.
"""

from dataclasses import dataclass, field
from typing import Any, Required

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12


@with_config(ConfigDict(extra="allow"))
class Message(TypedDict, total=False):
    """One chat turn; the tokenizer's chat template renders a list of them. Only what is there is a key.

    There may be other keys that a template reads, such as `tool_plan`.
    """

    role: Required[str]
    content: Required[str]
    tool_calls: list[dict[str, Any]]
    reasoning_content: str
    thinking: str
    name: str
    tool_call_id: str


class Template(TypedDict, total=False):
    """The settings of a prompt that its chat template renders beside the messages."""

    tools: list[dict[str, Any]]
    documents: list[dict[str, Any]]
    chat_template_kwargs: dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A problem as the model is shown it, with what is needed to judge an answer.

    `solution` is the text that a model is taught in fine-tuning (it ends with the
    final answer); `choices` are the options' own texts where the problem has options.
    """

    id: str
    prompt: str | list[Message]
    answer: str | None = None
    solution: str | None = None
    choices: list[str] | None = None
    task: str | None = None
    template: Template | None = None


@dataclass(frozen=True)
class Completion:
    """One sampled continuation. `finished`: it ended by itself (EOS or a stop string)."""

    prompt_id: str
    index: int
    text: str
    finished: bool
    num_tokens: int
    token_ids: list[int] | None = None


@dataclass(frozen=True)
class Verdict:
    """A completion, judged. `extracted` is the final answer that the verifier read."""

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
    """One preference pair; a line of `03-pairs.jsonl` whose prompt is text loads as is in TRL.

    TRL reads the texts alone. (It takes no text as the answer to messages.) `chosen_message` and `rejected_message` hold a
    completion that is more than its text: one with tool calls or thoughts, which the chat template renders.
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
class Wrong:
    """One distinct wrong completion, with the right solutions that scorers may look at.

    `message`: the completion if it is more than its text, as in `Pair`.
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
    """Per-token scores of one wrong completion.

    `token_ids` are the completion's ids (EOS included where it finished), `scores` the
    probability in [0, 1] that token t is aligned (low: wrong), `weights` what multiplies
    token t's loss. `beside`: the probabilities of other scorers, by name. All have one entry a
    completion token.
    """

    id: str
    token_ids: list[int]
    scores: list[float]
    weights: list[float]
    beside: dict[str, list[float]] = field(default_factory=dict)
