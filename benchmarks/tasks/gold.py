"""Each verifier on the right answers of its own set: it must accept them in any wording, and no others.

Right answers are worded as in fine-tuning and as models often do: in dollars or a box, as a letter, in capitals.
Wrong ones are right answers of other problems in the set, drawn so that no problem keeps its own. If there are
options, a random option also serves.

    python -m benchmarks.tasks.gold --data FOLDER                  # rows of FOLDER instead of the hub's
    python -m benchmarks.tasks.gold --data FOLDER --output OTHER   # a quick look

Refused right answers are listed. Exits with 1 if a set misses a bound.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from allo import tasks
from allo.files.records import Completion, Prompt
from allo.recipe.tasks import TASKS
from allo.stages.judge import verify
from benchmarks.record import RESULTS, Record, Row

SPLITS = {task.name: task.splits for task in TASKS.values() if task.has_answers and not task.is_generated}
LEAST_GOLD = 0.995
MOST_OTHERS = {"choice": 0.30, "final_answer": 0.02}
"""The share of other problems' answers that a verifier may take."""
ERRORS = 3
"""Standard errors that a share may lie above chance: of two answers every second is right."""


@dataclass(frozen=True)
class Check:
    """The verifier's results for one set. Shares in [0, 1]; `refused` holds `(id, completion)`."""

    num: int
    gold: float
    said_otherwise: float
    others: float
    most_others: float
    options: float | None
    most_options: float | None
    refused: list[tuple[str, str]]

    @property
    def passed(self) -> bool:
        within = self.options is None or self.most_options is None or self.options <= self.most_options
        return self.gold >= LEAST_GOLD and self.others <= self.most_others and within


def check(prompts: Sequence[Prompt], *, seed: int = 0) -> Check:
    """Judge right and wrong answers to the problems of one set."""
    draw = random.Random(seed)
    gold = [(prompt, prompt.solution or "") for prompt in prompts]
    otherwise = [(prompt, text) for prompt in prompts for text in ways_of_saying(prompt)]
    others = [(prompt, _announced(other.answer or "")) for prompt, other in deranged(prompts, draw)]
    options = [(prompt, _announced(draw.choice(prompt.choices))) for prompt in prompts if prompt.choices]
    by_choice = len(options) == len(prompts)
    limit = MOST_OTHERS["choice" if by_choice else "final_answer"]
    chance = fmean(1 / len(set(prompt.choices or [])) for prompt, _ in options) if options else 0.0
    refused = _refused(gold), _refused(otherwise)
    return Check(
        num=len(prompts),
        gold=1 - len(refused[0]) / len(gold),
        said_otherwise=1 - len(refused[1]) / len(otherwise),
        others=1 - len(_refused(others)) / len(others),
        most_others=max(limit, above(same_by_chance(prompts), len(prompts)) if by_choice else 0.0),
        options=1 - len(_refused(options)) / len(options) if options else None,
        most_options=above(chance, len(options)) if options else None,
        refused=[(prompt.id, text) for prompt, text in (*refused[0], *refused[1])],
    )


def ways_of_saying(prompt: Prompt) -> Iterator[str]:
    """Yield completions that end with the right answer, in models' wordings."""
    answer = " ".join((prompt.answer or "").split())
    yield f"The final answer is: $\\boxed{{{answer}}}$. I hope it is correct."
    if not prompt.choices:
        yield _announced(f"${answer.removesuffix('.')}$")
        return
    letter = chr(ord("A") + prompt.choices.index(prompt.answer or ""))
    yield _announced(f"({letter})")
    yield _announced(f"{letter}. {answer}")
    yield _announced(answer.upper())


def deranged(prompts: Sequence[Prompt], draw: random.Random) -> Iterator[tuple[Prompt, Prompt]]:
    """Pair each problem with another one, each used once: neighbours in a random circle."""
    circle = list(prompts)
    draw.shuffle(circle)
    return zip(circle, [*circle[1:], circle[0]], strict=True)


def same_by_chance(prompts: Sequence[Prompt]) -> float:
    """Return the chance that two problems have the same answer."""
    num = len(prompts)
    counts = Counter(prompt.answer for prompt in prompts)
    return sum(count * (count - 1) for count in counts.values()) / (num * (num - 1))


def above(chance: float, num: int) -> float:
    """Return a bound that a share of `num` draws hardly exceeds."""
    return float(chance + ERRORS * (chance * (1 - chance) / num) ** 0.5)


def _announced(answer: str) -> str:
    return f"The answer is {answer.removesuffix('.')}."


def _refused(said: Sequence[tuple[Prompt, str]]) -> list[tuple[Prompt, str]]:
    """Return the answers that do not verify."""
    return [
        (prompt, text)
        for prompt, text in said
        if not verify(prompt, Completion(prompt.id, index=0, text=text, finished=True, num_tokens=0)).correct
    ]


def row(task: str, split: str, found: Check) -> Row:
    return {
        "set": f"{task}, {split}",
        "problems": found.num,
        "gold verified": _percent(found.gold),
        "said in other ways": _percent(found.said_otherwise),
        "another problem's answer taken": _percent(found.others),
        "at most": _percent(found.most_others),
        "an option at random taken": _percent(found.options),
        "does not verify": ", ".join(dict.fromkeys(name for name, _ in found.refused)) or "–",
    }


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.2f}%"


def main() -> int:
    parser = argparse.ArgumentParser(description="Check each verifier on its own gold answers.")
    parser.add_argument("--data", type=Path, help="folder of local rows; without it the hub is read")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tasks", nargs="+", choices=list(SPLITS), default=list(SPLITS))
    options = parser.parse_args()
    record = Record(options.output / "tasks-gold.json", "tasks-gold", device="cpu")
    rows, passed = [], True
    for task in options.tasks:
        for split in SPLITS[task]:
            found = check(list(tasks.load(task, split, folder=options.data)))
            rows.append(row(task, split, found))
            passed &= found.passed
            print(f"{task}, {split}: {'passed' if found.passed else 'FAILED'} {rows[-1]}", flush=True)
            for name, text in found.refused:
                print(f"  not verified: {name}: {text[-120:]!r}")
    record.write(rows)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
