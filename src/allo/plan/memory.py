"""What a plan says: bytes of each kind at the moment when a stage holds the most."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Kinds of memory in the order of the table, and what each is.
KINDS = {
    "weights": "the model",
    "state": "indices, fp32 masters, gradient and moments of the selected weights",
    "slots": "the selected weights of the reference",
    "gradient": "one tensor's dense gradient",
    "log-probs": "logits of a chunk of completion tokens, and their gradient",
    "cache": "keys and values of the positions read so far",
    "activations": "what the backward pass needs, and the scratch of the largest operation",
}


@dataclass(frozen=True)
class StagePlan:
    """A stage's memory at its peak. `load` says what it was planned for; `host` stays beside the device."""

    stage: str
    load: str
    bytes: Mapping[str, int]
    host: int = 0
    advice: Mapping[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.bytes.values())
