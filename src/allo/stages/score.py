"""Score the tokens of wrong completions: how likely each is aligned (method.md 1.2 and 4)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from allo.artifacts import ResumableLines, RunFolder, read_jsonl, written_aside
from allo.console import track
from allo.core.selected import exchange
from allo.core.token_credit import edit_scores, from_logratios, random_scores, token_weights
from allo.errors import UserError
from allo.hf.collate import pad
from allo.hf.models import Model, Tokenizer
from allo.hf.policy import check_head, per_token_logps
from allo.hf.start import load_start
from allo.hf.tokenization import Tokenized, tokenize
from allo.recipe import Recipe
from allo.records import Message, TokenScores, Wrong
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

# Scores of one completion, one a token: probabilities, or log-ratios for `implicit`.
Scorer = Callable[[Sequence[Wrong], Sequence[Tokenized]], list[list[float]]]


def run(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Write `05-token-scores.parquet`."""
    assert recipe.score is not None
    wrong = read_jsonl(run.wrong, Wrong)
    scorer, tokenizer = _scorer(recipe, run)
    fitting = [
        (one, tokens)
        for one in wrong
        if (tokens := _tokens(tokenizer, one, one.prompt, max_length=recipe.max_length)) is not None
    ]
    fitting.sort(key=lambda pair: len(pair[1].prompt_ids) + len(pair[1].completion_ids))
    size = recipe.score.batch_size
    batches = [fitting[start : start + size] for start in range(0, len(fitting), size)]
    lines = ResumableLines(run.token_scores)
    done = len(lines.batches)
    for batch in track(batches[done:], "score", total=len(batches), done=done):
        scores = scorer([one for one, _ in batch], [tokens for _, tokens in batch])
        lines.append([{"id": one.id, "scores": row} for (one, _), row in zip(batch, scores, strict=True)])
    raw = {row["id"]: row["scores"] for row in lines.rows()}
    rows = _weighted(recipe, {one.id: tokens for one, tokens in fitting}, raw)
    _write(run, rows, tokenizer)
    lines.discard()
    marked = sum(weight != 0 for row in rows for weight in row.weights)
    total = sum(len(row.weights) for row in rows)
    return {"completions": len(rows), "dropped": len(wrong) - len(rows), "tokens": total, "weighted": marked}


def _tokens(
    tokenizer: Tokenizer, wrong: Wrong, prompt: str | list[Message], *, max_length: int
) -> Tokenized | None:
    return tokenize(tokenizer, prompt, wrong.completion, finished=wrong.finished, max_length=max_length)


def _scorer(recipe: Recipe, run: RunFolder) -> tuple[Scorer, Tokenizer]:
    """The scorer that the recipe names, with the tokenizer that it scores by."""
    assert recipe.score is not None
    name = recipe.score.scorer
    dtype = torch.float32 if name == "implicit" else None
    model, tokenizer = load_start(recipe, run, dtype=dtype)
    check_head(model)

    def confidence(wrong: Sequence[Wrong], tokens: Sequence[Tokenized]) -> list[list[float]]:
        return [[math.exp(logp) for logp in row] for row in _logps(model, tokenizer, tokens)]

    def privileged(wrong: Sequence[Wrong], tokens: Sequence[Tokenized]) -> list[list[float]]:
        # The solution stands first, where a long prompt is cut: it gets as much room again.
        room = 2 * recipe.max_length
        shown = [_tokens(tokenizer, one, _with_solution(one), max_length=room) for one in wrong]
        return confidence(wrong, [one for one in shown if one is not None])

    def edit(wrong: Sequence[Wrong], tokens: Sequence[Tokenized]) -> list[list[float]]:
        rights = [
            [
                [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
                for text in one.right or _solutions(one)
            ]
            for one in wrong
        ]
        return [edit_scores(one.completion_ids, right) for one, right in zip(tokens, rights, strict=True)]

    def random(wrong: Sequence[Wrong], tokens: Sequence[Tokenized]) -> list[list[float]]:
        return [
            random_scores(one.id, len(ids.completion_ids), seed=recipe.seed)
            for one, ids in zip(wrong, tokens, strict=True)
        ]

    def uniform(wrong: Sequence[Wrong], tokens: Sequence[Tokenized]) -> list[list[float]]:
        return [[0.0] * len(one.completion_ids) for one in tokens]

    scorers: dict[str, Scorer] = {
        "confidence": confidence,
        "privileged": privileged,
        "edit": edit,
        "random": random,
        "uniform": uniform,
    }
    if name == "implicit":
        return _implicit(model, tokenizer, run), tokenizer
    return scorers[name], tokenizer


def _implicit(model: Model, tokenizer: Tokenizer, run: RunFolder) -> Scorer:
    """log pi_warm-up - log pi_start of each token: the warm-up run's own implicit reward, in fp32."""
    warmup = load_file(run.warmup / WARMUP_WEIGHTS)

    def swap() -> None:
        for name, param in model.named_parameters():
            warmup[name] = exchange(param.data, None, warmup[name].reshape(-1).to(param.device))

    def score(wrong: Sequence[Wrong], tokens: Sequence[Tokenized]) -> list[list[float]]:
        before = _logps(model, tokenizer, tokens)
        swap()
        after = _logps(model, tokenizer, tokens)
        swap()
        return [[b - a for a, b in zip(*rows, strict=True)] for rows in zip(before, after, strict=True)]

    return score


@torch.inference_mode()
def _logps(model: Model, tokenizer: Tokenizer, tokens: Sequence[Tokenized]) -> list[list[float]]:
    rows = [(one.prompt_ids, one.completion_ids) for one in tokens]
    batch = {key: value.to(model.device) for key, value in pad(rows, pad_id=tokenizer.pad_token_id).items()}
    logps = per_token_logps(model, batch)
    return [
        row[len(one.prompt_ids) : len(one.prompt_ids) + len(one.completion_ids)].tolist()
        for row, one in zip(logps, tokens, strict=True)
    ]


def _solutions(wrong: Wrong) -> list[str]:
    return [wrong.solution] if wrong.solution else []


def _with_solution(wrong: Wrong) -> str | list[Message]:
    """The prompt with the right solution shown before the answer is asked for."""
    solution = wrong.solution or next(iter(wrong.right), None)
    if solution is None:
        raise UserError(
            f"prompt {wrong.prompt_id}: scorer `privileged` shows the right solution, but the prompt has no "
            "`solution` and no right sample. Choose another score.scorer."
        )
    shown = f"A correct solution to the problem below, to check your own against:\n{solution}\n\n"
    if isinstance(wrong.prompt, str):
        return shown + wrong.prompt
    *before, last = wrong.prompt
    return [*before, Message(role=last["role"], content=shown + last["content"])]


def _weighted(recipe: Recipe, tokens: dict[str, Tokenized], raw: dict[str, list[float]]) -> list[TokenScores]:
    """Scores as probabilities, and the weights that follow from them."""
    assert recipe.score is not None
    flat = torch.tensor([score for row in raw.values() for score in row], dtype=torch.float32)
    if recipe.score.scorer == "implicit":
        scale = flat.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny).item()
        flat = from_logratios(flat, scale=scale)
    weights = token_weights(flat, rule=recipe.score.weights, threshold=recipe.score.threshold)
    lengths = [len(row) for row in raw.values()]
    parts: list[tuple[Tensor, Tensor]] = list(zip(flat.split(lengths), weights.split(lengths), strict=True))
    return [
        TokenScores(id, tokens[id].completion_ids, scores.tolist(), weights.tolist())
        for id, (scores, weights) in zip(raw, parts, strict=True)
    ]


def _write(run: RunFolder, rows: list[TokenScores], tokenizer: Tokenizer) -> None:
    table = [asdict(row) | {"tokens": [tokenizer.decode([token]) for token in row.token_ids]} for row in rows]
    with written_aside(run.token_scores) as part:
        pq.write_table(pa.Table.from_pylist(table, SCHEMA), part)
