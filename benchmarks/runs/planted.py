"""The runs of `diagnosis.py`: faults planted by a recipe's settings or data, and good runs.

Good runs have the learning rates that tuning found (benchmarks/RESULTS.md), or those of the recipe itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allo.compare.methods import METHODS
from allo.report.diagnosis import DIAGNOSES
from benchmarks.record import ROOT

PUBLISHED = Path(__file__).with_name("published.yaml")
DEMO, DPO = (ROOT / "src" / "allo" / "demo" / f"{name}.yaml" for name in ("allo", "dpo"))
PAIRS, FEEDBACK, PROBLEMS = (
    ROOT / "recipes" / "start" / f"{name}.yaml" for name in ("pairs", "feedback", "problems")
)
RATE, EPOCHS, BETA = "improve.training.learning_rate", "improve.training.num_train_epochs", "improve.beta"
FORGET_RATE = "forget.training.learning_rate"

NAMES = frozenset(each.name for each in DIAGNOSES)
Rows = list[dict[str, Any]]
Settings = Mapping[str, object]


@dataclass(frozen=True)
class Case:
    """One run. `name` is the fault planted in it or, of a good run, the method.

    `form` is its recipe, and `settings` what it sets there. `rows` makes its data from the laboratory's pairs.
    """

    name: str
    settings: Settings
    form: Path = PUBLISHED
    until: str = "improve"
    rows: Callable[[Rows], Rows] | None = None

    @property
    def is_good(self) -> bool:
        return self.name not in NAMES


def garbled(rows: Rows) -> Rows:
    """Return the pairs with one chosen answer of words in reverse order."""
    words = " ".join(reversed((rows[0]["prompt"] + rows[0]["chosen"]).split()))
    return [rows[0] | {"chosen": words}, *rows[1:]]


def shortened(rows: Rows) -> Rows:
    """Return pairs that prefer the first sentence of an answer to the answer."""
    return [row | {"chosen": row["chosen"].split(". ")[0] + ".", "rejected": row["chosen"]} for row in rows]


def lengthened(rows: Rows) -> Rows:
    """Return pairs that prefer an answer said twice to the answer."""
    return [row | {"chosen": f"{row['chosen']} {row['chosen']}", "rejected": row["chosen"]} for row in rows]


def pairs(rows: Rows) -> Rows:
    """Return the pairs as they are."""
    return rows


def labelled(rows: Rows) -> Rows:
    """Return both answers of each pair as rows of their own, labelled good and bad."""
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]


def plain(name: str, **settings: object) -> dict[str, object]:
    """Return a compared method's settings, and those of `improve`: a double underscore is a dot."""
    own = {f"improve.{key.replace('__', '.')}": value for key, value in settings.items()}
    return {**METHODS[name].set, **own}


def sparse(density: float, rate: float) -> dict[str, object]:
    """Return the form of many passes (recipes/lab_passes.yaml): forget until it is done, then learn the solutions."""
    return {
        "score.scorer": "edit", "score.marked": "first", "forget.loss": "unlikelihood", "forget.until": 0.1,
        "forget.training.num_train_epochs": 6, "improve.loss": "sft", "improve.keep": 1.0, EPOCHS: 4,
        **{f"{stage}.density": density for stage in ("forget", "improve")}, RATE: rate, FORGET_RATE: rate,
    }  # fmt: skip


# Rates of the laboratory, since those of the start recipes are for a model 200 times as large, which has a chat template.
STARTED: Settings = {
    "chat": False, "dtype": "float32", "max_length": 128, FORGET_RATE: 3e-4, RATE: 1e-4,
    "locate.training.learning_rate": 1e-4,
}  # fmt: skip
# The samples of the published form, under its run's name, so that they are shared.
SAMPLED: Settings = {
    "name": "allo", "data": {"task": "planted_flaws", "split": "train", "limit": 300},
    "sample": {"num_generations": 8, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 40, "batch_size": 512},
    "pair.max_pairs_per_prompt": 4,
}  # fmt: skip
EVALUATED: Settings = {
    "evaluate": {
        "sets": {name: {"task": "planted_flaws", "split": name, "limit": 100} for name in ("test", "reworded")},
        "kl": {"task": "planted_flaws", "split": "unrelated", "limit": 100},
        "num_generations": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 40, "batch_size": 512,
    }
}  # fmt: skip

FAULTS = (
    Case("nothing moved", {RATE: 1e-7}),
    Case("chosen answers fell", {RATE: 1e-3}),
    Case("rejected answers fell far", {BETA: 5.0, RATE: 1e-3}),
    Case("accuracy saturated", {RATE: 1e-3, EPOCHS: 3}, form=DPO, rows=shortened),
    Case("forgot too little", {FORGET_RATE: 1e-5}, until="forget"),
    Case("forgot too much", {FORGET_RATE: 3e-2}, until="forget"),
    Case("forgetting spread", {FORGET_RATE: 4e-3}, until="forget"),
    Case("until not reached", {"forget.until": 0.1}, until="forget"),
    Case(
        "loss jumped",
        {"improve.anchor": 1.0, "improve.training.per_device_train_batch_size": 8},
        form=DPO,
        rows=garbled,
    ),
    Case("loss rose", plain("rft", training__learning_rate=0.2)),
    Case("length changed", {EPOCHS: 3}, form=DPO, until="evaluate", rows=shortened),
    Case("far from the start", plain("dpo", training__learning_rate=1e-2), until="evaluate"),
)
# The same faults in other methods, and weaker ones.
AGAIN = (
    Case("nothing moved", plain("dpo", training__learning_rate=2e-6)),
    Case("chosen answers fell", plain("dpo", training__learning_rate=1e-3)),
    Case("rejected answers fell far", plain("dpo", beta=2.0, training__learning_rate=2e-3)),
    Case("forgot too little", {FORGET_RATE: 1e-5}, form=DEMO, until="forget"),
    Case("forgot too much", {FORGET_RATE: 1e-2, "forget.training.num_train_epochs": 3}, until="forget"),
    Case("forgetting spread", {FORGET_RATE: 1e-3, "forget.density": 0.5}, until="forget"),
    Case("until not reached", {"forget.until": 0.01, FORGET_RATE: 1e-4}, form=DEMO, until="forget"),
    Case("loss rose", plain("sft", training__learning_rate=0.05)),
    Case("length changed", {EPOCHS: 3}, form=DPO, until="evaluate", rows=lengthened),
    Case("far from the start", plain("sft", training__learning_rate=1e-2), until="evaluate"),
)

GOOD = tuple(
    Case(name, settings, form, "evaluate", rows)
    for name, settings, form, rows in (
        ("the published form", {}, PUBLISHED, None),
        ("dpo", plain("dpo", beta=0.5, training__learning_rate=2e-4), PUBLISHED, None),
        ("the demo's form", {}, DEMO, None),
        ("ipo", plain("ipo", training__learning_rate=2e-4), PUBLISHED, None),
        ("learning the solutions", {"improve.loss": "sft"}, DEMO, None),
        ("simpo", plain("simpo", training__learning_rate=2e-4), PUBLISHED, None),
        ("a random mask", {"locate.criterion": "random"}, DEMO, None),
        ("sft", plain("sft", training__learning_rate=8e-4), PUBLISHED, None),
        ("many passes on 5%", sparse(0.05, 3.2e-3), PUBLISHED, None),
        ("kto on feedback", STARTED, FEEDBACK, labelled),
        ("many passes on 20%", sparse(0.2, 9e-4), PUBLISHED, None),
        ("bco", plain("bco", beta=0.5, training__learning_rate=2e-4), PUBLISHED, None),
        ("dpo, a smaller beta", plain("dpo", training__learning_rate=1e-4), PUBLISHED, None),
        ("rft", plain("rft", training__learning_rate=8e-4), PUBLISHED, None),
        (
            "dpo in four passes",
            plain("dpo", beta=0.5, training__learning_rate=5e-5, training__num_train_epochs=4),
            PUBLISHED,
            None,
        ),
        ("lora", plain("lora_dpo", beta=0.5, training__learning_rate=1.6e-3), PUBLISHED, None),
        ("rloo", plain("rloo", beta=0.01, training__learning_rate=2e-4), PUBLISHED, None),
        ("start/pairs.yaml", STARTED, PAIRS, pairs),
        ("start/feedback.yaml with bco", {**STARTED, "improve.loss": "bco"}, FEEDBACK, labelled),
        ("start/problems.yaml", {**STARTED, **SAMPLED}, PROBLEMS, None),
    )
)

# Nine steps of four pairs on a model of 135 million weights: 48 pairs, 12 of which are held out. At the start recipe's rate, so
# few steps of forgetting do hardly anything.
SMALL: Settings = {
    "max_length": 256,
    **{f"{stage}.training.gradient_accumulation_steps": 1 for stage in ("locate", "forget", "improve")},
    FORGET_RATE: 1e-4,
}
SMALL_FAULTS = (
    Case("nothing moved", {RATE: 1e-8}, PAIRS),
    Case("chosen answers fell", {RATE: 1e-2}, PAIRS),
    Case("forgot too much", {FORGET_RATE: 3e-3}, PAIRS, until="forget"),
)
SMALL_GOOD = (
    Case("start/pairs.yaml", {}, PAIRS, until="evaluate"),
    Case("start/pairs.yaml with ipo", {"improve.loss": "ipo"}, PAIRS, until="evaluate"),
)
