"""A rewriter's training data, made from a run's judged samples."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import sha256_file, write_json, write_jsonl
from allo.rewriter.cases import Case, Run, draw, right_cases, wrong_cases
from allo.rewriter.proposals import Proposals, gold, minimal, nearest_right, repaired
from allo.rewriter.teacher import taught
from allo.sampling.endpoint import Endpoint, check_endpoint
from allo.tokens.edit_distance import edit_distance, text_ids
from allo.tokens.rewrite_wording import WORDING
from allo.tokens.rewriter import tokenizer_hash

SCHEMA = 1
Source = Literal["gold", "nearest", "self", "teacher"]
VERIFIED: tuple[Source, ...] = ("self", "teacher")
"""Sources whose rewrites a model invents: only rewrites with the right final answer are kept."""
MAX_DISTANCE = 0.5
"""The default for verified sources; a solution or a right sample may differ in every token."""
_NAMED = 3  # failures described in words; all are counted


@dataclass(frozen=True)
class DataSettings:
    """Settings of the data; `identity` is the share of rows whose right completion stays unchanged."""

    source: Source
    identity: float = 0.2
    max_distance: float | None = None
    seed: int = 0
    num_generations: int = 1
    temperature: float | None = None
    max_tokens: int | None = None


def make_data(
    run: Run, settings: DataSettings, out: Path, *, endpoint: Endpoint | None = None
) -> dict[str, Any]:
    """Write the rows to `out`, and a record of their making beside it; return the record's counts.

    Raises `UserError` if rewrites cannot be verified, or if none remains.
    """
    if settings.source in VERIFIED and (not run.prompts or run.recipe.judge.function):
        why = "is judged by a function of yours" if run.prompts else "uses ready pairs, which have no answers"
        raise UserError(
            f"--source {settings.source}: the run {why}, and rewrites are verified by final answers; use --source nearest."
        )
    cases = wrong_cases(run)
    proposals, costs = _proposals(cases, run, settings, out, endpoint)
    rows, dropped = _kept(cases, proposals, run, settings)
    if not rows:
        reasons = ", ".join(f"{reason} {number}" for reason, number in dropped.items())
        raise UserError(f"no rewrite is left of {len(cases)} wrong completions: {reasons}.")
    right = draw(
        right_cases(run),
        round(len(rows) * settings.identity / (1 - settings.identity)),
        seed=settings.seed,
    )
    kept = len(rows)
    rows += [_row(case, case.wrong.completion, "identity", run) for case in right]
    write_jsonl(out, rows)
    counts = {"wrong": len(cases), "kept": kept, "identity": len(right), "dropped": dict(dropped), **costs}
    write_json(record_of(out), _record(run, settings, out, endpoint) | {"counts": counts})
    return counts


def record_of(out: Path) -> Path:
    """Return the path of the record beside a file of rows."""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.record.json")


def _proposals(
    cases: Sequence[Case], run: Run, settings: DataSettings, out: Path, endpoint: Endpoint | None
) -> tuple[Proposals, dict[str, Any]]:
    """Return the source's proposals, and their cost."""
    match settings.source:
        case "gold":
            return gold(cases), {}
        case "nearest":
            return nearest_right(cases, run.tokenizer), {}
        case "self":
            temperature = (
                run.recipe.sample.temperature if settings.temperature is None else settings.temperature
            )
            return repaired(
                cases, run, path=out, num_generations=settings.num_generations, temperature=temperature
            ), {}
        case "teacher":
            assert endpoint is not None
            check_endpoint(endpoint)
            found, answers = taught(
                cases,
                endpoint,
                path=out,
                max_tokens=settings.max_tokens or run.recipe.sample.max_new_tokens,
                temperature=settings.temperature,
            )
            for id, reason in list(answers.failed.items())[:_NAMED]:
                say(f"{id}: not answered: {reason}")
            return found, {"endpoint": answers.counts(endpoint)}


def _kept(
    cases: Sequence[Case], proposals: Proposals, run: Run, settings: DataSettings
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return rows of the minimal right rewrites, and by reason the number of completions without one."""
    rows, dropped = [], Counter[str]()
    for case in cases:
        texts = proposals.texts.get(case.wrong.id)
        if texts is None:
            dropped[proposals.missing[case.wrong.id]] += 1
            continue
        rewrite, reason = minimal(
            case,
            texts,
            run,
            max_distance=_max_distance(settings),
            verified=settings.source in VERIFIED,
        )
        if rewrite is None:
            dropped[reason] += 1
        else:
            rows.append(_row(case, rewrite, settings.source, run))
    return rows, dropped


def _max_distance(settings: DataSettings) -> float:
    if settings.max_distance is not None:
        return settings.max_distance
    return MAX_DISTANCE if settings.source in VERIFIED else 1.0


def _row(case: Case, rewrite: str, source: str, run: Run) -> dict[str, Any]:
    """Return a line of the file; `edits` is the number of token edits to the rewrite."""
    ids, rewritten = (text_ids(text, run.tokenizer) for text in (case.wrong.completion, rewrite))
    return {
        "id": case.wrong.id,
        "prompt": case.wrong.prompt,
        **({"template": case.wrong.template} if case.wrong.template else {}),
        "right": case.right,
        "completion": case.wrong.completion,
        "rewrite": rewrite,
        "source": source,
        "edits": edit_distance(ids, rewritten),
    }


def _record(run: Run, settings: DataSettings, out: Path, endpoint: Endpoint | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "sha256": sha256_file(out),
        "run": run.recipe.name,
        "wording": WORDING,
        "tokenizer": tokenizer_hash(run.tokenizer),
        "source": settings.source,
        "identity": settings.identity,
        "max_distance": _max_distance(settings),
        "seed": settings.seed,
    }
    if endpoint is not None:
        record |= {"base_url": endpoint.base_url, "model": endpoint.model}
    return record
