"""A run's completions for rewriting: its wrong ones, and its right ones, which stay unchanged."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_jsonl
from allo.files.records import Prompt, Verdict, Wrong
from allo.models.load import Tokenizer
from allo.models.start import load_start_tokenizer
from allo.recipe import Recipe, load_recipe
from allo.tasks.pairing import distinct
from allo.tasks.sources import training_prompts
from allo.tokens.rewriter import shown_solution


@dataclass(frozen=True)
class Run:
    """A run that was judged and paired; `prompts` by id, empty for a run on ready pairs."""

    recipe: Recipe
    folder: RunFolder
    tokenizer: Tokenizer
    prompts: dict[str, Prompt]


@dataclass(frozen=True)
class Case:
    """A completion to rewrite, and the right solution to show, if there is one."""

    wrong: Wrong
    right: str | None


def open_run(place: Path, overrides: list[str] | None = None) -> Run:
    """Return the run of a folder or recipe. Raises `UserError` if its pairs do not exist yet."""
    recipe = load_recipe(place / "recipe.yaml" if place.is_dir() else place, overrides)
    folder = RunFolder(place if place.is_dir() else recipe.run_folder)
    if not folder.wrong.is_file():
        raise UserError(
            f"{folder.wrong}: not there yet; run `allo run --until pair` on the recipe first, which samples and judges."
        )
    tokenizer = load_start_tokenizer(recipe, folder)
    prompts = [] if recipe.data.is_ready else training_prompts(recipe)
    return Run(recipe, folder, tokenizer, {prompt.id: prompt for prompt in prompts})


def wrong_cases(run: Run) -> list[Case]:
    """Return every wrong completion of the run."""
    return [
        Case(wrong, shown_solution(wrong, run.tokenizer)) for wrong in read_jsonl(run.folder.wrong, Wrong)
    ]


def right_cases(run: Run) -> list[Case]:
    """Return every distinct right sample that ended by itself, to be left unchanged.

    A prompt without a solution shows its nearest other right sample, or the sample itself if there is no other.
    """
    cases = []
    for prompt, texts in _right_samples(run):
        for number, text in enumerate(texts):
            others = [other for other in texts if other != text] or [text]
            as_wrong = Wrong(
                id=f"{prompt.id}-right-{number}",
                prompt_id=prompt.id,
                prompt=prompt.prompt,
                completion=text,
                finished=True,
                solution=prompt.solution,
                right=others,
                template=prompt.template,
            )
            cases.append(Case(as_wrong, shown_solution(as_wrong, run.tokenizer)))
    return cases


def draw(cases: Sequence[Case], num: int, *, seed: int) -> list[Case]:
    """Draw `num` of the cases (all if there are fewer) by the hash of seed and id, in their own order."""
    by_hash = sorted(cases, key=lambda case: hashlib.sha256(f"{seed}:{case.wrong.id}".encode()).digest())
    drawn = {case.wrong.id for case in by_hash[:num]}
    return [case for case in cases if case.wrong.id in drawn]


def _right_samples(run: Run) -> list[tuple[Prompt, list[str]]]:
    """Return each prompt's right samples; for ready pairs, the chosen ones."""
    if not run.prompts:
        found: dict[str, tuple[Prompt, list[str]]] = {}
        for wrong in read_jsonl(run.folder.wrong, Wrong):
            prompt = Prompt(wrong.prompt_id, wrong.prompt, template=wrong.template)
            _, texts = found.setdefault(wrong.prompt_id, (prompt, []))
            texts += [text for text in wrong.right if text not in texts]
        return list(found.values())
    texts_of: dict[str, list[str]] = {}
    for verdict in distinct(read_jsonl(run.folder.verdicts, Verdict)):
        if verdict.correct and verdict.finished:
            texts_of.setdefault(verdict.prompt_id, []).append(verdict.text)
    return [(run.prompts[id], texts) for id, texts in texts_of.items()]
