"""Score the tokens of wrong completions, and turn the scores into weights (method.md 1.2)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from allo.console import say
from allo.files.artifacts import RunFolder, read_jsonl, remove, written_aside
from allo.files.batches import Batches
from allo.files.records import Feedback, Pair, TokenScores, Verdict, Wrong
from allo.models.collate import SIDES
from allo.models.load import Tokenizer
from allo.models.policy import check_head, shares_prefix
from allo.models.start import give_date, load_start, load_start_tokenizer
from allo.ranks import rank
from allo.recipe import Recipe
from allo.recipe.scores import Score, scorer_entry
from allo.stages.locate import WARMUP_WEIGHTS
from allo.tasks.pairing import answer_row
from allo.tokens.contrast import side_weights, train_sides
from allo.tokens.rewriter import load_rewriter
from allo.tokens.scorers import Context, GradedSample, Scored, ScoringFunction, scorers_of
from allo.tokens.scoring import probabilities, token_scores, tokenized

_NUMBERS = pa.list_(pa.float64())
_COLUMNS = [
    ("id", pa.string()),
    ("token_ids", pa.list_(pa.int64())),
    ("scores", _NUMBERS),
    ("weights", _NUMBERS),
    ("tokens", pa.list_(pa.string())),
]
Batch = Sequence[Scored]


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `05-token-scores.parquet`."""
    assert recipe.score is not None
    wrong = read_jsonl(folder.wrong, Wrong)
    if not recipe.score.solutions:
        wrong = [replace(one, solution=None) for one in wrong]
    tokenizer = load_start_tokenizer(recipe, folder)
    rows = _fitting(wrong, tokenizer, max_length=recipe.max_length)
    size = recipe.score.batch_size
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    parts: list[Batches] = []
    raw: dict[str, list[list[float]]] = {}
    # One scorer at a time: each has the model in the dtype that it needs, and no other scorer's weights are in memory.
    for place, (name, scorer) in enumerate(scorers_of(recipe.score).items()):
        lines = Batches(folder.token_scores, len(batches), suffix=f".{place}.part")
        if lines.left:
            make = partial(_scored, name, scorer, batches, recipe, folder)
            lines.fill(make, f"score {name}", together=recipe.shards is not None)
        raw[name] = [row["scores"] for batch in lines.rows() for row in batch]
        parts.append(lines)
    if rank():
        return {}
    found = {name: probabilities(name, scores) for name, scores in raw.items()}
    weighted = token_scores(
        rows,
        found[recipe.score.scorer],
        rule=recipe.score.weights,
        threshold=recipe.score.threshold,
        marked=recipe.score.marked,
        beside={name: found[name] for name in recipe.score.beside},
    )
    _write(folder, weighted, recipe.score, tokenizer)
    for lines in parts:
        lines.discard()
    remove(folder.contrast)
    weights = [weight for row in weighted for weight in row.weights]
    counts = {"tokens": len(weights), "weighted": sum(weight != 0 for weight in weights)}
    say(f"score: {recipe.score.share_said(counts['weighted'], counts['tokens'])}")
    return {"completions": len(rows), "dropped": len(wrong) - len(rows), **counts}


def _scored(
    name: str,
    scorer: ScoringFunction,
    batches: Sequence[Batch],
    recipe: Recipe,
    folder: RunFolder,
    numbers: Iterator[int],
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield one scorer's raw scores of the batches with these numbers."""
    context = scoring_context(recipe, folder, name)
    for number in numbers:
        scores = zip(batches[number], scorer(batches[number], context), strict=True)
        yield number, [{"id": row.wrong.id, "scores": one} for row, one in scores]


def scoring_context(recipe: Recipe, folder: RunFolder, scorer: str) -> Context:
    """Return what a scorer may look at: the starting model or the rewriter, the samples, and the weights of other models.

    Models of the pairs' sides are trained first if the scorer asks them. The starting model is then in fp32.
    """
    entry = scorer_entry(scorer)
    if "rewriter" in entry.needs:
        return _rewriting_context(recipe, folder)
    names = entry.weights
    train_sides(recipe, folder, [name for name in names if name in SIDES])
    model, tokenizer = load_start(recipe, folder, dtype=torch.float32 if names else None)
    check_head(model)
    files = {name: side_weights(folder, name) for name in names} | {"warmup": folder.warmup / WARMUP_WEIGHTS}
    weights = {name: load_file(files[name]) for name in names}
    return Context(
        model,
        tokenizer,
        recipe.max_length,
        recipe.seed_of_data,
        samples=_samples(folder),
        weights=weights,
        shared_prefix=shares_prefix(model),
    )


def _rewriting_context(recipe: Recipe, folder: RunFolder) -> Context:
    """Return the rewriter in place of the starting model; the tokenizer is the policy's, as are the completions' tokens."""
    assert recipe.score is not None and recipe.score.rewriter is not None
    tokenizer = load_start_tokenizer(recipe, folder)
    own = load_rewriter(
        recipe.score.rewriter,
        tokenizer,
        policy=recipe.model,
        max_length=recipe.max_length,
        device=recipe.device,
    )
    give_date(own.tokenizer, folder)
    return Context(own.model, tokenizer, recipe.max_length, recipe.seed_of_data, rewriter=own)


def _samples(folder: RunFolder) -> dict[str, list[GradedSample]]:
    """Return all judged completions by prompt id; for ready pairs these are both sides, and all labelled ones."""
    samples: dict[str, list[GradedSample]] = {}
    if folder.verdicts.exists():
        for one in read_jsonl(folder.verdicts, Verdict):
            sample = GradedSample(one.text, one.finished, one.correct, one.token_ids)
            samples.setdefault(one.prompt_id, []).append(sample)
        return samples
    if folder.feedback.exists():
        for labelled in read_jsonl(folder.feedback, Feedback):
            graded = GradedSample(
                labelled.completion,
                labelled.finished,
                labelled.label,
                labelled.completion_ids,
                labelled.message,
            )
            samples.setdefault(labelled.prompt_id, []).append(graded)
        return samples
    for pair in read_jsonl(folder.pairs, Pair):
        for side in SIDES:
            row, right = answer_row(pair, side), side == "chosen"
            sample = GradedSample(
                row["completion"], row["finished"], right, row["completion_ids"], row["message"]
            )
            samples.setdefault(pair.prompt_id, []).append(sample)
    return samples


def _fitting(wrong: Sequence[Wrong], tokenizer: Tokenizer, *, max_length: int) -> list[Scored]:
    """Return the completions that fit into the recipe's length, those of a prompt together, shortest prompts first."""
    scored = (
        tokenized(one, tokenizer, max_length=max_length, place=f"prompt {one.prompt_id}") for one in wrong
    )
    rows = [row for row in scored if row is not None]
    if dropped := len(wrong) - len(rows):
        say(
            f"score: {dropped} completions to forget are dropped: without tokens, or too long for max_length {max_length}"
        )
    longest: dict[str, int] = {}
    for row in rows:
        length = len(row.tokens.prompt_ids) + len(row.tokens.completion_ids)
        longest[row.wrong.prompt_id] = max(length, longest.get(row.wrong.prompt_id, 0))
    return sorted(rows, key=lambda row: (longest[row.wrong.prompt_id], row.wrong.prompt_id))


def _write(folder: RunFolder, rows: list[TokenScores], score: Score, tokenizer: Tokenizer) -> None:
    """Write a row a completion. The schema's metadata names the `scorer`; columns `scores/NAME` are those of `beside`."""
    beside = {name: f"scores/{name}" for name in score.beside}
    schema = pa.schema(
        [*_COLUMNS, *((column, _NUMBERS) for column in beside.values())], metadata={"scorer": score.scorer}
    )
    table = [
        asdict(row)
        | {"tokens": [tokenizer.decode([token]) for token in row.token_ids]}
        | {column: row.beside[name] for name, column in beside.items()}
        for row in rows
    ]
    with written_aside(folder.token_scores) as part:
        pq.write_table(pa.Table.from_pylist(table, schema), part)
