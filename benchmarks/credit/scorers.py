"""Every token scorer, judged on the planted flaws of the laboratory: which words does it find?

The policy's own wrong completions are scored, as a run scores them, by models of the same run. The truth is
`planted_flaws.label_tokens`. The cause is the first wrong word of a completion; it is held against all right words.
The words that follow from it are wrong too, and count in the columns "all wrong words": there a scorer that asks
how likely a word is loses, since after a wrong operator the model finds the wrong result likely, and rightly so.

`edit` takes a prompt's solution where no sample of it is right, and `privileged` and `rewriter` always: "sees solutions"
says so. The rewriter is trained once, on samples of other problems, and its training is in no column.
The threshold is the best F1 on the causes in one half of the prompts; precision and recall are of the other half.

    python benchmarks/credit/scorers.py                                # the record
    python benchmarks/credit/scorers.py --policies shipped --limit 60  # a look
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the model is small

import numpy as np
import torch

from allo.artifacts import RunFolder, read_jsonl, remove
from allo.core.token_credit import random_scores
from allo.hf.contrast import train_sides
from allo.hf.models import Tokenizer, load_tokenizer
from allo.hf.scorers import SCORERS, WEIGHTS, Scored, Scorer, confidence
from allo.hf.start import read_start
from allo.hf.tokenization import tokenize
from allo.pipeline import run_all
from allo.recipe import Recipe, load_recipe
from allo.records import Prompt, Wrong
from allo.stages.score import probabilities, scoring_context
from allo.tasks.planted_flaws import label_tokens

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import confident
from judging import Words, auc, best_threshold, precision, recall, with_interval
from record import RESULTS, Record

FAMILIES = {"told": "train", "reworded": "reworded"}  # and the split that is sampled
POLICIES = ("shipped", "confident")
_STEPS = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1}
# The best of five (learning rate, epochs) for `contrastive` on both families.
CONTRAST = {"learning_rate": 3e-4, "num_train_epochs": 3, **_STEPS}
FLAWED = {"learning_rate": 1e-3, "num_train_epochs": 3, **_STEPS}  # of the confident policy
BATCH = 64
LIKELY = 0.5  # the least probability of a cause that the policy itself takes for right
SEES_SOLUTIONS = {"edit", "privileged", "rewriter"}


@dataclass(frozen=True)
class Case:
    """A run up to its warm-up, with the wrong completions that are of the form, and which of their words are wrong."""

    recipe: Recipe
    run: RunFolder
    rows: list[Scored]
    labels: list[list[bool]]

    @property
    def levels(self) -> list[int]:
        """Of each completion, by its problem's id."""
        return [int(row.wrong.prompt_id.split("/")[2]) for row in self.rows]


@dataclass(frozen=True)
class Cost:
    """What a scorer takes beside the starting model: seconds and bytes for the whole case."""

    preparing: float
    scoring: float
    training_bytes: int
    kept_bytes: int


def edit_without_solutions(rows: Sequence[Scored], context: Any) -> list[list[float]]:
    """`edit` where the policy's own right samples are all there is."""
    return SCORERS["edit"]([replace(row, wrong=replace(row.wrong, solution=None)) for row in rows], context)


def all_scorers(recipe: Recipe) -> dict[str, tuple[str, Scorer]]:
    """Label -> the scorer's name and function; `rewriter` where there is one."""
    assert recipe.score is not None
    left_out = {"rewriter"} if recipe.score.rewriter is None else set()
    own = {name: (name, scorer) for name, scorer in SCORERS.items() if name not in left_out}
    return own | {"edit, own samples alone": ("edit", edit_without_solutions)}


def make_case(policy: str, family: str, work: Path, *, limit: int, rewriter: Path | None) -> Case:
    """Sample, judge and pair the family's problems, and train the warm-up."""
    package = files("allo")
    with as_file(package / "lab") as model, as_file(package / "demo") as recipes:
        own: dict[str, Any] = {
            "model": str(model),
            "out": str(work),
            "name": f"{policy}-{family}",
            "data": {"task": "planted_flaws", "split": FAMILIES[family], "limit": limit},
            "score.training": CONTRAST,
            "score.rewriter": None if rewriter is None else str(rewriter),
        }
        if policy == "confident":
            demonstrations, problems = confident.write_files(family, work)
            own["data"] = {"file": str(problems), "limit": limit}
            own["sft"] = {"sources": [{"file": str(demonstrations)}], "training": FLAWED}
        recipe = load_recipe(
            recipes / "allo.yaml", [f"{key}={json.dumps(value)}" for key, value in own.items()]
        )
        run = run_all(recipe, until="locate")
    tokenizer = load_tokenizer(read_start(run).model)
    found = list(labelled(read_jsonl(run.wrong, Wrong), tokenizer, max_length=recipe.max_length))
    return Case(recipe, run, [row for row, _ in found], [labels for _, labels in found])


def labelled(
    wrong: Sequence[Wrong], tokenizer: Tokenizer, *, max_length: int
) -> Iterator[tuple[Scored, list[bool]]]:
    """Completions with a wrong word, a label a word; those that are not of the form are left out."""
    for one in wrong:
        prompt = Prompt(one.prompt_id, one.prompt, solution=one.solution)
        labels = label_tokens(prompt, one.completion)
        tokens = tokenize(tokenizer, one.prompt, one.completion, finished=one.finished, max_length=max_length)
        if labels is not None and any(labels) and tokens is not None:
            assert len(labels) == len(tokens.completion_ids) - one.finished, one.completion
            yield Scored(one, tokens), labels


def score(case: Case, name: str, scorer: Scorer) -> tuple[list[list[float]], Cost]:
    """The scorer's probabilities of every completion's words, and what they cost."""
    remove(case.run.contrast)  # each scorer pays for all that it asks
    start = time.monotonic()
    trained = train_sides(case.recipe, case.run, _sides(name))
    prepared = time.monotonic()
    context = scoring_context(case.recipe, case.run, name)
    begun = time.monotonic()
    batches = [case.rows[first : first + BATCH] for first in range(0, len(case.rows), BATCH)]
    raw = [one for batch in batches for one in scorer(batch, context)]
    ended = time.monotonic()
    kept = sum(tensor.nbytes for weights in context.weights.values() for tensor in weights.values())
    flat = probabilities(name, raw).split([len(one) for one in raw])
    scores = [one[: len(own)].tolist() for one, own in zip(flat, case.labels, strict=True)]
    return scores, Cost(prepared - start, ended - begun, trained, kept)


def _sides(name: str) -> list[str]:
    return [side for side in WEIGHTS.get(name, ()) if side != "warmup"]


def words_of(case: Case, scores: Sequence[Sequence[float]]) -> tuple[Words, np.ndarray]:
    """All words side by side, and which of them are causes or right: the rest follow from a cause."""
    causal = [
        [not wrong or place == labels.index(True) for place, wrong in enumerate(labels)]
        for labels in case.labels
    ]
    owner = [number for number, labels in enumerate(case.labels) for _ in labels]
    flat = [np.array([each for one in rows for each in one]) for rows in (scores, case.labels, causal)]
    return Words(flat[0], flat[1], np.array(owner)), flat[2]


def judge(case: Case, scores: Sequence[Sequence[float]], likely: np.ndarray, *, level: int) -> dict[str, Any]:
    """The figures of one scorer on the completions of one level; `likely`: those with a likely cause."""
    words, causal = words_of(case, scores)
    tuned = np.array([random_scores(row.wrong.prompt_id, 1, seed=0)[0] < 0.5 for row in case.rows])
    threshold = best_threshold(words.where(causal & tuned[words.owner]))
    here = np.array(case.levels) == level
    everything = words.where(here[words.owner])
    causes = words.where(here[words.owner] & causal)
    sure = words.where((here & likely)[words.owner] & causal)
    measured = words.where((here & ~tuned)[words.owner])
    held_out = words.where((here & ~tuned)[words.owner] & causal)

    def figure(kind: Callable[..., Any], of: Words, **own: float) -> dict[str, float] | None:
        return with_interval(kind(of, **own), of, seed=0) if of.wrong.any() else None

    return {
        "completions": int(here.sum()),
        "AUC, causes": figure(auc, causes),
        "of them likely": int((here & likely).sum()),
        "AUC, likely causes": figure(auc, sure),
        "AUC, all wrong words": figure(auc, everything),
        "threshold": threshold,
        "precision, causes": figure(precision, held_out, threshold=threshold),
        "recall, causes": figure(recall, held_out, threshold=threshold),
        "precision, all wrong words": figure(precision, measured, threshold=threshold),
        "recall, all wrong words": figure(recall, measured, threshold=threshold),
    }


def likely_causes(case: Case) -> np.ndarray:
    """Of each completion, whether the policy itself finds its cause likely."""
    scores, _ = score(case, "confidence", confidence)
    causes = [one[labels.index(True)] for one, labels in zip(scores, case.labels, strict=True)]
    return np.array(causes) > LIKELY


def rows_of(case: Case, *, policy: str, family: str) -> Iterator[dict[str, Any]]:
    likely = likely_causes(case)
    for label, (name, scorer) in all_scorers(case.recipe).items():
        scores, cost = score(case, name, scorer)
        for level in sorted(set(case.levels)):
            yield {
                "policy": policy,
                "family": family,
                "level": level,
                "scorer": label,
                "sees solutions": "yes" if label in SEES_SOLUTIONS else "no",
                **judge(case, scores, likely, level=level),
                "seconds to prepare": cost.preparing,
                "seconds to score": cost.scoring,
                "bytes in training": cost.training_bytes,
                "bytes beside the model": cost.kept_bytes,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge the token scorers on the laboratory's planted flaws.")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES))
    parser.add_argument("--limit", type=int, default=500, help="problems a policy and family")
    parser.add_argument("--rewriter", type=Path, help="a folder of `allo rewriter train`, to judge it too")
    parser.add_argument("--work", type=Path, help="where the runs lie, and stay")
    parser.add_argument("--output", type=Path, default=RESULTS / "scorers.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Record(options.output, "scorers", device="cpu")
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        for policy in options.policies:
            for family in options.families:
                case = make_case(policy, family, work, limit=options.limit, rewriter=options.rewriter)
                for row in rows_of(case, policy=policy, family=family):
                    rows.append(row)
                    shown = {key: value for key, value in row.items() if not key.startswith(("sec", "byt"))}
                    print(json.dumps(shown), flush=True)
                    record.write(rows)


if __name__ == "__main__":
    main()
