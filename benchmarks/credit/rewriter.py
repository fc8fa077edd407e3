"""A rewriter for the laboratory's model, and how well it tells the first wrong word of a sampled completion.

It is trained on samples of `train` problems, rewritten as their solutions (in the laboratory the exact minimal rewrite),
and judged on samples of problems that neither it nor the policy was trained on, in sentences of alignment's family and
of another one. The area under the ROC curve is that of the first wrong word of each wrong completion against all of
their right words; its interval is a bootstrap's over completions.

    python benchmarks/credit/rewriter.py                                  # the record
    python benchmarks/credit/rewriter.py --problems 200 --limit 60 --out draft.json      # tried small
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the model is small

import numpy as np

from allo.artifacts import RunFolder, read_jsonl
from allo.hf.models import load_tokenizer
from allo.hf.rewriter import load_rewriter
from allo.hf.scorers import Context, Scored, rewriter
from allo.hf.tokenization import tokenize
from allo.pipeline import run_all
from allo.recipe import load_recipe
from allo.records import Prompt, Wrong
from allo.rewriter.cases import open_run
from allo.rewriter.data import Settings, make_data
from allo.rewriter.train import read_settings, train_rewriter
from allo.tasks import planted_flaws

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import RESULTS, ROOT, Record

MAX_LENGTH = 128  # the laboratory's; a rewriter's rows hold the problem, two solutions and the rewrite
TRAINING = (
    *("dtype=float32", "device=cpu", f"max_length={2 * MAX_LENGTH}"),
    *("training.learning_rate=2e-3", "training.per_device_train_batch_size=32"),
    "training.gradient_accumulation_steps=1",
)
FAMILIES = {"told": "test", "reworded": "reworded"}
BATCH = 64
THRESHOLD = 0.5  # the recipe's default
DRAWS = 1000  # of the bootstrap


def trained_rewriter(work: Path, *, problems: int, seed: int = 0) -> Path:
    """The folder of a rewriter trained on samples of `train` problems; made once."""
    folder = work / "rewriter"
    if folder.exists():
        return folder
    run = open_run(sampled(work, "train", problems, seed=seed).path)
    make_data(run, Settings("gold"), work / "rewrites.jsonl")
    with as_file(files("allo") / "lab") as lab:
        train_rewriter(work / "rewrites.jsonl", str(lab), folder, read_settings([*TRAINING, f"seed={seed}"]))
    return folder


def sampled(work: Path, split: str, limit: int, *, seed: int) -> RunFolder:
    """A run of the demo's recipe up to its wrong completions."""
    package = files("allo")
    with as_file(package / "lab") as lab, as_file(package / "demo") as recipes:
        own = {"name": split, "out": str(work), "model": str(lab), "seed": seed}
        own |= {"data.split": split, "data.limit": limit}
        return run_all(
            load_recipe(recipes / "allo.yaml", [f"{key}={json.dumps(value)}" for key, value in own.items()]),
            until="pair",
        )


def rewriter_scores(folder: Path, wrong: Sequence[Wrong]) -> list[list[float]]:
    """The probability of each token of each completion (EOS included), which all end by themselves."""
    with as_file(files("allo") / "lab") as lab:
        tokenizer = load_tokenizer(lab)
    own = load_rewriter(
        folder, tokenizer, policy="the laboratory's model", max_length=MAX_LENGTH, device="cpu"
    )
    context = Context(own.model, tokenizer, MAX_LENGTH, seed=0, rewriter=own)
    rows = []
    for one in wrong:
        tokens = tokenize(tokenizer, one.prompt, one.completion, max_length=MAX_LENGTH)
        assert tokens is not None and one.finished
        rows.append(Scored(one, tokens))
    scores: list[list[float]] = []
    for start in range(0, len(rows), BATCH):
        scores += rewriter(rows[start : start + BATCH], context)
    return scores


@dataclass(frozen=True)
class Judged:
    """A wrong completion's scores: of its first wrong word, of all wrong ones, and of its right ones."""

    level: int
    first: float
    wrong: list[float]
    right: list[float]


def judged(completions: Sequence[Wrong], scores: Sequence[list[float]]) -> list[Judged]:
    """The completions whose wrong words are known, and of which one is wrong."""
    found = []
    for one, score in zip(completions, scores, strict=True):
        labels = planted_flaws.label_tokens(
            Prompt(one.prompt_id, one.prompt, solution=one.solution), one.completion
        )
        if labels is None or not any(labels):
            continue
        words = list(zip(score, labels, strict=False))  # EOS is no word
        found.append(
            Judged(
                level=int(one.prompt_id.split("/")[2]),
                first=score[labels.index(True)],
                wrong=[number for number, bad in words if bad],
                right=[number for number, bad in words if not bad],
            )
        )
    return found


def area(rows: Sequence[Judged]) -> float:
    """How often a first wrong word's score lies below a right word's; ties count half."""
    first = np.array([row.first for row in rows])
    right = np.sort([number for row in rows for number in row.right])
    not_above = np.searchsorted(right, first, side="right")
    below = np.searchsorted(right, first, side="left")
    return float(1 - (not_above + below).mean() / 2 / len(right))


def area_with_interval(rows: Sequence[Judged]) -> dict[str, float]:
    """The area, and its 95% interval by a bootstrap over completions."""
    generator = np.random.default_rng(0)
    draws = [area([rows[i] for i in generator.integers(len(rows), size=len(rows))]) for _ in range(DRAWS)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": area(rows), "low": float(low), "high": float(high)}


def figures(rows: Sequence[Judged]) -> dict[str, Any]:
    """Precision and recall are those of all wrong words, marked where their score lies below the threshold."""
    marked = sum(number < THRESHOLD for row in rows for number in row.wrong)
    amiss = sum(number < THRESHOLD for row in rows for number in row.right)
    return {
        "wrong completions": len(rows),
        "AUC, first wrong word": area_with_interval(rows),
        "precision": marked / max(marked + amiss, 1),
        "recall": marked / sum(len(row.wrong) for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--problems", type=int, default=1200, help="train problems that the rewriter's rows come from"
    )
    parser.add_argument("--limit", type=int, default=400, help="problems of a family to judge it on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "credit", help="where runs and rewriter lie"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "credit_rewriter.json")
    options = parser.parse_args()
    record = Record(options.out, "credit_rewriter", device="cpu")
    folder = trained_rewriter(options.work, problems=options.problems, seed=options.seed)
    rows = []
    for family, split in FAMILIES.items():
        run = sampled(options.work, split, options.limit, seed=options.seed)
        wrong = [one for one in read_jsonl(run.wrong, Wrong) if one.finished]
        begun = time.perf_counter()
        scores = rewriter_scores(folder, wrong)
        seconds = time.perf_counter() - begun
        found = judged(wrong, scores)
        for level in (*planted_flaws.LEVELS, None):
            chosen = [row for row in found if level in (None, row.level)]
            own = {"family": family, "level": "all" if level is None else level} | figures(chosen)
            rows.append(own | {"ms a completion": 1000 * seconds / len(wrong)})
            print(rows[-1], flush=True)
    record.write(rows)


if __name__ == "__main__":
    main()
