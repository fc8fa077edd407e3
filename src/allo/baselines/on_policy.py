"""RLOO (arXiv 2402.14740) and GRPO (arXiv 2402.03300) through TRL, on the rewards of a verifier or a reward model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from allo.errors import DivergedError
from allo.files.records import Completion
from allo.models.internals import check
from allo.models.load import Model, Tokenizer, quiet
from allo.sampling.generate import end_ids, read

check(__name__)

Rewards = Callable[[Sequence[Completion]], list[float]]
OwnRewards = Callable[[Sequence[Completion], Mapping[str, Any]], list[float | None]]
"""The second argument is what TRL passes to a reward function besides prompts, completions and their ids."""


class _OurPrompts:
    """Changes that both trainers make to TRL: prompts are passed by id and tokenized by allo."""

    prompts: Mapping[str, list[int]]
    state: Any

    def training_step(self, model: Model, *rest: Any) -> Any:
        """Take a step after checking that logits are finite: sampling from NaN fails with unrelated errors."""
        ids = torch.tensor([next(iter(self.prompts.values()))], device=model.device)
        with torch.no_grad():
            finite = model(ids).logits.isfinite().all()
        if not finite:
            raise DivergedError(
                f"improve: after step {self.state.global_step} logits are no longer finite. Lower the learning rate, "
                "or check the data."
            )
        return super().training_step(model, *rest)  # type: ignore[misc]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.prompts[prompt] for prompt in prompts], None, {}

    def _send_telemetry(self) -> None:
        """Send nothing."""


class Rloo(_OurPrompts, RLOOTrainer):
    pass


class Grpo(_OurPrompts, GRPOTrainer):
    pass


def on_policy_trainer(
    kind: Callable[..., Rloo | Grpo],
    model: Model,
    args: RLOOConfig | GRPOConfig,
    prompts: Mapping[str, list[int]],
    tokenizer: Tokenizer,
    *,
    rewards: Rewards | Mapping[str, OwnRewards],
    turn_ends: Sequence[int] = (),
) -> Rloo | Grpo:
    """Build TRL's trainer of all of `model`'s weights, which samples from it while training.

    prompts: id -> token ids. rewards: of all samples of a step at once, or several functions of the user's by name,
    which TRL weighs by `args.reward_weights`. turn_ends: ids other than EOS that end a
    completion. If `args.beta` is above 0, the reference is read from the model's own folder.
    """
    own_ends = model.generation_config.eos_token_id
    ends = list(dict.fromkeys([*end_ids(model, tokenizer), *turn_ends]))

    def through_trl(name: str, function: OwnRewards) -> Callable[..., list[float | None]]:
        def judge(prompts: list[str], completion_ids: list[list[int]], **passed: Any) -> list[float | None]:
            read_back = [read(tokenizer, ids, eos=ends, stop=[]) for ids in completion_ids]
            samples = [
                Completion(prompt, 0, text, finished, len(ids), ids)
                for prompt, (text, finished, ids) in zip(prompts, read_back, strict=True)
            ]
            return function(samples, passed)

        judge.__name__ = name  # TRL logs a function's rewards by its name
        return judge

    if isinstance(rewards, Mapping):
        judges = rewards
    else:
        one = rewards  # narrowed, also inside the function below
        judges = {"judge": lambda samples, _: [*one(samples)]}
    model.generation_config.eos_token_id = ends  # TRL reads the end of a sample here
    with quiet():  # TRL loads the reference again
        trainer = kind(
            model,
            reward_funcs=[through_trl(name, function) for name, function in judges.items()],
            args=args,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=tokenizer,
        )
    trainer.prompts = prompts
    model.generation_config.eos_token_id = own_ends
    return trainer
