"""Judge completions by their final answers."""

from typing import Any

from allo.artifacts import RunFolder, read_jsonl, write_jsonl
from allo.core.answers import verify_choice, verify_final_answer
from allo.errors import UserError
from allo.recipe import Recipe
from allo.records import Completion, Prompt, Verdict
from allo.sources import training_prompts


def run(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    prompts = {prompt.id: prompt for prompt in training_prompts(recipe)}
    verdicts = [
        judge(prompts[completion.prompt_id], completion, verifier=recipe.judge.verifier)
        for completion in read_jsonl(run.completions, Completion)
    ]
    write_jsonl(run.verdicts, verdicts)
    return {"completions": len(verdicts), "correct": sum(verdict.correct for verdict in verdicts)}


def check_judgeable(prompt: Prompt, *, verifier: str) -> None:
    """Raises `UserError` for a prompt without what the verifier judges by."""
    if prompt.answer is None:
        raise UserError(
            f"prompt {prompt.id}: no `answer` to judge by. Add it, or give ready pairs (`data.pairs`). Replies to "
            "instructions, such as those of alpaca_eval, have no right answer: a model judges them (docs/judging.md)."
        )
    if verifier == "choice" and prompt.choices is None:
        raise UserError(f"prompt {prompt.id}: judge.verifier is `choice`, but the prompt has no `choices`.")


def judge(prompt: Prompt, completion: Completion, *, verifier: str = "auto") -> Verdict:
    """A completion's verdict; its reward is 1 where the final answer is right, else 0.

    Raises `UserError` for a prompt that is not judgeable.
    """
    check_judgeable(prompt, verifier=verifier)
    assert prompt.answer is not None
    by_choice = verifier == "choice" or (verifier == "auto" and prompt.choices is not None)
    judgement = (
        verify_choice(completion.text, prompt.answer, prompt.choices or [])
        if by_choice
        else verify_final_answer(completion.text, prompt.answer)
    )
    return Verdict(
        prompt_id=completion.prompt_id,
        index=completion.index,
        text=completion.text,
        finished=completion.finished,
        correct=judgement.correct,
        reward=float(judgement.correct),
        extracted=judgement.extracted,
        verifier=judgement.verifier,
    )
