"""A reward model's rewards for completions, batch by batch, resumed after an interruption."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allo.console import say
from allo.errors import UserError
from allo.files.artifacts import RunFolder
from allo.files.batches import Batches
from allo.files.records import Prompt, Template
from allo.models.load import Tokenizer
from allo.models.model_checks import num_positions
from allo.models.reward_model import (
    RewardModel,
    check_reward_folder,
    judged_ids,
    load_reward_model,
    load_reward_tokenizer,
    read_reward_config,
)
from allo.models.start import DTYPES, give_date, load_start_tokenizer
from allo.models.thoughts import thoughts_of
from allo.recipe import Recipe
from allo.tasks.answers.thoughts import USUAL

Asked = tuple[Prompt, str]  # a prompt and a completion of it
Key = tuple[str, str]  # the prompt's id and the completion
Rows = dict[Key, tuple[list[int], bool]]


@dataclass(frozen=True)
class Rewarded:
    """Rewards by prompt id and completion text; `num_cut` texts were read without their beginning.

    `lines` is the part file, to discard once the rewards are written.
    """

    rewards: dict[Key, float]
    num_cut: int
    lines: Batches


@dataclass(frozen=True)
class Reader:
    """A reward model with a recipe's settings: at most `max_length` tokens of a text, `batch_size` texts together.

    `policy` is the tokenizer of the model that wrote the texts, which knows their thoughts; None assumes the usual
    ones.
    """

    model: RewardModel
    max_length: int
    batch_size: int
    policy: Tokenizer | None = None

    def rewards(self, asked: Sequence[Asked]) -> tuple[list[float], int]:
        """Return one reward for each (prompt, completion), in order, and the number of texts read without their
        beginning.

        Equal texts are read once.
        """
        rows = self.rows(asked)
        found: dict[Key, float] = {}
        for batch in self.batches(rows):
            found |= zip(batch, self.model.rewards([rows[key][0] for key in batch]), strict=True)
        return [found[prompt.id, text] for prompt, text in asked], sum(cut for _, cut in rows.values())

    def rows(self, asked: Sequence[Asked]) -> Rows:
        """Return each text's token ids without its thoughts, and whether its beginning was cut off."""
        prompts = {(prompt.id, text): prompt for prompt, text in asked}
        thoughts = USUAL if self.policy is None else thoughts_of(self.policy, prompts.values())
        return {
            key: judged_ids(
                self.model.tokenizer,
                prompt.prompt,
                thoughts.spoken(key[1], prompt.prompt, prompt.template),
                max_length=self.max_length,
                template=prompt.template,
                place=f"prompt {prompt.id}",
            )
            for key, prompt in prompts.items()
        }

    def batches(self, rows: Rows) -> list[list[Key]]:
        """Return batches of texts with similar lengths, the longest first."""
        ordered = sorted(rows, key=lambda key: (-len(rows[key][0]), key))
        return [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]


def load_reader(recipe: Recipe, model: str, folder: RunFolder) -> Reader:
    """Return the reward model with the settings of the recipe's `judge`, on the run's date.

    You are warned if it has fewer positions than `max_length`.
    """
    judge = recipe.judge
    loaded = load_reward_model(
        model,
        dtype=DTYPES[judge.dtype],
        device=recipe.device,
        pad_token=judge.pad_token,
        trust_remote_code=recipe.trust_remote_code,
    )
    give_date(loaded.tokenizer, folder)
    positions = num_positions(loaded.model.config)
    if positions is not None and positions < judge.max_length:
        say(
            f"{model} has {positions} positions: longer texts lose their beginning (judge.max_length is {judge.max_length})"
        )
    policy = load_start_tokenizer(recipe, folder)
    return Reader(loaded, min(judge.max_length, positions or judge.max_length), judge.batch_size, policy)


def reward(
    recipe: Recipe, model: str, asked: Sequence[Asked], *, folder: RunFolder, path: Path, description: str
) -> Rewarded:
    """Return a reward model's rewards for (prompt, completion)s.

    Equal texts are read once, so they have one reward whoever wrote them.
    """
    reader = load_reader(recipe, model, folder)
    rows = reader.rows(asked)
    batches = reader.batches(rows)

    def rewarded(number: int) -> list[dict[str, Any]]:
        found = reader.model.rewards([rows[key][0] for key in batches[number]])
        return [{"key": key, "reward": one} for key, one in zip(batches[number], found, strict=True)]

    lines = Batches(path, len(batches), suffix=".rewards.part")
    lines.fill(lambda numbers: ((number, rewarded(number)) for number in numbers), description)
    rewards = {
        (row["key"][0], row["key"][1]): float(row["reward"]) for batch in lines.rows() for row in batch
    }
    return Rewarded(rewards, sum(cut for _, cut in rows.values()), lines)


def measured_by(recipe: Recipe, name: str, prompts: Sequence[Prompt]) -> str:
    """Return what measures an evaluation set: "answers", "function" or "reward model".

    Raises `UserError` if only some prompts have an answer, and a reward model would measure the others.
    """
    block = recipe.evaluate.sets.get(name)  # held-out prompts have none
    by_answer = block is not None and block.by_answer
    own = recipe.judge.function and not by_answer
    if own and (recipe.evaluate.reward_model is None or any(prompt.answer is not None for prompt in prompts)):
        return "function"
    if recipe.measuring_reward_model and not by_answer and has_no_answers(name, prompts):
        return "reward model"
    return "answers"


def has_no_answers(name: str, prompts: Sequence[Prompt]) -> bool:
    """Return whether rewards measure an evaluation set. Raises `UserError` if only some prompts have an answer."""
    without = [prompt for prompt in prompts if prompt.answer is None]
    if without and len(without) < len(prompts):
        raise UserError(
            f"evaluate.sets.{name}: {len(prompts) - len(without)} of {len(prompts)} prompts have an `answer`, and "
            f"{without[0].id} has none: make two sets of it, one judged by answers and one by rewards."
        )
    return bool(without)


def check_reward_model(recipe: Recipe, key: str, model: str, prompts: Sequence[Prompt]) -> None:
    """Check that a recipe key's model is a reward model, and can read the prompts.

    Weight headers are checked in a local folder; a hub model is checked once loaded. You are warned if the model does
    not see the prompts' tools or documents. Raises `UserError` if it is none, cannot read them, or has nothing to
    judge.
    """
    judge = recipe.judge
    if not prompts:
        raise UserError(
            f"{key}: nothing is judged by it. It is for samples, which ready pairs have none of, and for evaluation sets "
            "without answers: remove it, or evaluate on prompts without `answer`."
        )
    config = read_reward_config(model, trust_remote_code=recipe.trust_remote_code)
    tokenizer, _ = load_reward_tokenizer(
        model, config, pad_token=judge.pad_token, trust_remote_code=recipe.trust_remote_code
    )
    folder = Path(model).expanduser()
    if folder.is_dir():
        check_reward_folder(folder, model, config, trust_remote_code=recipe.trust_remote_code)

    def ids(prompt: Prompt, template: Template | None) -> list[int]:
        place = f"prompt {prompt.id}"
        return judged_ids(
            tokenizer, prompt.prompt, "", max_length=sys.maxsize, template=template, place=place
        )[0]

    unseen = 0
    for prompt in prompts:
        read, given = ids(prompt, prompt.template), prompt.template or {}
        if given.get("tools") or given.get("documents"):
            without: Template = {**given, "tools": [], "documents": []}
            unseen += read == ids(prompt, without)
    if unseen:
        say(
            f"{key}: {model} is not shown the `tools` or `documents` of {unseen} of {len(prompts)} prompts: it has no chat "
            "template that writes them"
        )
