"""A plan's content: bytes of each kind at the moment when a stage holds the most."""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from allo.errors import UserError

# Kinds of memory in the table's order, with their meanings.
KINDS = {
    "weights": "the whole model, in the run's dtype",
    "state": "the selected weights' places, masters, gradient and optimizer moments",
    "slots": "the selected weights' bits in the reference",
    "gradient": "one tensor's dense gradient, until its selected entries are taken",
    "log-probs": "logits of a chunk of completion tokens (of a row's next token), and tensors made from them",
    "cache": "keys and values of prompts and completions at their longest, a prompt's once",
    "activations": "tensors kept for the backward pass, and the scratch of the operation at the peak",
}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Step:
    """The work of an optimizer step: `micro_batches` of `rows` rows with `row_tokens` tokens, a text of which has `length`.

    Each takes a pass forward and backward, and `references` more passes forward. With `recomputes`, the backward pass runs
    the layers once more. `selected` weights train, in tensors that have `trained` weights. `sent_copy` is the bytes of the
    copy of their gradient that processes send, if it is another one.
    """

    micro_batches: int
    rows: int
    row_tokens: int
    length: int
    references: int
    recomputes: bool
    selected: int
    trained: int
    sent_copy: int = 0


@dataclass(frozen=True)
class StagePlan:
    """A stage at its peak. `load` describes the rows; `host` is kept in host memory on any device.

    `moments` holds the bytes at other moments, of which another is the peak if the model is deeper or sharded. `step` is
    known of stages with an optimizer.
    """

    stage: str
    load: str
    bytes: Mapping[str, int]
    host: int = 0
    moments: Mapping[Hashable, Mapping[str, int]] = field(default_factory=dict, compare=False, repr=False)
    step: Step | None = None

    @property
    def total(self) -> int:
        """Return the bytes on the device."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Advised:
    """Advice on a stage that does not fit: `settings` (dotted key -> value) with which it does, and the new plan.

    Without `plan`, no setting known to the planner makes it fit.
    """

    settings: Mapping[str, object] = field(default_factory=dict)
    plan: StagePlan | None = None


@dataclass(frozen=True)
class Plan:
    """A recipe's stages and, if a limit in bytes is given, advice for those above it.

    `unplanned` holds stages without a plan, each with the reason.
    """

    stages: tuple[StagePlan, ...]
    limit: int | None = None
    advice: Mapping[str, Advised] = field(default_factory=dict)
    unplanned: Mapping[str, str] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        return max(stage.total for stage in self.stages)

    def fits(self, stage: StagePlan) -> bool:
        return self.limit is None or stage.total <= self.limit


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 24GB (10^9) or 22.5GiB (2^30). Raises `UserError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    if found is None or found[2] not in _UNITS or not float(found[1]):
        raise UserError(f"--gpu {text}: give a size such as 24GB; the units are {', '.join(_UNITS)}")
    return int(float(found[1]) * _UNITS[found[2]])
