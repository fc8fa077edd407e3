"""The making of preference pairs, and of the wrong completions to forget."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from allo.console import say
from allo.errors import DivergedError, UserError
from allo.files.artifacts import RunFolder, read_jsonl, write_jsonl
from allo.files.records import Pair, Prompt, Verdict, Wrong
from allo.files.rounds import RoundRecipe
from allo.models.load import Tokenizer
from allo.models.start import load_start_tokenizer
from allo.models.written import reads_as
from allo.recipe import Recipe
from allo.tasks.feedback import Labels, bad_completions
from allo.tasks.pairing import (
    Reason,
    make_pairs,
    rejected_completions,
    why_no_pair,
    without_pair,
    wrong_completions,
)
from allo.tasks.rewards import by_rank, ranked_pairs, why_no_ranked_pair
from allo.tasks.sources import Ready, Sources, training_pairs, training_prompts


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `03-wrong.jsonl`, and `03-pairs.jsonl` or, of labelled completions, `03-feedback.jsonl`."""
    if recipe.data.feedback is not None:
        return _write_feedback(recipe, folder)
    pairs, wrong, kind = _pairs_and_wrong(recipe, folder)
    write_jsonl(folder.wrong, wrong)
    write_jsonl(folder.pairs, pairs)
    counts = {"pairs": len(pairs), kind: len(wrong), "prompts": len({pair.prompt_id for pair in pairs})}
    if recipe.data.pairs is None or not recipe.data.held_out:
        return counts
    if not (held_out := Sources(recipe).held_out_pairs()):
        return counts
    own = with_own_ids(recipe, held_out, lambda: load_start_tokenizer(recipe, folder))
    write_jsonl(folder.held_out, own)
    return counts | {"held_out": len(own)}


def _write_feedback(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    sources = Sources(recipe)
    rows, held_out = (
        with_own_ids(recipe, some, lambda: load_start_tokenizer(recipe, folder))
        for some in (sources.feedback(), sources.held_out_feedback())
    )
    write_jsonl(folder.wrong, wrong := bad_completions(rows))
    write_jsonl(folder.feedback, rows)
    labels = Labels.of(rows)
    counts = {"good": labels.good, "bad": labels.bad, "prompts": labels.prompts}
    counts |= {"distinct_bad": len(wrong)} if len(wrong) < labels.bad else {}
    if not held_out:
        return counts
    write_jsonl(folder.held_out, held_out)
    return counts | {"held_out": len(held_out)}


def _pairs_and_wrong(recipe: Recipe, folder: RunFolder) -> tuple[list[Pair], list[Wrong], str]:
    """Return the pairs, the completions to forget, and their kind: "rejected", "wrong" or "lower_reward".

    Raises `UserError` if there are no pairs or none to forget.
    """
    if recipe.data.pairs is not None:
        ready = with_own_ids(recipe, training_pairs(recipe), lambda: load_start_tokenizer(recipe, folder))
        return ready, rejected_completions(ready, solutions={}), "rejected"
    prompts, verdicts = training_prompts(recipe), read_jsonl(folder.verdicts, Verdict)
    try:
        pairs = _pairs(recipe, prompts, verdicts)
    except UserError as error:
        if isinstance(recipe, RoundRecipe) and recipe.number > 1:  # the first round's model had some
            raise DivergedError(
                f"round {recipe.number}: {error} Or lower the learning rates, or the number of rounds."
            ) from error
        raise
    if not by_rank(verdicts):
        return pairs, wrong_completions(prompts, verdicts), "wrong"
    # Without right and wrong answers, the completions to forget are those that a pair rejects.
    solutions = {prompt.id: prompt.solution for prompt in prompts if prompt.solution is not None}
    return pairs, rejected_completions(pairs, solutions=solutions), "lower_reward"


def with_own_ids(recipe: Recipe, rows: list[Ready], load: Callable[[], Tokenizer]) -> list[Ready]:
    """Return ready rows with another run's token ids, if those are of this run's tokenizer.

    If any answer's ids do not match its text exactly, all ids are left out with a message. `load` gives the
    tokenizer.
    """
    sides = {"chosen": "chosen_token_ids", "rejected": "rejected_token_ids", "completion": "completion_ids"}
    found = [
        (row, getattr(row, side), vars(row)[column])
        for row in rows
        for side, column in sides.items()
        if vars(row).get(column) is not None
    ]
    if not found:
        return rows
    tokenizer = load()
    stop = recipe.sample.stop
    other = next((row for row, text, ids in found if not reads_as(tokenizer, ids, text, stop=stop)), None)
    if other is None:
        return rows
    kind = "pair" if isinstance(other, Pair) else "completion"
    say(
        f"pair: {recipe.data.pairs or recipe.data.feedback}: the token ids of {kind} {other.prompt_id[:80]!r} do not say its texts under this model's "
        "tokenizer, or say more: they are of another one, the text was edited, or a stop string ended it that `sample.stop` "
        f"does not name. The texts of all {len(rows)} {kind}s are tokenized instead."
    )
    without: dict[str, Any] = {name: None for name in sides.values() if name in vars(other)}
    return [replace(row, **without) for row in rows]


def _pairs(recipe: Recipe, prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> list[Pair]:
    """Return pairs by right and wrong, or by rewards."""
    most = recipe.pair.max_pairs_per_prompt
    if not by_rank(verdicts):
        if recipe.pair.margin:
            say("pair: all rewards are 0 or 1, so samples are paired as right and wrong, without pair.margin")
        pairs = make_pairs(prompts, verdicts, max_pairs_per_prompt=most, seed=recipe.seed_of_data)
        reason: Callable[[Sequence[Verdict]], Reason] = why_no_pair
    else:
        pairs = ranked_pairs(prompts, verdicts, max_pairs_per_prompt=most, margin=recipe.pair.margin)
        reason = partial(why_no_ranked_pair, margin=recipe.pair.margin)
    if missing := without_pair(prompts, verdicts, pairs, reason=reason):
        say(f"pair: {missing}")
    return pairs
