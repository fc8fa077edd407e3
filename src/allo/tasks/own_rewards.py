"""Rewards by the user's own functions, which are passed rows as TRL passes them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from allo.errors import UserError
from allo.files.records import Prompt
from allo.recipe.judge import Judge
from allo.recipe.own_process import KEY, OwnProcess
from allo.tasks.base import demonstrate

Reward = float | None  # None: no verdict
TRIED = 4  # rows of each set, before the first stage


@dataclass(frozen=True)
class Sample:
    """A completion to judge. `token_ids` end with the token that ended it."""

    prompt: Prompt
    text: str
    token_ids: list[int]


@dataclass(frozen=True)
class OwnRewards:
    """A recipe's functions, loaded and ready; a row without one of `columns` has None there."""

    process: OwnProcess
    weights: Sequence[float]
    columns: Sequence[str]

    def combined(self, samples: Sequence[Sample]) -> list[Reward]:
        """Return the weighted sum of each sample's rewards, without those that are None; None if all are.

        Raises `UserError` naming the function and the row if one fails, hangs, or returns anything else.
        """
        numbers = range(len(self.weights))
        each = [self.by(number, samples)["rewards"] for number in numbers]
        return [self._sum(rewards) for rewards in zip(*each, strict=True)]

    def _sum(self, rewards: Sequence[Reward]) -> Reward:
        known = [w * each for w, each in zip(self.weights, rewards, strict=True) if each is not None]
        return sum(known) if known else None

    def by(
        self, number: int, samples: Sequence[Sample], state: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return one function's `rewards`, and what it gave `log_metric` and `log_extra`."""
        reply = self.process.ask(number, self._request(samples, state))
        if "error" in reply:
            raise UserError(self._with_row(number, samples, state, str(reply["error"])))
        name, rewards = self.process.names[number], reply["rewards"]
        if len(rewards) != len(samples):
            raise UserError(
                f"{KEY}: {name} returned {len(rewards)} rewards for {len(samples)} completions, those of "
                f"{_rows(samples)}; return one a completion."
            )
        for sample, reward in zip(samples, rewards, strict=True):
            if isinstance(reward, str) or (reward is not None and not math.isfinite(reward)):
                found = reward[:60] if isinstance(reward, str) else reward
                raise UserError(
                    f"{KEY}: {name} returned {found} for a completion of {_rows([sample])}; a reward is a finite number, a "
                    "bool, or None for no verdict."
                )
        return reply

    def _request(self, samples: Sequence[Sample], state: Mapping[str, Any] | None) -> dict[str, Any]:
        rows = [columns_of(sample.prompt) for sample in samples]
        arguments = {
            "prompts": [_own_prompt(sample.prompt) for sample in samples],
            "completions": [_completion(sample) for sample in samples],
            "completion_ids": [sample.token_ids for sample in samples],
        }
        columns = {name: [row.get(name) for row in rows] for name in self.columns}
        return {"columns": columns, "arguments": arguments, "state": dict(state or {})}

    def _with_row(
        self, number: int, samples: Sequence[Sample], state: Mapping[str, Any] | None, error: str
    ) -> str:
        """Return the error with the row that causes it, if one does by itself; otherwise with all."""
        for sample in samples if len(samples) > 1 else ():
            if "error" in (reply := self.process.ask(number, self._request([sample], state))):
                error, samples = str(reply["error"]), [sample]
                break
        return f"{error.removesuffix('.')}, for {_rows(samples)}."


@contextmanager
def own_rewards(judge: Judge, prompts: Iterable[Prompt]) -> Iterator[OwnRewards]:
    """Yield the functions of `judge.function` for samples of these prompts, and end their process afterwards."""
    columns = dict.fromkeys(name for prompt in prompts for name in columns_of(prompt))
    with OwnProcess(judge.function, timeout=judge.timeout) as process:
        yield OwnRewards(process, judge.function_weights, list(columns))


def try_functions(
    judge: Judge, sets: Mapping[str, Sequence[Prompt]], ids: Callable[[Prompt, str], list[int]] | None
) -> dict[str, list[str]]:
    """Call the functions on a few rows of each set, and say in sentences what they returned.

    They are passed an empty answer and, with `ids` for an answer's token ids, the row's own answer or solution, or its
    prompt repeated if it has none. Raises `UserError` naming the set if a call fails.
    """
    if not judge.function:
        return {}
    given = [prompt for prompts in sets.values() for prompt in prompts]
    if not given:
        raise UserError(
            f"{KEY}: nothing is judged by it. It is for samples, which ready pairs have none of, and for "
            "evaluation sets without `by_answer`: remove it."
        )
    said: dict[str, list[str]] = {}
    with own_rewards(judge, given) as functions:
        for key, prompts in sets.items():
            if some := prompts[:TRIED]:
                said[key] = list(_tried(functions, key, some, ids))
    return said


def _tried(
    functions: OwnRewards, key: str, prompts: Sequence[Prompt], ids: Callable[[Prompt, str], list[int]] | None
) -> Iterator[str]:
    """Yield sentences on the rewards of a set's first rows."""
    kinds = {"an empty answer": [""] * len(prompts)}
    own = [gold(prompt) for prompt in prompts]
    if ids is not None:
        kind = "the row's own answer" if all(own) else "the prompt repeated"
        kinds[kind] = [answer or _asked(prompt) for answer, prompt in zip(own, prompts, strict=True)]
    found: dict[str, list[Reward]] = {}
    for kind, texts in kinds.items():
        samples = [
            Sample(prompt, text, ids(prompt, text) if ids and text else [])
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        try:
            found[kind] = functions.combined(samples)
        except UserError as error:
            raise UserError(f"{error} It was tried on the first rows of {key}, with {kind}.") from error
    rewards = "; ".join(
        f"{kind} {', '.join('None' if each is None else f'{each + 0.0:.3g}' for each in values)}"
        for kind, values in found.items()
    )
    names = ", ".join(functions.process.names)
    first = "the first row" if len(prompts) == 1 else f"the first {len(prompts)} rows"
    yield f"{names} was tried on {first}, and returned for {rewards}"
    if all(each is None for values in found.values() for each in values):
        yield "all of these are None, no verdict: if no sample gets a verdict, the run stops once they are judged"
    known = found.get("the row's own answer", [])
    if known and right_or_wrong(known) and not any(known):
        yield f"the right answers of {first} are wrong by it, such as {own[0][-60:]!r}"


def _asked(prompt: Prompt) -> str:
    """Return the text that a prompt asks by: of messages, the last one's."""
    own = _own_prompt(prompt)
    return own if isinstance(own, str) else str(own[-1].get("content") or "") if own else ""


def columns_of(prompt: Prompt) -> dict[str, Any]:
    """Return the columns of a prompt that functions are passed: the user's own, or those of a benchmark."""
    if prompt.columns is not None:
        return prompt.columns
    known = ("id", "answer", "solution", "choices", "task")
    return {name: value for name in known if (value := getattr(prompt, name)) is not None}


def right_or_wrong(rewards: Iterable[Reward]) -> bool:
    """Return whether rewards say right (1) or wrong (0), and nothing between or beyond."""
    return all(reward in (0.0, 1.0, None) for reward in rewards)


def gold(prompt: Prompt) -> str:
    """Return the best completion that a row itself gives: its solution or its answer; nothing if it has neither."""
    return prompt.solution or (demonstrate(prompt.answer, None) if prompt.answer else "")


def _own_prompt(prompt: Prompt) -> Any:
    """Return the prompt in the form of its row, as TRL passes it: `chat: true` is no concern of functions."""
    return prompt.prompt if prompt.text is None else prompt.text


def _completion(sample: Sample) -> Any:
    chat = isinstance(_own_prompt(sample.prompt), list)
    return [{"role": "assistant", "content": sample.text}] if chat else sample.text


def _rows(samples: Sequence[Sample]) -> str:
    prompts = list({sample.prompt.id: sample.prompt for sample in samples}.values())
    first, last = prompts[0].said, prompts[-1].said
    return f"prompt {first}" if len(prompts) == 1 else f"prompts {first} to {last}"
