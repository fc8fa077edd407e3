"""The judging of completions, by their final answers or by a reward model."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from allo.console import say
from allo.errors import DivergedError, UserError
from allo.files.artifacts import RunFolder, read_jsonl, write_jsonl
from allo.files.records import Completion, Prompt, Verdict
from allo.files.rounds import RoundRecipe
from allo.models.start import load_start_tokenizer
from allo.models.thoughts import thoughts_of
from allo.ranks import by_first, rank
from allo.recipe import Recipe
from allo.stages.own_reward import function_rewards, sample_of
from allo.stages.reward import reward
from allo.tasks.answers import Verified, verify_choice, verify_final_answer
from allo.tasks.answers.thoughts import USUAL, Thoughts
from allo.tasks.own_rewards import right_or_wrong
from allo.tasks.rewards import RANKED_FUNCTION, REWARD_MODEL, above_median
from allo.tasks.sources import training_prompts

SHOWN = 80  # characters at the end of a sample without an answer


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `02-verdicts.jsonl`. Ranks share a reward model's work; rank 0 asks functions and verifiers."""
    if recipe.judge.function or recipe.judge.reward_model is None:
        return by_first(lambda: _judged(recipe, folder))
    prompts = {prompt.id: prompt for prompt in training_prompts(recipe)}
    completions = read_jsonl(folder.completions, Completion)
    return _by_reward(recipe, folder, recipe.judge.reward_model, prompts, completions)


def _judged(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write the verdicts of the user's functions, or of a verifier of final answers."""
    prompts = {prompt.id: prompt for prompt in training_prompts(recipe)}
    completions = read_jsonl(folder.completions, Completion)
    if recipe.judge.function:
        return _by_function(recipe, folder, prompts, completions)
    is_chat = any(isinstance(prompt.prompt, list) for prompt in prompts.values())
    thoughts = thoughts_of(load_start_tokenizer(recipe, folder), prompts.values()) if is_chat else USUAL
    verdicts = [
        verify(prompts[completion.prompt_id], completion, verifier=recipe.judge.verifier, thoughts=thoughts)
        for completion in completions
    ]
    unanswered = [verdict for verdict in verdicts if verdict.extracted is None]
    if unanswered:
        line = without_answer(unanswered, num=len(verdicts), max_new_tokens=recipe.sample.max_new_tokens)
        if len(unanswered) > recipe.judge.max_unanswered * len(verdicts):
            _stop_unanswered(recipe, line)
        say(line)
    write_jsonl(folder.verdicts, verdicts)
    return {
        "completions": len(verdicts),
        "correct": sum(verdict.correct for verdict in verdicts),
        "no_answer": len(unanswered),
        "unfinished": sum(not verdict.finished for verdict in verdicts),
    }


def without_answer(unanswered: Sequence[Verdict], *, num: int, max_new_tokens: int) -> str:
    """Return one line about the samples, of `num`, without a final answer: how many, an example, and advice."""
    cut = sum(not verdict.finished for verdict in unanswered)
    # A sample that ended by itself shows what the model gives as an answer.
    shown = next((verdict for verdict in unanswered if verdict.finished), unanswered[0])
    end = shown.text[-SHOWN:]
    begun = "…" if len(shown.text) > SHOWN else ""
    advice = [f"raise sample.max_new_tokens ({max_new_tokens})"] if cut else []
    if cut < len(unanswered):
        advice += [
            'make the prompt ask for a last line such as "The answer is 4."',
            "choose another judge.verifier or your own judge.function",
        ]
    return (
        f"judge: {len(unanswered)} of {num} samples have no final answer and count as wrong; for example prompt "
        f"{shown.prompt_id[:SHOWN]!r}, sample {shown.index}, ends {begun}{end!r}. {cut} of them were cut before they ended. To have "
        f"answers read, {', or '.join(advice)}."
    )


def _stop_unanswered(recipe: Recipe, line: str) -> NoReturn:
    """Stop a run whose verdicts would be about the form of the answers."""
    message = (
        f"{line} More than {recipe.judge.max_unanswered:.0%} are no basis for pairs (judge.max_unanswered). If your answers "
        "have another form, judge them by a function of your own (judge.function) or a reward model (judge.reward_model)."
    )
    if isinstance(recipe, RoundRecipe) and recipe.number > 1:  # the first round's model had answers
        raise DivergedError(
            f"round {recipe.number}: {message} Or lower the learning rates, or the number of rounds."
        )
    raise UserError(message)


def _by_function(
    recipe: Recipe, folder: RunFolder, prompts: Mapping[str, Prompt], completions: Sequence[Completion]
) -> dict[str, Any]:
    """Write the verdicts of the user's functions: right or wrong if all rewards are 1 or 0, otherwise by rank."""
    has_ids = all(one.token_ids is not None for one in completions)
    tokenizer = None if has_ids else load_start_tokenizer(recipe, folder)
    samples = [sample_of(prompts[one.prompt_id], one.text, one.token_ids, tokenizer) for one in completions]
    found, lines = function_rewards(recipe, samples, path=folder.verdicts, description="judge")
    rewards = {key: reward for key, reward in found.items() if reward is not None}
    judged = [one for one in completions if (one.prompt_id, one.text) in rewards]
    counts: dict[str, Any] = {"completions": len(completions), "no_verdict": len(completions) - len(judged)}
    if counts["no_verdict"]:
        say(
            f"judge: {counts['no_verdict']} of {len(completions)} samples have no verdict by judge.function, and are left out"
        )
    if right_or_wrong(rewards.values()):
        verdicts = [
            _verdict(one, Verified(reward == 1, None, "function"), reward=reward)
            for one in judged
            for reward in [rewards[one.prompt_id, one.text]]
        ]
        counts["correct"] = sum(verdict.correct for verdict in verdicts)
    else:
        verdicts = _ranked(judged, rewards, verifier=RANKED_FUNCTION)
    write_jsonl(folder.verdicts, verdicts)
    lines.discard()
    counts["mean_reward"] = sum(verdict.reward for verdict in verdicts) / len(verdicts)
    return counts | {"unfinished": sum(not verdict.finished for verdict in verdicts)}


def _by_reward(
    recipe: Recipe,
    folder: RunFolder,
    model: str,
    prompts: Mapping[str, Prompt],
    completions: Sequence[Completion],
) -> dict[str, Any]:
    """Write the verdicts of a reward model."""
    asked = [(prompts[completion.prompt_id], completion.text) for completion in completions]
    rewarded = reward(recipe, model, asked, folder=folder, path=folder.verdicts, description="judge")
    if rank():
        return {}
    verdicts = _ranked(completions, rewarded.rewards, verifier=REWARD_MODEL)
    write_jsonl(folder.verdicts, verdicts)
    rewarded.lines.discard()
    mean = sum(verdict.reward for verdict in verdicts) / len(verdicts)
    return {
        "completions": len(verdicts),
        "cut": rewarded.num_cut,
        "mean_reward": mean,
        "unfinished": sum(not verdict.finished for verdict in verdicts),
    }


def _ranked(
    completions: Iterable[Completion], rewards: Mapping[tuple[str, str], float], *, verifier: str
) -> list[Verdict]:
    """Return verdicts that call a prompt's better half of samples correct: those above the median reward."""
    by_prompt: dict[str, list[Completion]] = {}
    for completion in completions:
        by_prompt.setdefault(completion.prompt_id, []).append(completion)
    verdicts = []
    for group in by_prompt.values():
        own = {one.text: rewards[one.prompt_id, one.text] for one in group}
        better = dict(zip(own, above_median(list(own.values())), strict=True))
        verdicts += [
            _verdict(one, Verified(better[one.text], None, verifier), reward=own[one.text]) for one in group
        ]
    return verdicts


def check_verifiable(prompt: Prompt, *, verifier: str) -> None:
    """Raise `UserError` for a prompt without the data that its verifier needs."""
    if prompt.answer is None:
        raise UserError(
            f"prompt {prompt.id}: no `answer` to judge by. Add it, name a `judge.reward_model` or your own "
            "`judge.function`, or give ready pairs (`data.pairs`). Replies to instructions, such as those of alpaca_eval, have no right answer: a model "
            "judges them (docs/judging.md)."
        )
    if verifier == "choice" and prompt.choices is None:
        raise UserError(f"prompt {prompt.id}: judge.verifier is `choice`, but the prompt has no `choices`.")


def verify(
    prompt: Prompt, completion: Completion, *, verifier: str = "auto", thoughts: Thoughts = USUAL
) -> Verdict:
    """Return a completion's verdict; its reward is 1 if the final answer, outside all thoughts, is right, otherwise
    0.

    Raises `UserError` for a prompt that cannot be judged.
    """
    check_verifiable(prompt, verifier=verifier)
    assert prompt.answer is not None
    inside = thoughts.begins_inside(prompt.prompt, prompt.template)
    text = thoughts.without_end(completion.text)
    by_choice = verifier == "choice" or (verifier == "auto" and prompt.choices is not None)
    marked: dict[str, Any] = {"markers": thoughts.markers, "begins_inside": inside}
    if by_choice:
        verified = verify_choice(text, prompt.answer, prompt.choices or [], **marked)
    else:
        verified = verify_final_answer(text, prompt.answer, **marked)
    return _verdict(completion, verified, reward=float(verified.correct))


def _verdict(completion: Completion, verified: Verified, *, reward: float) -> Verdict:
    return Verdict(
        **{
            name: getattr(completion, name)
            for name in ("prompt_id", "index", "text", "finished", "token_ids")
        },
        **vars(verified),
        reward=reward,
    )
