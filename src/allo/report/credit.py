"""The report's view of `05-token-scores.parquet`: the first samples, and every scorer against the truth."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from allo.errors import UserError
from allo.files.records import Prompt
from allo.report.run_view import Bin, Calibration, TokenCredit, TokenSample
from allo.tasks import planted_flaws

NUM_TOKEN_SAMPLES = 4
NUM_BINS = 10
_BESIDE = "scores/"


def token_credit(path: Path, wrong: Iterable[Mapping[str, Any]]) -> TokenCredit:
    """Read the table batch by batch; `wrong` are the rows of `03-wrong.jsonl`.

    Raises `UserError` if the file is not a table of token scores.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    completions = {row.get("id"): row for row in wrong}
    samples: list[TokenSample] = []
    truths: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    num_tokens = num_weighted = 0
    try:
        table = pq.ParquetFile(path)
        scorer = (table.schema_arrow.metadata or {}).get(b"scorer", b"").decode()
        for batch in table.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                sample = _sample(row, completions.get(row["id"], {}))
                num_tokens += len(sample.weights)
                num_weighted += sum(weight != 0 for weight in sample.weights)
                if len(samples) < NUM_TOKEN_SAMPLES:
                    samples.append(sample)
                if sample.wrong is not None:
                    for name, scores in ({scorer: sample.scores} | sample.beside).items():
                        truths[name] += zip(scores, (not one for one in sample.wrong), strict=True)
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"{path}: not a table of token scores ({error}). Run the score stage again."
        ) from error
    calibration = tuple(Calibration(name, reliability(pairs)) for name, pairs in truths.items())
    return TokenCredit(tuple(samples), num_tokens, num_weighted, scorer, calibration)


def reliability(scored: Iterable[tuple[float, bool]]) -> tuple[Bin, ...]:
    """Group (score, truly aligned) of many tokens into bins of equal width; empty bins are left out."""
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for score, aligned in scored:
        bins[min(int(score * NUM_BINS), NUM_BINS - 1)].append((score, aligned))
    return tuple(
        Bin(sum(s for s, _ in own) / len(own), sum(a for _, a in own) / len(own), len(own))
        for _, own in sorted(bins.items())
    )


def _sample(row: Mapping[str, Any], completion: Mapping[str, Any]) -> TokenSample:
    tokens = row.get("tokens") or [f"[{token}]" for token in row["token_ids"]]
    beside = {name.removeprefix(_BESIDE): row[name] for name in row if name.startswith(_BESIDE)}
    return TokenSample(
        row["id"],
        completion.get("prompt"),
        tokens,
        row["scores"],
        row["weights"],
        beside,
        _wrong_tokens(completion, tokens),
    )


def _wrong_tokens(completion: Mapping[str, Any], tokens: list[str]) -> list[bool] | None:
    """Return which tokens are wrong, for a laboratory completion whose tokens are words; EOS is not wrong."""
    if not str(completion.get("prompt_id")).startswith(f"{planted_flaws.NAME}/"):
        return None
    text, solution = completion.get("completion"), completion.get("solution")
    if not text or not solution or planted_flaws.words(text) != tokens[: len(planted_flaws.words(text))]:
        return None
    prompt = Prompt(str(completion["prompt_id"]), "", solution=solution)
    if planted_flaws.label_tokens(prompt, solution) is None:
        return None
    labels = planted_flaws.label_tokens(prompt, text)
    return None if labels is None else labels + [False] * (len(tokens) - len(labels))
