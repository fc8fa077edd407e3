"""A sampled completion is trained on and scored as the ids that were sampled, in every stage.

The model is random, so that its samples are nearly never the ids that their text tokenizes to: a stage that
tokenizes a text again is seen.
"""

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaModel

from allo.files.artifacts import RunFolder, read_jsonl, write_jsonl
from allo.files.records import Completion, Pair, Verdict, Wrong
from allo.files.stage import Stage
from allo.models import policy
from allo.models.load import load_tokenizer
from allo.models.tokenization import prompt_ids
from allo.pipeline import run_all
from allo.recipe import Recipe
from allo.sampling import generate as sampling
from allo.stages import evaluate, forget
from allo.tasks.answers import Verified
from tiny_chat import chat_tokenizer, save_chat_model
from tiny_run import tiny

pytestmark = pytest.mark.invariant("Every stage trains on and scores the ids that were sampled.")

ENDOFTEXT, IM_END = 0, 2
ENDS = [ENDOFTEXT, IM_END, *range(10, 400, 5)]  # many, so that about half of the samples end
BESIDE = ["contrastive", "right_confidence", "advantage", "privileged", "confidence", "edit"]
STEP = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 60}
PROMPTS = 8
Ids = tuple[int, ...]


@dataclass
class Seen:
    """The rows that each stage gave the model to score, and the samples; `now` is the stage at work."""

    now: str = ""
    scored: dict[str, set[tuple[Ids, Ids]]] = field(
        default_factory=dict
    )  # (row up to the completion, completion)
    rows: dict[str, list[Ids]] = field(default_factory=dict)  # all that a model read
    sampled: dict[str, set[Ids]] = field(default_factory=dict)
    continued: list[Completion] = field(default_factory=list)

    def completions(self, stage: str) -> set[Ids]:
        return {completion for _, completion in self.scored[stage]}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Watch the stages: what `decode` draws, and which targets the log-probs are taken of."""
    found = Seen()
    run, hidden, decode, complete = Stage.run, policy._hidden_states, sampling.decode, evaluate.complete
    forward = LlamaModel.forward

    def watched(self: Stage, recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
        found.now = self.name.rpartition("/")[2]
        return run(self, recipe, folder)

    def scoring(model: Any, batch: dict[str, Any]) -> Any:
        if "targets" in batch:
            flat = batch["input_ids"].reshape(-1).tolist()
            width = batch["input_ids"].shape[1]
            for targets, mask, sources in zip(
                batch["targets"], batch["completion_mask"], batch["sources"], strict=True
            ):
                first = int(sources[0])
                before = tuple(flat[first - first % width : first + 1])
                found.scored.setdefault(found.now, set()).add((before, tuple(targets[mask].tolist())))
        return hidden(model, batch)

    def drawing(*arguments: Any, **more: Any) -> list[list[int]]:
        rows = decode(*arguments, **more)
        found.sampled.setdefault(found.now, set()).update(map(tuple, rows))
        return rows

    def completing(*arguments: Any, **more: Any) -> Any:
        completed = complete(*arguments, **more)
        if ".kl." in more["path"].name:
            found.continued += completed.completions
        return completed

    def reading(self: Any, input_ids: Any = None, *arguments: Any, **more: Any) -> Any:
        if input_ids is not None:
            found.rows.setdefault(found.now, []).extend(map(tuple, input_ids.tolist()))
        return forward(self, input_ids, *arguments, **more)

    def judged(text: str, answer: str, **_: object) -> Verified:
        return Verified(sum(map(ord, text)) % 2 == 0, text[-1:] or None, "final_answer")

    monkeypatch.setattr(Stage, "run", watched)
    monkeypatch.setattr(policy, "_hidden_states", scoring)
    monkeypatch.setattr(sampling, "decode", drawing)
    monkeypatch.setattr(evaluate, "complete", completing)
    monkeypatch.setattr(LlamaModel, "forward", reading)
    monkeypatch.setattr("allo.stages.judge.verify_final_answer", judged)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer's EOS is not the end of a turn, and problems for it."""
    place = tmp_path_factory.mktemp("chat")
    save_chat_model(place / "model", chat_tokenizer(eos="<|endoftext|>"), ends=ENDS)
    rows = [
        {
            "id": f"p{n}",
            "prompt": f"What colour is {n}?",
            "answer": "4",
            "solution": f"so {n}. The answer is 4.",
        }
        for n in range(PROMPTS)
    ]
    (place / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def recipe(folder: Path, out: Path, *more: str) -> Recipe:
    rows = json.dumps({"file": str(folder / "problems.jsonl")})
    steps = [
        f"{block}.training.{key}={value}"
        for block in ("locate", "score", "forget", "improve")
        for key, value in STEP.items()
    ]
    own = [
        f"model={folder / 'model'}",
        "sft=null",
        "chat=true",
        f"data={rows}",
        f"evaluate.sets={{test: {rows}}}",
        f"evaluate.kl={rows}",
        "evaluate.likelihood_pairs=100",
        "sample.num_generations=6",
        "sample.max_new_tokens=12",
        "score.scorer=implicit",
        f"score.beside={json.dumps(BESIDE)}",
    ]
    return tiny(out, *own, *steps, *more)


def sides(pairs: list[Pair]) -> set[Ids]:
    return {tuple(ids) for pair in pairs for ids in (pair.chosen_token_ids, pair.rejected_token_ids) if ids}


def test_every_stage_scores_the_sampled_ids(folder: Path, tmp_path: Path, seen: Seen) -> None:
    run = run_all(recipe(folder, tmp_path))
    tokenizer = load_tokenizer(folder / "model")
    completions = read_jsonl(run.completions, Completion)
    verdicts = read_jsonl(run.verdicts, Verdict)
    pairs, wrong = read_jsonl(run.pairs, Pair), read_jsonl(run.wrong, Wrong)

    # The records hold what was drawn, with what ended it, and it is not what the text tokenizes to.
    assert {tuple(one.token_ids or ()) for one in completions} == seen.sampled["sample"]
    assert all(one.finished == (one.token_ids[-1] in ENDS) for one in completions if one.token_ids)
    assert all(one.num_tokens == len(one.token_ids or ()) for one in completions)
    again = [tokenizer(one.text, add_special_tokens=False).input_ids for one in completions]
    differing = sum(
        ids != (one.token_ids or [])[: one.num_tokens - one.finished]
        for ids, one in zip(again, completions, strict=True)
    )
    assert differing > len(completions) / 2
    by_text = {(one.prompt_id, one.index): one.token_ids for one in completions}
    assert all(one.token_ids == by_text[one.prompt_id, one.index] for one in verdicts)
    ids_of = {(one.prompt_id, one.text): one.token_ids for one in reversed(completions)}
    assert all(one.token_ids == ids_of[one.prompt_id, one.completion] for one in wrong)
    for pair in pairs:
        assert pair.chosen_token_ids == ids_of[pair.prompt_id, pair.chosen]
        assert pair.rejected_token_ids == ids_of[pair.prompt_id, pair.rejected]

    # The ids that are trained on and scored.
    wrong_ids = {tuple(one.token_ids or ()) for one in wrong}
    continued = {tuple(one.token_ids or ()) for one in seen.continued}
    assert continued and continued <= seen.sampled["evaluate"]
    assert seen.completions("locate") == seen.completions("improve") == sides(pairs)
    assert seen.completions("forget") == wrong_ids
    assert seen.completions("score") == wrong_ids | sides(pairs)
    assert seen.completions("evaluate") == continued | sides(pairs)
    prompts = {tuple(prompt_ids(tokenizer, pair.prompt)) for pair in pairs}
    befores = {before for before, _ in seen.scored["locate"] | seen.scored["forget"]}
    assert {before[: len(prompt)] for before in befores for prompt in prompts} >= prompts


@pytest.mark.parametrize("criterion", ["warmup_fused", "gradient", "fisher"])
def test_locating_without_a_trainer_scores_them_too(
    folder: Path, tmp_path: Path, seen: Seen, criterion: str
) -> None:
    steps = json.dumps({key: STEP[key] for key in list(STEP)[:2]})
    own = [f"locate={{criterion: {criterion}, training: {steps}}}", "score=null", "forget=null"]
    run = run_all(recipe(folder, tmp_path, *own), until="locate")
    assert seen.completions("locate") == sides(read_jsonl(run.pairs, Pair))


def test_right_samples_are_learned_as_they_were_sampled(folder: Path, tmp_path: Path, seen: Seen) -> None:
    own = ["locate=null", "score=null", "forget=null", "improve.density=1.0"]
    run = run_all(recipe(folder, tmp_path, *own, "improve.loss=rft", "improve.keep=1.0"), until="improve")
    right = {
        (one.prompt_id, one.text.strip()): tuple(one.token_ids or ())
        for one in reversed(read_jsonl(run.verdicts, Verdict))
        if one.correct and one.finished
    }
    assert seen.completions("improve") == set(right.values())


def test_forgetting_takes_the_ids_that_were_scored(
    folder: Path, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the records of wrong completions have none, as those of servers and users."""
    own = ["score.scorer=uniform", "score.beside=[]"]
    run = run_all(recipe(folder, tmp_path, *own), until="score")
    records = [json.loads(line) for line in run.wrong.read_text().splitlines()]
    bare = "".join(json.dumps(row | {"token_ids": None, "completion": "so"}) + "\n" for row in records)
    run.wrong.write_text(bare)
    rows = forget._rows(run)
    assert {tuple(row["completion_ids"]) for row in rows} == {tuple(row["token_ids"]) for row in records}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
def test_adapters_are_trained_on_them_too(folder: Path, tmp_path: Path, seen: Seen) -> None:
    for package in ("trl", "peft"):
        pytest.importorskip(package, reason="adapters train through TRL and PEFT; install the extras")
    own = ["locate=null", "score=null", "forget=null", "improve.trainer=lora", "improve.training.max_steps=8"]
    run = run_all(recipe(folder, tmp_path, *own), until="improve")
    tokenizer = load_tokenizer(folder / "model")
    expected = [
        (*prompt_ids(tokenizer, pair.prompt), *ids)
        for pair in read_jsonl(run.pairs, Pair)
        for ids in (pair.chosen_token_ids or [], pair.rejected_token_ids or [])
    ]
    rows = seen.rows["improve"]
    assert rows
    for row in rows:
        assert any(
            row[: len(one)] == one and set(row[len(one) :]) <= {tokenizer.pad_token_id} for one in expected
        ), tokenizer.decode(row)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_on_policy_trainers_judge_and_end_samples_as_ours(
    folder: Path, tmp_path: Path, seen: Seen, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rewarded records hold TRL's ids; what ends a turn ends a sample, though the checkpoint does not say so."""
    pytest.importorskip("trl", reason="on-policy methods train through TRL; install the extra")
    from allo.stages import compared

    place = tmp_path / "model"
    save_chat_model(place, chat_tokenizer(eos="<|endoftext|>"), ends=[ENDOFTEXT])
    rewarded: list[Completion] = []
    judge = compared.verify

    def judging(prompt: Any, completion: Completion, **settings: Any) -> Verdict:
        rewarded.append(completion)
        return judge(prompt, completion, **settings)

    monkeypatch.setattr(compared, "verify", judging)
    monkeypatch.setattr("allo.sampling.completions.turn_end_ids", lambda tokenizer: ENDS[1:])
    own = ["locate=null", "score=null", "forget=null", f"improve.trainer={kind}"]
    more = [f"model={place}", "improve.training.max_steps=1", "sample.num_generations=4"]
    run = run_all(recipe(folder, tmp_path, *own, *more), until="improve")
    saved = json.loads((run.improve / "model" / "generation_config.json").read_text())
    assert saved["eos_token_id"] in (ENDOFTEXT, [ENDOFTEXT])
    assert rewarded and all(one.num_tokens == len(one.token_ids or ()) for one in rewarded)
    for one in rewarded:
        assert one.token_ids is not None
        assert not set(ENDS) & set(one.token_ids[:-1])
        assert one.finished == (one.token_ids[-1] in ENDS)
    assert any(one.finished for one in rewarded)


@pytest.mark.slow  # one round has a fast test
def test_rounds_train_on_the_ids_of_their_own_samples(folder: Path, tmp_path: Path, seen: Seen) -> None:
    own = ["locate=null", "score=null", "forget=null", "improve.density=1.0", "rounds=2"]
    run = run_all(recipe(folder, tmp_path, *own), until="improve")
    pairs = [
        pair for number in (1, 2) for pair in read_jsonl(RunFolder(run.path / f"round-{number}").pairs, Pair)
    ]
    assert sides(pairs) <= seen.sampled["sample"] and seen.completions("improve") == sides(pairs)


def test_killed_sampling_goes_on_to_the_same_bytes(
    folder: Path, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["sample.batch_size=6", "sample.stop=[blue]"]
    whole = run_all(recipe(folder, tmp_path / "whole", *own), until="sample").completions.read_bytes()
    decode, calls = sampling.decode, []

    def killed(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decode(*arguments, **more)

    monkeypatch.setattr(sampling, "decode", killed)
    with pytest.raises(KeyboardInterrupt):
        run_all(recipe(folder, tmp_path / "killed", *own), until="sample")
    assert (
        run_all(recipe(folder, tmp_path / "killed", *own), until="sample").completions.read_bytes() == whole
    )
    assert len(calls) == 3 and json.loads(whole.splitlines()[0])["token_ids"]


def test_a_run_whose_samples_were_kept_as_text_alone_samples_again(
    folder: Path, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version's record of the stage has other settings."""
    run = run_all(recipe(folder, tmp_path), until="pair")
    kept = recipe(folder, tmp_path).sample.settings
    assert kept["keeps"] == "token_ids"
    before = run.completions.read_bytes()
    manifest = json.loads(run.manifest.read_text())
    old = {name: value for name, value in kept.items() if name != "keeps"}
    with monkeypatch.context() as earlier:
        earlier.setattr(type(recipe(folder, tmp_path).sample), "settings", property(lambda self: old))
        shutil.rmtree(run.path)
        run_all(recipe(folder, tmp_path), until="pair")
        texts = [json.loads(line) for line in run.completions.read_text().splitlines()]
    assert (
        json.loads(run.manifest.read_text())["stages"]["sample"]["hash"]
        != manifest["stages"]["sample"]["hash"]
    )
    assert [row["prompt_id"] for row in texts]
    seen.sampled.clear()
    run_all(recipe(folder, tmp_path), until="pair")
    assert seen.sampled["sample"] and run.completions.read_bytes() == before


def test_pairs_of_another_run_keep_their_ids_under_the_same_tokenizer(
    folder: Path, tmp_path: Path, seen: Seen
) -> None:
    own = ["locate=null", "score=null", "forget=null", "improve.density=1.0", "sample.stop=[blue]"]
    first = run_all(recipe(folder, tmp_path / "first", *own), until="pair")
    pairs = [one for one in read_jsonl(first.pairs, Pair) if one.chosen.strip() and one.rejected.strip()]
    kept = tmp_path / "pairs.jsonl"
    write_jsonl(kept, pairs)
    ready = [f"data={{pairs: {kept}}}", "improve.training.max_steps=8"]
    again = run_all(recipe(folder, tmp_path / "again", *own, *ready), until="improve")
    assert again.pairs.read_bytes() == kept.read_bytes()
    assert seen.completions("improve") <= sides(pairs)


@pytest.mark.parametrize("damage", ["another tokenizer", "text made shorter", "ids out of range", "no ids"])
def test_ids_that_do_not_say_the_text_are_left_out_aloud(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    tokenizer = load_tokenizer(folder / "model")
    ids = tokenizer(" the sky", add_special_tokens=False).input_ids
    bad = {
        "another tokenizer": [id + 7 for id in ids],
        "text made shorter": [*ids, *tokenizer(" is blue", add_special_tokens=False).input_ids, ENDOFTEXT],
        "ids out of range": [*ids, 10**6],
        "no ids": [],
    }
    good = Pair("p0", "What?", " the sky", " so", True, True, [*ids, ENDOFTEXT], None)
    pairs = tmp_path / "pairs.jsonl"
    own = [
        "locate=null",
        "score=null",
        "forget=null",
        f"data={{pairs: {pairs}}}",
        "chat=false",
        "improve.density=1.0",
    ]
    write_jsonl(pairs, [good])
    run = run_all(recipe(folder, tmp_path, *own), until="pair")
    assert read_jsonl(run.pairs, Pair)[0].chosen_token_ids == [*ids, ENDOFTEXT]
    assert "token ids of" not in capsys.readouterr().err
    write_jsonl(pairs, [good, replace(good, prompt_id="p1", prompt="Why?", chosen_token_ids=bad[damage])])
    run = run_all(recipe(folder, tmp_path, *own), until="pair")
    assert [pair.chosen_token_ids for pair in read_jsonl(run.pairs, Pair)] == [None, None]
    assert "the token ids of pair 'p1' do not say its texts" in capsys.readouterr().err
