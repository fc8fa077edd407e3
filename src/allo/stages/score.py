"""Score the tokens of wrong completions, and turn the scores into weights (method.md 1.2)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from allo.artifacts import ResumableLines, RunFolder, read_jsonl, written_aside
from allo.console import track
from allo.core.token_credit import from_logratios, token_weights
from allo.hf.models import Tokenizer, load_tokenizer
from allo.hf.policy import check_head
from allo.hf.rewriter import load_rewriter
from allo.hf.scorers import LOGRATIOS, SCORERS, Context, Scored
from allo.hf.start import load_start, read_start
from allo.hf.tokenization import tokenize
from allo.recipe import Recipe, Score
from allo.records import TokenScores, Wrong
from allo.stages.locate import WARMUP_WEIGHTS

_NUMBERS = pa.list_(pa.float64())
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("token_ids", pa.list_(pa.int64())),
        ("scores", _NUMBERS),
        ("weights", _NUMBERS),
        ("tokens", pa.list_(pa.string())),
    ]
)


def run(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Write `05-token-scores.parquet`."""
    assert recipe.score is not None
    wrong = read_jsonl(run.wrong, Wrong)
    context = _context(recipe, run)
    rows = _fitting(wrong, context)
    size = recipe.score.batch_size
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    lines = ResumableLines(run.token_scores)
    done = len(lines.batches)
    for batch in track(batches[done:], "score", total=len(batches), done=done):
        scores = SCORERS[recipe.score.scorer](batch, context)
        lines.append([{"id": row.wrong.id, "scores": one} for row, one in zip(batch, scores, strict=True)])
    weighted = _weighted(recipe.score, rows, [row["scores"] for row in lines.rows()])
    _write(run, weighted, context.tokenizer)
    lines.discard()
    weights = [weight for row in weighted for weight in row.weights]
    return {
        "completions": len(rows),
        "dropped": len(wrong) - len(rows),
        "tokens": len(weights),
        "weighted": sum(weight != 0 for weight in weights),
    }


def _context(recipe: Recipe, run: RunFolder) -> Context:
    """The starting model; for `implicit` in fp32, with the warm-up's weights beside it; or the rewriter."""
    assert recipe.score is not None
    if recipe.score.scorer == "rewriter":
        return _rewriting_context(recipe, run)
    implicit = recipe.score.scorer == "implicit"
    model, tokenizer = load_start(recipe, run, dtype=torch.float32 if implicit else None)
    check_head(model)
    warmup = load_file(run.warmup / WARMUP_WEIGHTS) if implicit else {}
    return Context(model, tokenizer, recipe.max_length, recipe.seed_of_data, warmup)


def _rewriting_context(recipe: Recipe, run: RunFolder) -> Context:
    """The rewriter in the starting model's place: the completions' tokens are the policy's."""
    assert recipe.score is not None and recipe.score.rewriter is not None
    tokenizer = load_tokenizer(
        read_start(run).model, pad_token=recipe.pad_token, trust_remote_code=recipe.trust_remote_code
    )
    own = load_rewriter(
        recipe.score.rewriter,
        tokenizer,
        policy=recipe.model,
        max_length=recipe.max_length,
        device=recipe.device,
    )
    return Context(own.model, tokenizer, recipe.max_length, recipe.seed_of_data, rewriter=own)


def _fitting(wrong: Sequence[Wrong], context: Context) -> list[Scored]:
    """The completions that fit into the recipe's length, shortest first."""
    rows = []
    for one in wrong:
        tokens = tokenize(
            context.tokenizer,
            one.prompt,
            one.completion,
            finished=one.finished,
            max_length=context.max_length,
        )
        rows += [Scored(one, tokens)] if tokens else []
    return sorted(rows, key=lambda row: len(row.tokens.prompt_ids) + len(row.tokens.completion_ids))


def _weighted(score: Score, rows: Sequence[Scored], raw: Sequence[Sequence[float]]) -> list[TokenScores]:
    """Scores as probabilities, and the weights that follow from them."""
    flat = torch.tensor([number for row in raw for number in row], dtype=torch.float32)
    if score.scorer in LOGRATIOS:
        scale = flat.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny).item()
        flat = from_logratios(flat, scale=scale)
    weights = token_weights(flat, rule=score.weights, threshold=score.threshold)
    lengths = [len(row) for row in raw]
    return [
        TokenScores(row.wrong.id, row.tokens.completion_ids, scores.tolist(), own.tolist())
        for row, scores, own in zip(rows, flat.split(lengths), weights.split(lengths), strict=True)
    ]


def _write(run: RunFolder, rows: list[TokenScores], tokenizer: Tokenizer) -> None:
    table = [asdict(row) | {"tokens": [tokenizer.decode([token]) for token in row.token_ids]} for row in rows]
    with written_aside(run.token_scores) as part:
        pq.write_table(pa.Table.from_pylist(table, SCHEMA), part)
