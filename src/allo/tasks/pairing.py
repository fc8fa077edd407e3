"""Training data from judged samples: preference pairs, and wrong completions to forget."""

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allo.errors import UserError
from allo.files.records import Pair, Prompt, Verdict, Wrong

Reason = tuple[str, str]
"""Why a prompt's samples make no pair, and the setting that may help."""
MORE = "raise sample.num_generations or sample.temperature"
NO_VERDICT = "with no sample that has a verdict", "look at 02-verdicts.jsonl"
LONGER = "raise sample.max_new_tokens"


@dataclass(frozen=True)
class Sides:
    """One prompt's distinct samples, each side in sampling order."""

    right: list[Verdict]
    wrong: list[Verdict]


def distinct(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return the first verdict, by `index`, of each prompt's distinct stripped texts; prompts in order of arrival."""
    by_prompt: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_prompt.setdefault(verdict.prompt_id, []).append(verdict)
    kept: list[Verdict] = []
    for group in by_prompt.values():
        texts: dict[str, Verdict] = {}
        for verdict in sorted(group, key=lambda verdict: verdict.index):
            texts.setdefault(verdict.text.strip(), verdict)
        kept.extend(texts.values())
    return kept


def make_pairs(
    prompts: Sequence[Prompt], verdicts: Iterable[Verdict], *, max_pairs_per_prompt: int, seed: int
) -> list[Pair]:
    """Return up to `max_pairs_per_prompt` random, distinct (right, wrong) pairs per prompt (method 1.4).

    A chosen completion is always finished, since an unfinished one would teach the model not to stop. A prompt's
    pairs depend only on the seed, its id and its samples, not on other prompts. Raises `UserError` if no pair can be
    made.
    """
    assert max_pairs_per_prompt > 0
    sides = _by_prompt(prompts, verdicts)
    pairs = []
    for prompt in prompts:
        chosen = [verdict for verdict in sides[prompt.id].right if verdict.finished]
        rejected = sides[prompt.id].wrong
        num_combinations = len(chosen) * len(rejected)
        draw = random.Random(hashlib.sha256(f"{seed}:{prompt.id}".encode()).digest())
        for number in draw.sample(range(num_combinations), min(max_pairs_per_prompt, num_combinations)):
            right, wrong = chosen[number // len(rejected)], rejected[number % len(rejected)]
            pairs.append(pair_of(prompt, chosen=right, rejected=wrong))
    if not pairs:
        raise UserError(f"no preference pair can be made: {_count(sides)} {_advice(sides)}")
    return pairs


def without_pair(
    prompts: Sequence[Prompt],
    verdicts: Iterable[Verdict],
    pairs: Iterable[Pair],
    *,
    reason: Callable[[Sequence[Verdict]], Reason],
) -> str:
    """Return how many prompts have no pair, why, and one of them for each reason; empty if all have one."""
    paired, samples = {pair.prompt_id for pair in pairs}, samples_of(prompts, verdicts)
    found: dict[Reason, list[Prompt]] = {}
    for prompt in prompts:
        if prompt.id not in paired:
            found.setdefault(reason(samples[prompt.id]), []).append(prompt)
    if not found:
        return ""
    listed = "; ".join(
        f"{len(some):,} {why}, such as {some[0].said}: {advice}"
        for (why, advice), some in sorted(found.items(), key=lambda each: -len(each[1]))
    )
    return f"{sum(map(len, found.values())):,} of {len(prompts):,} prompts have no pair: {listed}"


def why_no_pair(samples: Sequence[Verdict]) -> Reason:
    """Return why a prompt's samples make no pair of a right and a wrong one."""
    side = _sides(samples)
    if not samples:
        return NO_VERDICT
    if not side.right:
        return "with wrong samples alone", f"{MORE}, or take easier prompts"
    if not side.wrong:
        return "with right samples alone", f"{MORE}, or take harder prompts"
    return "whose right samples were cut", LONGER


def pair_of(prompt: Prompt, *, chosen: Verdict, rejected: Verdict) -> Pair:
    """Return two judged completions of a prompt as a preference pair."""
    return Pair(
        prompt_id=prompt.id,
        prompt=prompt.prompt,
        template=prompt.template,
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_finished=chosen.finished,
        rejected_finished=rejected.finished,
        chosen_token_ids=chosen.token_ids,
        rejected_token_ids=rejected.token_ids,
    )


def answer_row(pair: Pair, side: str) -> dict[str, Any]:
    """Return the chosen or rejected answer of a pair as a row of a completion."""
    return {
        "prompt": pair.prompt,
        "template": pair.template,
        "message": getattr(pair, f"{side}_message"),
        "completion": getattr(pair, side),
        "finished": getattr(pair, f"{side}_finished"),
        "completion_ids": getattr(pair, f"{side}_token_ids"),
    }


def wrong_completions(prompts: Sequence[Prompt], verdicts: Iterable[Verdict]) -> list[Wrong]:
    """Return every distinct wrong completion, with its prompt's distinct right ones, if any.

    Raises `UserError` if nothing is wrong.
    """
    sides = _by_prompt(prompts, verdicts)
    wrong = [
        Wrong(
            id=f"{prompt.id}-{verdict.index}",
            prompt_id=prompt.id,
            prompt=prompt.prompt,
            template=prompt.template,
            completion=verdict.text,
            finished=verdict.finished,
            solution=prompt.solution,
            right=[right.text for right in sides[prompt.id].right],
            token_ids=verdict.token_ids,
        )
        for prompt in prompts
        for verdict in sides[prompt.id].wrong
    ]
    if not wrong:
        raise UserError(f"there is no wrong completion to forget: {_count(sides)} {_advice(sides)}")
    return wrong


def rejected_completions(pairs: Iterable[Pair], *, solutions: Mapping[str, str]) -> list[Wrong]:
    """Return the distinct rejected completions of pairs, each with the completions preferred to it.

    `solutions` holds gold solutions by prompt id. Without one, the first completion preferred to it stands in.
    """
    wrong: dict[str, Wrong] = {}
    for pair in pairs:
        key = repr((pair.prompt, pair.template, pair.rejected, pair.rejected_message))
        if key in wrong:
            wrong[key].right.append(pair.chosen)
            continue
        wrong[key] = Wrong(
            id=f"{pair.prompt_id}-rejected-{len(wrong)}",
            prompt_id=pair.prompt_id,
            prompt=pair.prompt,
            template=pair.template,
            completion=pair.rejected,
            message=pair.rejected_message,
            finished=pair.rejected_finished,
            solution=solutions.get(pair.prompt_id, pair.chosen),
            right=[pair.chosen],
            token_ids=pair.rejected_token_ids,
        )
    return list(wrong.values())


def samples_of(prompts: Sequence[Prompt], verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Return the distinct samples of each prompt by its id."""
    samples: dict[str, list[Verdict]] = {prompt.id: [] for prompt in prompts}
    for verdict in distinct(verdicts):
        assert verdict.prompt_id in samples, f"a verdict of the unknown prompt {verdict.prompt_id!r}"
        samples[verdict.prompt_id].append(verdict)
    return samples


def _by_prompt(prompts: Sequence[Prompt], verdicts: Iterable[Verdict]) -> dict[str, Sides]:
    return {name: _sides(samples) for name, samples in samples_of(prompts, verdicts).items()}


def _sides(samples: Sequence[Verdict]) -> Sides:
    return Sides([one for one in samples if one.correct], [one for one in samples if not one.correct])


def _count(sides: dict[str, Sides]) -> str:
    right = sum(len(side.right) for side in sides.values())
    wrong = sum(len(side.wrong) for side in sides.values())
    return f"{len(sides)} prompts with {right + wrong} distinct samples, {right} right and {wrong} wrong."


def _advice(sides: dict[str, Sides]) -> str:
    right = [verdict for side in sides.values() for verdict in side.right]
    if not right and not any(side.wrong for side in sides.values()):
        return "Nothing was sampled: check the prompts and the sampling stage."
    if not right:
        return (
            "No sample is right: look at a few in 02-verdicts.jsonl. If answers are there but not read, change the "
            "prompt or the verifier; if they are wrong, take easier prompts, a better model or more samples."
        )
    if not any(side.wrong for side in sides.values()):
        return "No sample is wrong: take harder prompts, a higher temperature or more samples a prompt."
    if not any(verdict.finished for verdict in right):
        return "No right sample ended by itself: raise `max_new_tokens`."
    return (
        "No prompt has both a wrong sample and a right one that ended by itself: "
        "take more prompts or more samples a prompt."
    )
