"""Sources of rewrites: the task's own solution, the nearest right sample, or the policy asked to repair.

Each source gives proposals by the case's id; a case without any is listed with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from allo.files.artifacts import sha256_json
from allo.files.records import Completion, Prompt
from allo.models.load import Tokenizer
from allo.models.start import load_start, read_start
from allo.rewriter.cases import Case, Run
from allo.sampling.completions import complete
from allo.stages.judge import verify
from allo.tokens.edit_distance import edit_share, nearest, text_ids
from allo.tokens.rewrite_wording import WORDING, ask_for_rewrite


@dataclass(frozen=True)
class Proposals:
    """Proposed rewrites of each case, and the reasons why others have none; both by the case's id."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def gold(cases: Sequence[Case]) -> Proposals:
    """Propose the problem's own solution; in the laboratory this is the exact rewrite."""
    found = Proposals()
    for case in cases:
        if case.wrong.solution is None:
            found.missing[case.wrong.id] = "no solution"
        else:
            found.texts[case.wrong.id] = [case.wrong.solution]
    return found


def nearest_right(cases: Sequence[Case], tokenizer: Tokenizer) -> Proposals:
    """Propose the prompt's right sample with the fewest token edits."""
    found = Proposals()
    for case in cases:
        if not case.wrong.right:
            found.missing[case.wrong.id] = "no right sample"
        else:
            found.texts[case.wrong.id] = [nearest(case.wrong.completion, case.wrong.right, tokenizer)]
    return found


def repaired(
    cases: Sequence[Case], run: Run, *, path: Path, num_generations: int, temperature: float
) -> Proposals:
    """Propose the policy's repairs of its completions; a killed run resumes where it stopped.

    The recipe's sampling settings apply, except the two given here. Only answers that ended by themselves count.
    """
    found = Proposals(
        missing={case.wrong.id: "nothing right to show" for case in cases if case.right is None}
    )
    asked = [
        Prompt(
            id=case.wrong.id,
            prompt=ask_for_rewrite(case.wrong.prompt, right=case.right, completion=case.wrong.completion),
            template=case.wrong.template,
        )
        for case in cases
        if case.right is not None
    ]
    settings = run.recipe.sample.decoding | {
        "num_generations": num_generations,
        "temperature": temperature,
        "seed": run.recipe.seed_of_data,
        "max_length": 2 * run.recipe.max_length,  # as much room again for the text shown
    }
    fingerprint = read_start(run.folder).fingerprint
    # Other settings or completions give other samples, which are stored under another name.
    key = sha256_json(
        [settings, fingerprint, WORDING, [[each.id, each.prompt, each.template] for each in asked]]
    )[:12]
    model, tokenizer = load_start(run.recipe, run.folder)
    completed = complete(
        model, tokenizer, asked, path=path.with_name(f"{path.name}.{key}"), description="repair", **settings
    )
    for completion in completed.completions:
        if completion.finished:
            found.texts.setdefault(completion.prompt_id, []).append(completion.text)
        else:
            found.missing[completion.prompt_id] = "not finished"
    completed.lines.discard()
    return found


def minimal(
    case: Case, texts: Sequence[str], run: Run, *, max_distance: float, verified: bool
) -> tuple[str | None, str]:
    """Return the nearest of the proposed rewrites that is right and near enough, otherwise None and the reason.

    `max_distance` is the largest share of the longer text's tokens that may be edited. `verified` first checks
    proposals against the prompt's answer.
    """
    if verified:
        texts = [text for text in texts if _is_right(case, text, run)]
        if not texts:
            return None, "not right"
    best = nearest(case.wrong.completion, texts, run.tokenizer)
    ids, rewritten = (text_ids(text, run.tokenizer) for text in (case.wrong.completion, best))
    if edit_share(ids, rewritten) > max_distance:
        return None, "too many edits"
    return best, ""


def _is_right(case: Case, text: str, run: Run) -> bool:
    prompt = run.prompts[case.wrong.prompt_id]
    rewrite = Completion(prompt.id, index=0, text=text, finished=True, num_tokens=0)
    return verify(prompt, rewrite, verifier=run.recipe.judge.verifier).correct
