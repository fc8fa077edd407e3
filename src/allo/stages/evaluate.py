"""The evaluation of a run's models: accuracy or rewards with intervals, pass@k, and KL to the start."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from allo.console import say
from allo.delta import patch_of, read_delta
from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_jsonl, write_json
from allo.files.batches import Dealing, Parts, in_files, in_turn
from allo.files.evaluation import SCHEMA, Overlap
from allo.files.harness_results import BLOCK, kept, read_block
from allo.files.manifest import stages_done
from allo.files.records import Completion, Pair, Prompt
from allo.files.rounds import first_round, round_name, training_folders
from allo.models.collate import pad
from allo.models.load import Model, Tokenizer
from allo.models.model_checks import num_positions, prompt_room
from allo.models.policy import check_head, completion_distributions
from allo.models.start import load_start, read_start
from allo.models.thoughts import thoughts_of
from allo.models.tokenization import Tokenized, cut_left, tokenize
from allo.ranks import alone, rank
from allo.recipe import Recipe
from allo.recipe.sources import HELD_OUT, Kl
from allo.sampling.completions import complete
from allo.stages.held_out import HeldOutRows, held_out_rows, on_held_out
from allo.stages.judge import verify
from allo.stages.likelihood import ROWS, likelihood
from allo.stages.overlap import overlaps
from allo.stages.own_reward import function_rewards
from allo.stages.reward import measured_by, reward
from allo.stages.summarize import accuracies_on_set, answers_of, rewards_on_set
from allo.stats.metrics import bootstrap
from allo.tasks.answers.thoughts import Thoughts
from allo.tasks.own_rewards import Sample, right_or_wrong
from allo.tasks.sources import Sources, prompts_of
from allo.training.result import DELTA
from allo.weights.checkpoints import fingerprint
from allo.weights.places import Patch

LABELS = {
    "start": "start",
    "forgotten": "after forgetting",
    "aligned": "aligned",
}
BEHIND = {
    "start": (),
    "forgotten": ("locate", "score", "forget"),
    "aligned": ("locate", "score", "forget", "improve"),
}
"""The alignment stages behind each model."""
# Completions whose full-vocabulary distributions under both models are in memory at once.
KL_BATCH = 4


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `08-eval.json`: each model's results, and every completion behind them.

    Harness results are kept for models whose weights are the same.
    """
    sources = Sources(recipe)
    sets = sources.sets()
    held_out = held_out_rows(recipe, folder)
    parts: Parts = []
    seen = overlaps(sources, {**sets, **({HELD_OUT: held_out} if held_out else {})})
    results, completions = _measured(recipe, folder, sets, held_out, parts, seen)
    ranked = _add_rewards(recipe, folder, sets, completions, parts)
    if rank():
        return {}
    with alone():
        own = _add_own_rewards(recipe, folder, sets, completions, parts)
    ranked |= own.ranked
    for name, result in results.items():
        for label, rows in completions[name].items():
            mine = own.with_verdicts(label, rows)
            if label in ranked:
                start = completions.get("start", {}).get(label) if name != "start" else None
                start = None if start is None else own.with_verdicts(label, start)
                found = rewards_on_set(mine, start=start, seed=recipe.seed)
            else:
                found = accuracies_on_set(mine, seed=recipe.seed)
            result["sets"][label] = found | {"overlap": asdict(seen[label])}
    measured = {"schema": SCHEMA, "models": results, "completions": completions}
    write_json(folder.evaluation, measured | _harnessed(recipe, folder))
    for lines in parts:
        lines.discard()
    counts = {"models": len(results), "sets": len(sets)}
    return counts | ({"held_out": len(held_out)} if held_out else {})


def _measured(
    recipe: Recipe,
    folder: RunFolder,
    sets: dict[str, list[Prompt]],
    held_out: HeldOutRows,
    parts: Parts,
    seen: dict[str, Overlap],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return everything that needs the policy: each model's results except its sets, and its answers to them."""
    model, tokenizer = load_start(recipe, folder)
    check_head(model)
    results, completions, together = {}, {}, recipe.shards is not None
    for name, trained in _models(recipe, folder).items():
        patch = _patch(model, trained)
        with patch.exchanged():
            subject = _Subject(name, recipe, folder, model, tokenizer, parts)
            answers = {label: subject.answers(label, prompts) for label, prompts in sets.items()}
            continued = subject.continued(recipe.evaluate.kl) if trained and recipe.evaluate.kl else []
            file = folder.path / f"{folder.evaluation.name}.{name}"
            deal = in_files(file, parts, together=together)
            kl = _kl(continued, patch, recipe, model, tokenizer, deal) if continued else None
            moved = None
            if trained and (num_pairs := recipe.evaluate.likelihood_pairs):
                # Sampled from the starting model; with rounds, the first round's.
                pairs = read_jsonl(first_round(folder).pairs, Pair)[:num_pairs]
                settings = {"max_length": recipe.max_length, "size": min(ROWS, recipe.evaluate.batch_size)}
                moved = likelihood(pairs, model, tokenizer, patch.exchanged, **settings, deal=deal)
            at_start = patch.exchanged if trained else None
            on_rows = {}
            if held_out:
                deal = in_files(file.with_name(f"{file.name}.held-out"), parts, together=together)
                on_rows = on_held_out(recipe, held_out, model, tokenizer, at_start, seen[HELD_OUT], deal)
        results[name] = {
            "label": LABELS[name],
            "sets": {},
            "kl": kl,
            "likelihood": moved,
            **on_rows,
            **_cost(folder, name),
        }
        completions[name] = answers
    return results, completions


@dataclass(frozen=True)
class _ByFunctions:
    """The sets that functions measured: `ranked` by mean rewards, the others by accuracies.

    `no_verdict` has the prompts of each set of which an answer, of any model, has no verdict.
    """

    ranked: set[str]
    no_verdict: dict[str, set[str]]

    def with_verdicts(self, label: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows that figures are of, the same prompts for every model."""
        return [row for row in rows if row["prompt_id"] not in self.no_verdict.get(label, ())]


def _add_own_rewards(
    recipe: Recipe,
    folder: RunFolder,
    sets: dict[str, list[Prompt]],
    completions: dict[str, Any],
    parts: Parts,
) -> _ByFunctions:
    """Add to each answer on the sets that functions measure whether it is `correct`, or its `reward`."""
    mine = {label: some for label, some in sets.items() if measured_by(recipe, label, some) == "function"}
    found = _answers(mine, completions)
    if not found:
        return _ByFunctions(set(), {})
    samples = [Sample(prompt, answer["text"], answer.pop("token_ids")) for prompt, answer in found]
    rewards, lines = function_rewards(recipe, samples, path=folder.evaluation, description="rewards")
    parts.append(lines)
    own = _ByFunctions(set(), {})
    for label, prompts in mine.items():
        answers = [
            (prompt_id, answer, rewards[f"{label}/{prompt_id}", answer["text"]])
            for rows in completions.values()
            for row in rows[label]
            for prompt_id in [row["prompt_id"]]
            for answer in answers_of(row)
        ]
        is_accuracy = right_or_wrong(value for *_, value in answers)
        own.ranked.update(() if is_accuracy else (label,))
        own.no_verdict[label] = {prompt_id for prompt_id, _, value in answers if value is None}
        if left_out := len(own.no_verdict[label]):
            if left_out == len(prompts):
                raise UserError(
                    f"evaluate.sets.{label}: judge.function gave no verdict on any of its prompts."
                )
            say(
                f"evaluate.sets.{label}: judge.function gave no verdict on an answer to {left_out} of {len(prompts)} "
                "prompts, and the figures are without them"
            )
        for _, answer, value in answers:
            if value is not None:
                answer |= {"correct": value == 1} if is_accuracy else {"reward": value}
    return own


def _answers(
    sets: dict[str, list[Prompt]], completions: dict[str, Any]
) -> list[tuple[Prompt, dict[str, Any]]]:
    """Return every model's answers on the sets, each with its prompt under an id of its own."""
    prompts = {(label, prompt.id): prompt for label, some in sets.items() for prompt in some}
    return [
        (replace(prompts[label, row["prompt_id"]], id=f"{label}/{row['prompt_id']}"), answer)
        for answers in completions.values()
        for label in sets
        for row in answers[label]
        for answer in answers_of(row)
    ]


def _add_rewards(
    recipe: Recipe,
    folder: RunFolder,
    sets: dict[str, list[Prompt]],
    completions: dict[str, Any],
    parts: Parts,
) -> set[str]:
    """Add a reward model's `reward` to each answer on the sets that it measures, after the policy has left memory.

    Return the names of these sets.
    """
    mine = {label: some for label, some in sets.items() if measured_by(recipe, label, some) == "reward model"}
    found = _answers(mine, completions)
    if not found:
        return set()
    assert recipe.measuring_reward_model is not None
    rewarded = reward(
        recipe,
        recipe.measuring_reward_model,
        [(prompt, answer["text"]) for prompt, answer in found],
        folder=folder,
        path=folder.evaluation,
        description="rewards",
    )
    for prompt, answer in found:
        answer["reward"] = rewarded.rewards[prompt.id, answer["text"]]
    parts.append(rewarded.lines)
    return set(mine)


def _models(recipe: Recipe, folder: RunFolder) -> dict[str, Path | None]:
    """Return each model to evaluate with its delta's folder; None for the start itself."""
    models: dict[str, Path | None] = {"start": None} if recipe.evaluate.start else {}
    *between, last = training_folders(recipe, folder).values()
    if recipe.evaluate.forgotten and between:
        models["forgotten"] = between[0]
    return models | {"aligned": last}


def _harnessed(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Return the block of harness results, for models whose weights are the same."""
    block = read_block(folder.evaluation)
    folders = {
        name: trained for name, trained in _models(recipe, folder).items() if trained and name in block
    }
    weights = {name: fingerprint(trained / "model") for name, trained in folders.items()}
    found = kept(block, {"start": read_start(folder).fingerprint, **weights})
    return {BLOCK: found} if found else {}


def _patch(model: Model, trained: Path | None) -> Patch:
    """Return what makes the starting model that of a training stage's folder; nothing without a folder."""
    return patch_of(model, read_delta(trained / DELTA)) if trained else Patch({}, {}, {})


@dataclass
class _Subject:
    """One model under evaluation: `model` in its current state."""

    name: str
    recipe: Recipe
    folder: RunFolder
    model: Model
    tokenizer: Tokenizer
    parts: Parts = field(default_factory=list)

    def answers(self, label: str, prompts: list[Prompt]) -> list[dict[str, Any]]:
        """Return each prompt with its judged completions."""
        evaluate, thoughts = self.recipe.evaluate, thoughts_of(self.tokenizer, prompts)
        by = measured_by(self.recipe, label, prompts)
        by_id = {prompt.id: prompt for prompt in prompts}
        rows: dict[str, dict[str, Any]] = {
            one.id: {"prompt_id": one.id, "prompt": one.prompt, "answer": one.answer, "sampled": []}
            for one in prompts
        }
        if evaluate.greedy:
            for one in self._complete(label, prompts, "greedy", 1, 0.0):
                rows[one.prompt_id]["greedy"] = self._judged(by, by_id[one.prompt_id], one, thoughts)
        if number := evaluate.generations(label):
            for one in self._complete(label, prompts, "sampled", number, evaluate.temperature):
                rows[one.prompt_id]["sampled"].append(self._judged(by, by_id[one.prompt_id], one, thoughts))
        return list(rows.values())

    def continued(self, kl: Kl) -> list[tuple[Prompt, Completion]]:
        """Return sampled continuations of another task's prompts, for measuring KL."""
        prompts = prompts_of(self.recipe, kl)
        length = self.recipe.evaluate.kl_tokens
        temperature = self.recipe.evaluate.temperature
        # A kind of its own, since a set may be named kl.
        completions = self._complete("kl", prompts, "continued", 1, temperature, max_new_tokens=length)
        return list(zip(prompts, completions, strict=True))

    def _complete(
        self,
        label: str,
        prompts: list[Prompt],
        kind: str,
        num_generations: int,
        temperature: float,
        max_new_tokens: int | None = None,
    ) -> list[Completion]:
        evaluate = self.recipe.evaluate
        completed = complete(
            self.model,
            self.tokenizer,
            prompts,
            path=self.folder.path / f"{self.folder.evaluation.name}.{self.name}.{label}.{kind}",
            description=f"{self.name}, {label}, {kind}",
            max_length=self.recipe.max_length,
            max_new_tokens=max_new_tokens or evaluate.max_new_tokens,
            num_generations=num_generations,
            temperature=temperature,
            top_p=evaluate.top_p,
            batch_size=evaluate.batch_size,
            stop=self.recipe.sample.stop,
            seed=self.recipe.seed,
        )
        self.parts.append(completed.lines)
        return completed.completions

    def _judged(self, by: str, prompt: Prompt, completion: Completion, thoughts: Thoughts) -> dict[str, Any]:
        correct = None
        if by == "answers":
            verifier = self.recipe.judge.verifier
            correct = verify(prompt, completion, verifier=verifier, thoughts=thoughts).correct
        judged = {"text": completion.text, "correct": correct, "num_tokens": completion.num_tokens}
        return judged | ({"token_ids": completion.token_ids} if by == "function" else {})


def _kl(
    continued: list[tuple[Prompt, Completion]],
    patch: Patch,
    recipe: Recipe,
    model: Model,
    tokenizer: Tokenizer,
    deal: Dealing = in_turn,
) -> dict[str, Any]:
    """Return the mean KL(model || start) over tokens of the model's own text, exact over the vocabulary."""
    length = recipe.evaluate.kl_tokens
    room = prompt_room(num_positions(model.config), max_length=recipe.max_length, max_new_tokens=length)
    rows: list[Tokenized] = []
    for prompt, completion in continued:
        tokens = tokenize(
            tokenizer,
            prompt.prompt,
            completion.text,
            finished=completion.finished,
            completion_ids=completion.token_ids,
            max_length=room + length,
            template=prompt.template,
            place=f"prompt {prompt.id}",
        )
        if tokens is not None:
            # Sampling cut the prompt to its room, even if the completion then was short.
            rows.append(replace(tokens, prompt_ids=cut_left(tokenizer, tokens.prompt_ids, room)))
    size = min(KL_BATCH, recipe.evaluate.batch_size)

    def divergences(number: int) -> list[dict[str, Any]]:
        part = rows[number * size : (number + 1) * size]
        batch = pad([(one.prompt_ids, one.completion_ids) for one in part], pad_id=tokenizer.pad_token_id)
        batch = {key: value.to(model.device) for key, value in batch.items()}
        logps = completion_distributions(model, batch)
        with patch.exchanged():
            start_logps = completion_distributions(model, batch)
        values = (logps.exp() * (logps - start_logps)).sum(-1)
        return [{"kl": group.tolist()} for group in values.split([len(one.completion_ids) for one in part])]

    found = deal("KL to the start", -(-len(rows) // size), divergences)
    groups = [one["kl"] for batch in found for one in batch]
    estimate = bootstrap(groups, seed=recipe.seed)
    assert recipe.evaluate.kl is not None
    name = recipe.evaluate.kl.task or str(recipe.evaluate.kl.file or recipe.evaluate.kl.hub)
    return {"set": name, **estimate.figure, "num_tokens": estimate.num}


def _cost(folder: RunFolder, name: str) -> dict[str, Any]:
    """Return the cost of the model: trained weights, seconds and training state of the stages behind it."""
    done = [entry for stage, entry in stages_done(folder).items() if _is_behind(name, stage)]
    counts = [entry["counts"] for entry in done]
    return {
        "trained_weights": max((count.get("trained_weights", 0) for count in counts), default=0),
        "density": max((count.get("density", 0.0) for count in counts), default=0.0),
        # includes the warm-up, which trains all weights for a while, whatever share is kept
        "training_state_bytes": max((count.get("training_state_bytes", 0) for count in counts), default=0),
        "seconds": sum(entry["seconds"] for entry in done),
    }


def _is_behind(name: str, stage: str) -> bool:
    """Return whether a stage is behind a model; of sampling, only later rounds' own counts."""
    place, _, verb = stage.rpartition("/")
    return verb in BEHIND[name] or (name != "start" and place not in ("", round_name(1)))
