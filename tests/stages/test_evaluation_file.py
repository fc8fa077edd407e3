"""`08-eval.json`, made from two deltas by hand: whose answers, accuracy, distance and cost it holds, and what stays."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from allo.delta import write_delta
from allo.errors import UserError
from allo.files.artifacts import ResumableLines, RunFolder, read_json, write_json, write_jsonl
from allo.files.harness_results import add
from allo.files.records import Completion, Pair, Prompt
from allo.models.load import Model, Tokenizer, load_model, load_tokenizer
from allo.models.start import START_FILE, read_start
from allo.recipe import Recipe
from allo.sampling.completions import Completed
from allo.stages import evaluate
from allo.stages.reward import Rewarded
from allo.tasks.sources import prompts_of
from allo.weights.fingerprints import as_bits
from tiny_run import LAB, tiny

NORM = "model.norm.weight"
SETS = "evaluate.sets={one: {task: planted_flaws, split: test, limit: 3}, other: {task: planted_flaws, split: reworded, limit: 2}}"
SETTINGS = (
    *(SETS, "evaluate.max_new_tokens=5", "evaluate.likelihood_pairs=1", "evaluate.forgotten=true"),
    *("sft=null", "evaluate.kl.limit=3"),
)
COUNTS = {
    "locate": {"training_state_bytes": 70},
    "forget": {"trained_weights": 5, "density": 0.1},
    "improve": {"trained_weights": 3, "density": 0.2, "training_state_bytes": 30},
}


@pytest.fixture(scope="module")
def policy() -> tuple[Model, Tokenizer]:
    return load_model(LAB, dtype=torch.float32, device="cpu"), load_tokenizer(str(LAB))


def bits(model: Model) -> dict[str, Tensor]:
    return {name: as_bits(param.detach().reshape(-1)).clone() for name, param in model.named_parameters()}


def write_run(run: RunFolder, model: Model) -> None:
    """Write a run in which forgetting turned the final norm round, and improving emptied it."""
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    norm = dict(model.named_parameters())[NORM].detach()
    (run.path / "00-sft").mkdir(parents=True)
    for folder, values in ((run.forget, -norm), (run.improve, torch.zeros_like(norm))):
        folder.mkdir()
        write_delta(
            folder / "delta.safetensors",
            indices={NORM: torch.arange(len(norm), dtype=torch.int32)},
            values={NORM: values.clone()},
            shapes=shapes,
            base_hashes=dict.fromkeys(shapes, ""),
            metadata={},
        )
    write_json(run.path / "00-sft" / START_FILE, {"model": str(LAB), "hashes": {NORM: "00"}})
    write_jsonl(run.pairs, [Pair("p", "Tom has 7 pens.\n", "7 + 2 = 9.", "7 + 2 = 8.")] * 2)
    made = {"hash": "", "outputs": {}, "seconds": 2.0}
    stages = {name: made | {"counts": counts} for name, counts in COUNTS.items()}
    write_json(run.manifest, {"identity": {}, "stages": stages})


@pytest.fixture
def run(tmp_path: Path, policy: tuple[Model, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    run = tiny(tmp_path).run_folder
    write_run(RunFolder(run), policy[0])
    starts = {str(LAB): policy}
    monkeypatch.setattr(evaluate, "load_start", lambda recipe, folder: starts[recipe.model])
    return RunFolder(run)


def answers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [answer for row in rows for answer in (row["greedy"], *row["sampled"])]


def test_each_model_has_its_own_answers_distance_and_cost(
    run: RunFolder, policy: tuple[Model, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bits(policy[0])
    fingerprint = read_start(run).fingerprint
    for name, weights in (("start", fingerprint), ("forgotten", "others"), ("aligned", "others")):
        add(run.evaluation, name, label=name, fingerprint=weights, result={"task": "gsm8k"}, replaces=True)
    monkeypatch.setattr(
        evaluate, "fingerprint", lambda path: "others" if path == run.improve / "model" else "its own"
    )
    monkeypatch.setattr(evaluate, "KL_BATCH", 2)  # two batches of three texts
    counts = evaluate.run(tiny(tmp_path, *SETTINGS), run)
    assert all(torch.equal(before[name], now) for name, now in bits(policy[0]).items())
    assert counts == {"models": 3, "sets": 2}
    found = read_json(run.evaluation)
    assert found.keys() == {"schema", "models", "completions", "harness"} and found["schema"] == 1
    models, completions = found["models"], found["completions"]
    labels = {"start": "start", "forgotten": "after forgetting", "aligned": "aligned"}
    assert {name: one["label"] for name, one in models.items()} == labels
    for name, one in models.items():
        for label, size in (("one", 3), ("other", 2)):
            rows, measured = completions[name][label], one["sets"][label]
            assert len(rows) == len({row["prompt_id"] for row in rows}) == size == measured["num_prompts"]
            assert all(row["prompt"] and row["answer"] and len(row["sampled"]) == 2 for row in rows)
            assert measured["overlap"]["num"] == size
            tokens = [answer["num_tokens"] for answer in answers(rows)]
            assert max(tokens) <= 5 and measured["mean_tokens"] == sum(tokens) / len(tokens)
    # Without its norm the model takes the first of equal tokens, greedily, whatever the prompt.
    emptied = {row["greedy"]["text"] for rows in completions["aligned"].values() for row in rows}
    others = {row["greedy"]["text"] for rows in completions["start"].values() for row in rows}
    assert len(emptied) == 1 and not emptied & others
    assert models["start"]["kl"] is models["start"]["likelihood"] is None
    flat, turned = models["aligned"]["kl"], models["forgotten"]["kl"]
    assert (flat["set"], flat["num_tokens"]) == ("planted_flaws", 3 * 5)
    assert 0 < flat["low"] <= flat["value"] <= flat["high"] and turned["value"] > 0
    assert flat["value"] != turned["value"]
    vocabulary = policy[0].config.vocab_size
    moved = models["aligned"]["likelihood"]
    assert moved["num_pairs"] == 1 and moved["chosen"] > -math.log(vocabulary), (
        "the start gave them less than 1"
    )
    costs = {name: (one["trained_weights"], one["density"], one["seconds"]) for name, one in models.items()}
    assert costs == {"start": (0, 0.0, 0), "forgotten": (5, 0.1, 4.0), "aligned": (5, 0.2, 6.0)}
    assert found["harness"].keys() == {"start", "aligned"}, "the forgotten model has other weights now"
    left = {path.name for path in run.path.iterdir()}
    assert left == {"00-sft", "03-pairs.jsonl", "06-forget", "07-improve", "08-eval.json", "manifest.json"}


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["evaluate.start=false", "evaluate.forgotten=false"], ["aligned"]),
        (["evaluate.forgotten=false"], ["start", "aligned"]),
        (["improve=null"], ["start", "aligned"]),
        (["evaluate.start=false"], ["forgotten", "aligned"]),
    ],
)
def test_the_models_are_those_asked_for(
    run: RunFolder, tmp_path: Path, overrides: list[str], names: list[str]
) -> None:
    recipe = tiny(tmp_path, *SETTINGS, *overrides)
    models = evaluate._models(recipe, run)
    assert list(models) == names
    assert models["aligned"] == (run.forget if recipe.improve is None else run.improve)
    assert models.get("start") is None and models.get("forgotten", run.forget) == run.forget


def test_completions_are_sampled_as_the_recipe_says_and_judged_with_their_lengths(
    run: RunFolder, policy: tuple[Model, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = "one: {task: planted_flaws, split: test, limit: 2, num_generations: 3}"
    recipe = tiny(
        tmp_path,
        *(
            f"evaluate.sets={{{one}}}",
            "evaluate.temperature=0.3",
            "evaluate.top_p=0.8",
            "evaluate.batch_size=7",
        ),
        *(
            "evaluate.max_new_tokens=6",
            "evaluate.kl.max_new_tokens=4",
            "sample.stop=[x]",
            "max_length=99",
            "seed=9",
        ),
    )
    asked: list[dict[str, Any]] = []

    def complete(model: Model, tokenizer: Tokenizer, prompts: list[Prompt], **settings: Any) -> Completed:
        asked.append(settings | {"prompts": [prompt.id for prompt in prompts]})
        num = settings["num_generations"]
        found = [
            Completion(
                prompt.id,
                index,
                f"The answer is {prompt.answer if index % 2 == 0 else 'not'}.",
                True,
                10 + index,
            )
            for prompt in prompts
            for index in range(num)
        ]
        return Completed(found, 0, ResumableLines(settings["path"]))

    monkeypatch.setattr(evaluate, "complete", complete)
    subject = evaluate._Subject("aligned", recipe, run, *policy)
    prompts = prompts_of(recipe, recipe.evaluate.sets["one"])
    rows = subject.answers("one", prompts)
    assert recipe.evaluate.kl is not None
    subject.continued(recipe.evaluate.kl)
    for row, prompt in zip(rows, prompts, strict=True):
        assert (row["prompt_id"], row["prompt"], row["answer"]) == (prompt.id, prompt.prompt, prompt.answer)
        assert [answer["correct"] for answer in row["sampled"]] == [True, False, True]
        assert [answer["num_tokens"] for answer in row["sampled"]] == [10, 11, 12]
        assert row["greedy"] == {"text": f"The answer is {prompt.answer}.", "correct": True, "num_tokens": 10}
    same = {"top_p": 0.8, "batch_size": 7, "stop": ["x"], "seed": 9, "max_length": 99}
    expected = [
        {
            "num_generations": 1,
            "temperature": 0.0,
            "max_new_tokens": 6,
            "description": "aligned, one, greedy",
        },
        {
            "num_generations": 3,
            "temperature": 0.3,
            "max_new_tokens": 6,
            "description": "aligned, one, sampled",
        },
        {
            "num_generations": 1,
            "temperature": 0.3,
            "max_new_tokens": 4,
            "description": "aligned, kl, continued",
        },
    ]
    for settings, wanted in zip(asked, expected, strict=True):
        assert settings.items() >= (same | wanted).items()
        name = wanted["description"].replace(", ", ".")
        assert settings["path"] == run.path / f"08-eval.json.{name}"
    assert asked[0]["prompts"] == [prompt.id for prompt in prompts]
    assert [lines.path for lines in subject.parts] == [
        ResumableLines(settings["path"]).path for settings in asked
    ]
    monkeypatch.setattr(evaluate, "complete", lambda *_, path, **__: Completed([], 0, ResumableLines(path)))
    with pytest.raises(ValueError, match="shorter"):
        subject.continued(recipe.evaluate.kl)


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ("num_generations=0", {"greedy"}),
        ("greedy=false", {"sampled"}),
        ("greedy=true", {"greedy", "sampled"}),
    ],
)
def test_a_kind_of_completion_that_is_not_asked_for_is_not_sampled(
    settings: str, kinds: set[str], run: RunFolder, policy: tuple[Model, Tokenizer], tmp_path: Path
) -> None:
    recipe = tiny(tmp_path, *SETTINGS, f"evaluate.{settings}")
    subject = evaluate._Subject("start", recipe, run, *policy)
    rows = subject.answers("one", prompts_of(recipe, recipe.evaluate.sets["one"])[:1])
    assert {kind for kind in ("greedy", "sampled") if rows[0].get(kind)} == kinds
    assert len(subject.parts) == len(kinds)


def test_a_text_whose_distance_cannot_be_measured_is_named_by_its_prompt(
    run: RunFolder, policy: tuple[Model, Tokenizer], tmp_path: Path
) -> None:
    model, tokenizer = policy
    ended = Completion("p7", 0, "First", False, 1, [tokenizer.eos_token_id])  # but said not to have ended
    with pytest.raises(UserError, match="prompt p7"):
        evaluate._kl(
            [(Prompt("p7", "Tom"), ended)], evaluate._patch(model, None), tiny(tmp_path), model, tokenizer
        )


@pytest.mark.parametrize("with_model", [True, False])
def test_rewards_are_given_to_every_answer_of_open_sets_and_to_no_other(
    with_model: bool, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": f"p{n}", "prompt": f"Tom has {n} pens.\n"} for n in range(2)]
    write_jsonl(tmp_path / "open.jsonl", rows if with_model else [row | {"answer": "1"} for row in rows])
    file, closed = f"{{file: {tmp_path / 'open.jsonl'}}}", "{task: planted_flaws, split: test, limit: 1}"
    recipe = tiny(
        tmp_path,
        *(f"evaluate.sets={{open: {file}, other: {file}, closed: {closed}}}", "evaluate.max_new_tokens=3"),
        *("evaluate.reward_model=judge", "evaluate.kl=null", "sft=null", "data.limit=2"),
    )
    asked: list[tuple[str, str]] = []

    def reward(recipe: Recipe, model: str, pairs: list[tuple[Prompt, str]], **settings: Any) -> Rewarded:
        assert (
            model == "judge" == recipe.evaluate.reward_model
            and settings["folder"] == run
            and settings["path"] == run.evaluation
        )
        asked.extend((prompt.id, text) for prompt, text in pairs)
        assert all(prompt.prompt in {row["prompt"] for row in rows} for prompt, _ in pairs)
        found = {key: float(place) for place, key in enumerate(dict.fromkeys(asked))}
        lines = ResumableLines(run.evaluation, suffix=".rewards.part")
        lines.append([{"reward": 0.0}])
        return Rewarded(found, 0, lines)

    monkeypatch.setattr(evaluate, "reward", reward)
    evaluate.run(recipe, run)
    found = read_json(run.evaluation)
    assert not list(run.path.glob("*.part"))
    places = {key: float(place) for place, key in enumerate(dict.fromkeys(asked))}
    for name, completions in found["completions"].items():
        for label, given in completions.items():
            has_rewards = with_model and label != "closed"
            measured = found["models"][name]["sets"][label]
            assert ("rewards" in measured) == has_rewards and (measured["greedy"] is None) == has_rewards
            for row in given:
                for answer in (row["greedy"], *row["sampled"]):
                    key = (f"{label}/{row['prompt_id']}", answer["text"])
                    assert answer.get("reward") == (places[key] if has_rewards else None)
                    assert (answer["correct"] is None) == has_rewards
    if with_model:
        won = {
            name: one["sets"]["open"]["rewards"]["greedy"]["win_rate"]
            for name, one in found["models"].items()
        }
        assert won["start"] is None and won["aligned"]["num"] == 2
        assert len(asked) == 2 * 2 * (2 + 1) * 2, "two models, two sets, two prompts of three answers"
