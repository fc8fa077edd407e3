"""What flows between stages: one frozen record a line of a run's files."""

from dataclasses import dataclass, field

from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12


class Message(TypedDict):
    """One chat turn; the tokenizer's chat template renders a list of them."""

    role: str
    content: str


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


@dataclass(frozen=True)
class Completion:
    """One sampled continuation. `finished`: it ended by itself (EOS or a stop string)."""

    prompt_id: str
    index: int
    text: str
    finished: bool
    num_tokens: int


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


@dataclass(frozen=True)
class Pair:
    """One preference pair; a line of `03-pairs.jsonl` loads as is in TRL."""

    prompt_id: str
    prompt: str | list[Message]
    chosen: str
    rejected: str
    chosen_finished: bool = True
    rejected_finished: bool = True


@dataclass(frozen=True)
class Wrong:
    """One distinct wrong completion, with the right solutions that scorers may look at."""

    id: str
    prompt_id: str
    prompt: str | list[Message]
    completion: str
    finished: bool
    solution: str | None
    right: list[str]


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
