"""Every token scorer, judged on the laboratory's planted flaws: the words that it finds, and its cost.

The policy's own wrong completions are scored as in a run, by models of the same run. The truth is
`planted_flaws.label_tokens`. A completion's cause is its first wrong word, which is compared with all right words.
The words that follow from it are wrong too, and count in "all wrong words". Scorers of likelihood do badly there:
given the wrong operator, the model rightly finds the wrong result likely.

`edit` uses a prompt's solution if no sample of it is right; `privileged` and `rewriter` always do, as "sees
solutions" shows. The rewriter is trained here, on samples of problems that are not judged. Levels 1 to 3 are those of
the shipped model; level 4 is that of a model that is sure of a flaw (confident.py). The threshold is the best F1 on
the causes in one half of the prompts. Precision and recall are of the other half, for all levels of the shipped model
together. Costs are for the shipped model and the family told.

    python -m benchmarks.credit.scorers                               # both records
    python -m benchmarks.credit.scorers --limit 60 --output FOLDER    # a quick look
    python -m benchmarks.credit.scorers --work FOLDER                 # keeps runs and rewriter, and can resume
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the model is small

import numpy as np
import torch

from allo.files.artifacts import RunFolder, read_jsonl, remove
from allo.files.records import Prompt, Wrong
from allo.models.collate import SIDES
from allo.models.load import Tokenizer, load_tokenizer
from allo.models.start import read_start
from allo.models.tokenization import tokenize
from allo.pipeline import run_all
from allo.recipe import Recipe, load_recipe
from allo.recipe.own_code import function_of
from allo.recipe.scores import SCORERS
from allo.stages.score import probabilities, scoring_context
from allo.tasks.planted_flaws import label_tokens
from allo.tokens.contrast import train_sides
from allo.tokens.scorers import Scored, ScoringFunction, edit
from allo.tokens.token_credit import random_scores
from benchmarks.credit import confident
from benchmarks.credit.judging import Words, auc, best_threshold, precision, recall, with_interval
from benchmarks.credit.rewriter import trained_rewriter
from benchmarks.record import RESULTS, Record

# And the sampled split: no problem shares its numbers with one that the model or the rewriter learnt from.
FAMILIES = {"told": "validation", "reworded": "reworded"}
POLICIES = {"shipped": (1, 2, 3), "confident": (confident.LEVEL,)}  # and the levels that are judged
_STEPS = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1}
# The best of five (learning rate, epochs) for `contrastive` on both families.
CONTRAST = {"learning_rate": 3e-4, "num_train_epochs": 3, **_STEPS}
FLAWED = {"learning_rate": 1e-3, "num_train_epochs": 3, **_STEPS}  # of the confident policy
BATCH = 64
REWRITER_PROBLEMS = 3  # for training the rewriter, per judged problem, in each family
SEES_SOLUTIONS = {scorer.name for scorer in SCORERS.values() if scorer.sees_solution}


@dataclass(frozen=True)
class Case:
    """A run up to its warm-up, with the well-formed wrong completions and labels of their wrong words."""

    recipe: Recipe
    run: RunFolder
    rows: list[Scored]
    labels: list[list[bool]]

    @property
    def levels(self) -> list[int]:
        """Return each completion's level, from its problem's id."""
        return [int(row.wrong.prompt_id.split("/")[2]) for row in self.rows]


@dataclass(frozen=True)
class Cost:
    """A scorer's cost in addition to the starting model's, for the whole case.

    `training`: CPU seconds, None if unknown. `scoring`: CPU seconds. `size`: bytes, the maximum of training state and
    other models' weights.
    """

    training: float | None
    scoring: float
    size: int


Figures = dict[str, Any]


def edit_without_solutions(rows: Sequence[Scored], context: Any) -> list[list[float]]:
    """Score with `edit`, given only the policy's own right samples."""
    return edit([replace(row, wrong=replace(row.wrong, solution=None)) for row in rows], context)


def all_scorers(recipe: Recipe) -> dict[str, tuple[str, ScoringFunction]]:
    """Return label -> the scorer's name and function; `rewriter` if there is one."""
    assert recipe.score is not None
    left_out = {"rewriter"} if recipe.score.rewriter is None else set[str]()
    own = {
        scorer.name: (scorer.name, function_of(scorer.function, key="scorer"))
        for scorer in SCORERS.values()
        if not left_out & set(scorer.needs)
    }
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
    """Yield completions with a wrong word, and a label per word; malformed completions are skipped."""
    for one in wrong:
        prompt = Prompt(one.prompt_id, one.prompt, solution=one.solution)
        labels = label_tokens(prompt, one.completion)
        tokens = tokenize(
            tokenizer,
            one.prompt,
            one.completion,
            finished=one.finished,
            completion_ids=one.token_ids,
            max_length=max_length,
        )
        if labels is not None and any(labels) and tokens is not None:
            assert len(labels) == len(tokens.completion_ids) - one.finished, one.completion
            yield Scored(one, tokens), labels


def train_both_sides(case: Case) -> dict[str, Cost]:
    """Train the models that scorers contrast, by side, and return their costs."""
    remove(case.run.contrast)
    costs = {}
    for side in SIDES:
        begun = time.process_time()
        state = train_sides(case.recipe, case.run, [side])
        costs[side] = Cost(time.process_time() - begun, 0.0, state)
    return costs


def score(
    case: Case, name: str, scorer: ScoringFunction, trained: Mapping[str, Cost]
) -> tuple[list[list[float]], Cost]:
    """Return the scorer's probabilities of every completion's words, and their cost; `trained`: the other models."""
    context = scoring_context(case.recipe, case.run, name)
    begun = time.process_time()
    batches = [case.rows[first : first + BATCH] for first in range(0, len(case.rows), BATCH)]
    raw = [one for batch in batches for one in scorer(batch, context)]
    ended = time.process_time()
    flat = probabilities(name, raw).split([len(one) for one in raw])
    scores = [one[: len(own)].tolist() for one, own in zip(flat, case.labels, strict=True)]
    if "rewriter" in SCORERS[name].needs:
        training = trained[name].training
        size = sum(param.nbytes for param in context.model.parameters())
    else:
        own_models = [trained[model] for model in SCORERS[name].weights if model in trained]
        training = sum((model.training or 0.0 for model in own_models), 0.0)
        kept = sum(tensor.nbytes for weights in context.weights.values() for tensor in weights.values())
        size = max([kept, *(model.size for model in own_models)])
    return scores, Cost(training, ended - begun, size)


def words_of(case: Case, scores: Sequence[Sequence[float]]) -> tuple[Words, np.ndarray]:
    """Concatenate all words; mark those that are causes or right, since the rest follow from a cause."""
    causal = [
        [not wrong or place == labels.index(True) for place, wrong in enumerate(labels)]
        for labels in case.labels
    ]
    owner = [number for number, labels in enumerate(case.labels) for _ in labels]
    flat = [np.array([each for one in rows for each in one]) for rows in (scores, case.labels, causal)]
    return Words(flat[0], flat[1], np.array(owner)), flat[2]


def judge(case: Case, scores: Sequence[Sequence[float]], *, levels: Sequence[int]) -> Figures:
    """Return one scorer's figures: AUC on the causes of each level, and its marks on all levels together."""
    words, causal = words_of(case, scores)
    level = np.array(case.levels)[words.owner]
    tuned = np.array([random_scores(row.wrong.prompt_id, 1, seed=0)[0] < 0.5 for row in case.rows])
    tuned = tuned[words.owner]
    threshold = best_threshold(words.where(causal & tuned))
    held_out = words.where(causal & ~tuned)

    def figure(kind: Callable[..., Any], of: Words, **own: float) -> dict[str, float] | None:
        return with_interval(kind(of, **own), of, seed=0) if of.wrong.any() else None

    return {
        **{str(one): figure(auc, words.where(causal & (level == one))) for one in levels},
        "precision": figure(precision, held_out, threshold=threshold),
        "recall": figure(recall, held_out, threshold=threshold),
        "AUC, all wrong words": figure(auc, words),
        "threshold": threshold,
    }


def figures_of(case: Case, *, levels: Sequence[int], trained: Mapping[str, Cost]) -> dict[str, Figures]:
    """Return every scorer's figures and cost."""
    trained = {**trained, **train_both_sides(case)}
    found = {}
    for label, (name, scorer) in all_scorers(case.recipe).items():
        scores, cost = score(case, name, scorer, trained)
        found[label] = judge(case, scores, levels=levels) | {"cost": cost}
        if name == "confidence":
            print_likely(case, scores)
    return found


def print_likely(case: Case, confidence: Sequence[Sequence[float]]) -> None:
    """Print how often the policy itself gives a cause more than one half."""
    causes = np.array([one[labels.index(True)] for one, labels in zip(confidence, case.labels, strict=True)])
    for level in sorted(set(case.levels)):
        here = causes[np.array(case.levels) == level]
        print(f"{case.recipe.name}, level {level}: completions {len(here)}, likely {np.mean(here > 0.5):.2f}")


def cause_rows(found: Mapping[tuple[str, str], Mapping[str, Figures]]) -> list[dict[str, Any]]:
    """Return `lab-scorers`: a row per scorer, its AUC on causes by family and level, and its cost."""
    first = next(iter(found.values()))
    return [
        {
            "scorer": label,
            "sees solutions": "yes" if label in SEES_SOLUTIONS else "no",
            **{
                f"{family} {level}": found.get((policy, family), {}).get(label, {}).get(str(level))
                for family in FAMILIES
                for policy, levels in POLICIES.items()
                for level in levels
            },
            "training, CPU s": figures["cost"].training,
            "scoring, CPU s": figures["cost"].scoring,
            "MB": figures["cost"].size / 1e6,
        }
        for label, figures in first.items()
    ]


def mark_rows(found: Mapping[tuple[str, str], Mapping[str, Figures]]) -> list[dict[str, Any]]:
    """Return `lab-scorers-marks`: a row per scorer with its marks in the shipped model's completions."""
    kinds = ("precision", "recall", "AUC, all wrong words", "threshold")
    labels = next(iter(found.values()))
    return [
        {
            "scorer": label,
            **{
                f"{family}: {kind}": found.get(("shipped", family), {}).get(label, {}).get(kind)
                for family in FAMILIES
                for kind in kinds
            },
        }
        for label in labels
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge the token scorers on the laboratory's planted flaws.")
    parser.add_argument("--policies", nargs="+", choices=tuple(POLICIES), default=tuple(POLICIES))
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES))
    parser.add_argument("--limit", type=int, default=250, help="problems a policy and family")
    judged = parser.add_mutually_exclusive_group()
    judged.add_argument(
        "--rewriter", type=Path, help="a folder of `allo rewriter train`, not one trained here"
    )
    judged.add_argument("--no-rewriter", action="store_true", help="leave the rewriter out")
    parser.add_argument("--work", type=Path, help="where the runs lie, and stay")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of both records")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables = {"lab-scorers": cause_rows, "lab-scorers-marks": mark_rows}
    records = {name: Record(options.output / f"{name}.json", name, device="cpu") for name in tables}
    found: dict[tuple[str, str], dict[str, Figures]] = {}
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        rewriter, seconds = options.rewriter, None
        if rewriter is None and not options.no_rewriter:
            rewriter, seconds = trained_rewriter(work, problems=REWRITER_PROBLEMS * options.limit)
        trained = {"rewriter": Cost(seconds, 0.0, 0)}
        for policy in options.policies:
            for family in options.families:
                case = make_case(policy, family, work, limit=options.limit, rewriter=rewriter)
                found[policy, family] = figures_of(case, levels=POLICIES[policy], trained=trained)
                for name, rows in tables.items():
                    records[name].write(rows(found))


if __name__ == "__main__":
    main()
