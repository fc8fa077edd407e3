"""A pair that a run has already sampled, with the rejected tokens that forgetting weighs."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_jsonl
from allo.files.records import Pair, Wrong
from allo.files.rounds import first_round
from allo.models.load import Tokenizer
from allo.models.rows import counted_pairs
from allo.recipe import Recipe


@dataclass(frozen=True)
class SampledPair:
    """Token ids of a pair; `weights` are the rejected tokens' in forgetting, None if they are not scored."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    weights: Sequence[float] | None


def sampled_pair(recipe: Recipe, tokenizer: Tokenizer, *, is_scored: bool) -> SampledPair:
    """Return the first pair of the recipe's run, preferring one whose wrong answer is weighted."""
    run = first_round(RunFolder(recipe.run_folder))
    weights = _weights(run) if is_scored else {}
    pairs = read_jsonl(run.pairs, Pair)
    pairs.sort(key=lambda pair: (pair.prompt_id, pair.rejected) not in weights)
    for pair in pairs:
        with suppress(UserError):  # too long: training drops it, too
            (row,), _ = counted_pairs(tokenizer, [vars(pair)], max_length=recipe.max_length)
            return SampledPair(**row, weights=weights.get((pair.prompt_id, pair.rejected)))
    raise UserError(f"{run.pairs}: none of {len(pairs)} pairs fits into max_length {recipe.max_length}.")


def _weights(run: RunFolder) -> dict[tuple[str, str], Sequence[float]]:
    """Return the weights of the scored wrong completions, by prompt and text."""
    import pyarrow.parquet as pq

    rows = pq.read_table(run.token_scores, columns=["id", "weights"]).to_pylist()
    scored = {row["id"]: row["weights"] for row in rows}
    wrong = read_jsonl(run.wrong, Wrong)
    return {(one.prompt_id, one.completion): scored[one.id] for one in wrong if one.id in scored}
