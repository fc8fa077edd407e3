"""The judging of completions, by their final answers or by a reward model."""

from collections.abc import Mapping, Sequence
from typing import Any

from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_jsonl, write_jsonl
from allo.files.records import Completion, Prompt, Verdict
from allo.models.start import load_start_tokenizer
from allo.models.thoughts import thoughts_of
from allo.recipe import Recipe
from allo.stages.reward import reward
from allo.tasks.answers import Verified, verify_choice, verify_final_answer
from allo.tasks.answers.thoughts import USUAL, Thoughts
from allo.tasks.rewards import above_median
from allo.tasks.sources import training_prompts

SHOWN = 80  # characters at the end of a sample without an answer


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    prompts = {prompt.id: prompt for prompt in training_prompts(recipe)}
    completions = read_jsonl(folder.completions, Completion)
    if recipe.judge.reward_model is not None:
        return _by_reward(recipe, folder, recipe.judge.reward_model, prompts, completions)
    is_chat = any(isinstance(prompt.prompt, list) for prompt in prompts.values())
    thoughts = thoughts_of(load_start_tokenizer(recipe, folder), prompts.values()) if is_chat else USUAL
    verdicts = [
        verify(prompts[completion.prompt_id], completion, verifier=recipe.judge.verifier, thoughts=thoughts)
        for completion in completions
    ]
    write_jsonl(folder.verdicts, verdicts)
    unanswered = [verdict for verdict in verdicts if verdict.extracted is None]
    if unanswered:
        say(without_answer(unanswered, num=len(verdicts), max_new_tokens=recipe.sample.max_new_tokens))
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
            "choose another judge.verifier",
        ]
    return (
        f"judge: {len(unanswered)} of {num} samples have no final answer and count as wrong; for example prompt "
        f"{shown.prompt_id[:SHOWN]!r}, sample {shown.index}, ends {begun}{end!r}. {cut} of them were cut before they ended. To have "
        f"answers read, {', or '.join(advice)}."
    )


def _by_reward(
    recipe: Recipe,
    folder: RunFolder,
    model: str,
    prompts: Mapping[str, Prompt],
    completions: Sequence[Completion],
) -> dict[str, Any]:
    """Write verdicts that call a prompt's better half of samples correct: those above the median reward."""
    asked = [(prompts[completion.prompt_id], completion.text) for completion in completions]
    rewarded = reward(recipe, model, asked, folder=folder, path=folder.verdicts, description="judge")
    by_prompt: dict[str, list[Completion]] = {}
    for completion in completions:
        by_prompt.setdefault(completion.prompt_id, []).append(completion)
    verdicts = []
    for group in by_prompt.values():
        rewards = {one.text: rewarded.rewards[one.prompt_id, one.text] for one in group}
        better = dict(zip(rewards, above_median(list(rewards.values())), strict=True))
        verdicts += [
            _verdict(one, Verified(better[one.text], None, "reward_model"), reward=rewards[one.text])
            for one in group
        ]
    write_jsonl(folder.verdicts, verdicts)
    rewarded.lines.discard()
    mean = sum(verdict.reward for verdict in verdicts) / len(verdicts)
    return {
        "completions": len(verdicts),
        "cut": rewarded.num_cut,
        "mean_reward": mean,
        "unfinished": sum(not verdict.finished for verdict in verdicts),
    }


def check_verifiable(prompt: Prompt, *, verifier: str) -> None:
    """Raise `UserError` for a prompt without the data that its verifier needs."""
    if prompt.answer is None:
        raise UserError(
            f"prompt {prompt.id}: no `answer` to judge by. Add it, name a `judge.reward_model`, or give ready pairs "
            "(`data.pairs`). Replies to instructions, such as those of alpaca_eval, have no right answer: a model "
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
