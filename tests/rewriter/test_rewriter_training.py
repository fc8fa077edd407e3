"""A rewriter's training, and the scores that it gives."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from allo.errors import UserError
from allo.files.artifacts import RunFolder, read_json, read_jsonl, sha256_file, write_json, write_jsonl
from allo.files.records import Wrong
from allo.models.load import load_tokenizer
from allo.models.start import save_whole, write_start
from allo.models.tokenization import Tokenized
from allo.pipeline import run_all
from allo.recipe import load_recipe
from allo.rewriter.cases import Run
from allo.rewriter.row import RewriteRow, read_rewrites
from allo.rewriter.train import read_settings, train_rewriter, trainer_of
from allo.stages import score
from allo.tasks import planted_flaws
from allo.tokens import scorers
from allo.tokens.edit_distance import text_ids
from allo.tokens.rewrite_wording import ask_for_rewrite
from allo.tokens.rewriter import RECORD, check_rewriter, load_rewriter, rewriting, shown_solution
from allo.tokens.scorers import Context, Scored
from locate_setup import FP32, dense_logps
from rewriter_setup import made, rows
from tiny import TOKENIZER, model
from tiny_run import LAB, RECIPE, overrides

# The share of planted tokens that a rewriter of 50 steps must find to be of any use.
FOUND = 0.9


QUICK = [
    *(
        "dtype=float32",
        "device=cpu",
        "max_length=160",
        "training.learning_rate=3e-3",
        "training.logging_steps=1",
    ),
    *("training.per_device_train_batch_size=8", "training.gradient_accumulation_steps=1"),
]


def start(folder: Path) -> Path:
    save_whole(model(), TOKENIZER, folder)
    return folder


@pytest.mark.invariant(
    "A rewriter's loss is that of the rewrite's tokens alone; another tokenizer is refused."
)
def test_the_loss_is_that_of_the_rewrites_tokens_alone(run: Run, out: Path, tmp_path: Path) -> None:
    made(run, out, "gold")
    policy, own = model(max_position_embeddings=160), read_rewrites(out)[:8]
    expected = [
        dense_logps(
            policy, ask_for_rewrite(row.prompt, right=row.right, completion=row.completion), row.rewrite
        )  # type: ignore[arg-type]
        for row in own
    ]
    trainer = trainer_of(policy, TOKENIZER, own, read_settings(QUICK), folder=tmp_path / "work")
    trainer.train()
    first = trainer.state.log_history[0]["loss"]
    assert first == pytest.approx(-torch.cat(expected).mean().item(), rel=1e-4)


def test_a_trained_rewriter_is_a_whole_folder_and_resumes_after_a_kill(
    run: Run, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(run, out, "gold")
    base, settings = start(tmp_path / "base"), read_settings([*QUICK, "training.save_steps=2"])
    counts = train_rewriter(out, str(base), tmp_path / "whole", settings)
    assert (
        counts["rows"] == len(rows(out)) and counts["dropped"] == counts["cut"] == 0 and counts["steps"] >= 4
    )
    record = read_json(tmp_path / "whole" / RECORD)
    assert record["data"] == sha256_file(out) and record["max_length"] == 160
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", RECORD, "metrics.jsonl"} <= names

    from allo.training.selected_trainer import SelectedTrainer

    step = SelectedTrainer.training_step

    def killed(trainer: SelectedTrainer, *inputs: Any) -> Any:
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        return step(trainer, *inputs)

    monkeypatch.setattr(SelectedTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_rewriter(out, str(base), tmp_path / "again", settings)
    monkeypatch.setattr(SelectedTrainer, "training_step", step)
    assert not (tmp_path / "again").exists()
    train_rewriter(out, str(base), tmp_path / "again", settings)
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (tmp_path / "again.training").exists()
    with pytest.raises(UserError, match="already exists"):
        train_rewriter(out, str(base), tmp_path / "again", settings)


def test_checkpoints_of_other_settings_are_not_gone_on_with(run: Run, out: Path, tmp_path: Path) -> None:
    made(run, out, "gold")
    base, settings = start(tmp_path / "base"), read_settings(QUICK)
    (tmp_path / "new.training").mkdir()
    (tmp_path / "new.training" / "begun").write_text("of another time")
    (tmp_path / "new.training" / "checkpoint-1").mkdir()
    train_rewriter(out, str(base), tmp_path / "new", settings)
    train_rewriter(out, str(base), tmp_path / "other", settings)
    assert sha256_file(tmp_path / "new/model.safetensors") == sha256_file(
        tmp_path / "other/model.safetensors"
    )


def test_rotary_positions_are_let_out_and_learnt_ones_are_not(run: Run, out: Path, tmp_path: Path) -> None:
    made(run, out, "gold")
    train_rewriter(out, str(start(tmp_path / "base")), tmp_path / "rotary", read_settings(QUICK))
    assert read_json(tmp_path / "rotary/config.json")["max_position_embeddings"] == 160
    learnt = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(TOKENIZER), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    )
    learnt.save_pretrained(tmp_path / "learnt")
    TOKENIZER.save_pretrained(tmp_path / "learnt")
    with pytest.raises(UserError, match="max_length 160: the model has 64 positions"):
        train_rewriter(out, str(tmp_path / "learnt"), tmp_path / "none", read_settings(QUICK))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training.learning_rat=1", r"training\.learning_rat: unknown key; did you mean learning_rate"),
        ("max_length=0", "max_length: .*greater than or equal to 1; found 0"),
        ("maxlength=8", "maxlength: unknown key; did you mean 'max_length'"),
        ("training.push_to_hub_token=x", "a secret does not belong"),
    ],
)
def test_bad_settings_name_their_key(text: str, said: str, run: Run, out: Path, tmp_path: Path) -> None:
    made(run, out, "gold")
    with pytest.raises(UserError, match=said):
        train_rewriter(out, str(start(tmp_path / "base")), tmp_path / "new", read_settings([*QUICK, text]))


def test_a_bad_row_is_named_by_its_line(tmp_path: Path) -> None:
    good = {"prompt": "p", "right": "r", "completion": "c", "rewrite": "w"}
    write_jsonl(tmp_path / "rows.jsonl", [good, good | {"rewrite": " "}])
    with pytest.raises(UserError, match=r"rows\.jsonl:2: `rewrite`"):
        read_rewrites(tmp_path / "rows.jsonl")
    assert RewriteRow.model_validate(good).asked == "p"


@pytest.fixture(scope="module")
def rewriter(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for a few steps: the numbers are of no worth, but not those of the policy."""
    folder = tmp_path_factory.mktemp("rewriter")
    made(run, folder / "rows.jsonl", "gold")
    train_rewriter(folder / "rows.jsonl", str(start(folder / "base")), folder / "tuned", read_settings(QUICK))
    return folder / "tuned"


def scored(run: Run, rewriter: Path, out: Path, *more: str) -> dict[str, dict[str, Any]]:
    """The scores of the run's wrong completions, written below `out`."""
    copy = RunFolder(out / "run")
    copy.start.mkdir(parents=True, exist_ok=True)
    write_start(copy, LAB)
    write_jsonl(copy.wrong, read_jsonl(run.folder.wrong, Wrong))
    own = load_recipe(
        RECIPE,
        overrides(out, "score.scorer=rewriter", f"score.rewriter={rewriter}", "score.weights=soft", *more),
    )
    score.run(own, copy)
    return {row["id"]: row for row in pq.read_table(copy.token_scores).to_pylist()}


def test_a_score_is_the_rewriters_probability_of_the_wrong_completion_as_the_rewrite(
    run: Run, rewriter: Path, tmp_path: Path
) -> None:
    found = scored(run, rewriter, tmp_path)
    dense = LlamaForCausalLM.from_pretrained(rewriter)
    wrong = read_jsonl(run.folder.wrong, Wrong)
    assert len(found) == len(wrong)
    for one in wrong:
        assert one.finished and one.solution is not None
        asked = ask_for_rewrite(one.prompt, right=one.solution, completion=one.completion)
        expected = dense_logps(dense, asked, one.completion).exp()  # type: ignore[arg-type]
        torch.testing.assert_close(
            torch.tensor(found[one.id]["scores"], dtype=torch.float32), expected, **FP32
        )
        assert found[one.id]["token_ids"] == [*text_ids(one.completion, TOKENIZER), TOKENIZER.eos_token_id]


def test_without_a_solution_the_nearest_right_sample_is_shown() -> None:
    rights = ["The answer is 7.", "First 7 + 5 = 12. The answer is 12."]
    wrong = Wrong(
        "w", "p", "Problem", "First 7 + 5 = 13. The answer is 13.", True, solution=None, right=rights
    )
    assert shown_solution(wrong, TOKENIZER) == rights[1]
    assert shown_solution(replace(wrong, solution="own"), TOKENIZER) == "own"
    assert shown_solution(replace(wrong, right=[]), TOKENIZER) is None


def test_a_long_prompt_is_cut_where_it_begins_and_the_completion_never(rewriter: Path) -> None:
    own = load_rewriter(rewriter, TOKENIZER, policy="lab", max_length=128, device="cpu")
    wrong = Wrong("w", "p", "Problem:" + " 7" * 200, "The answer is 8.", True, "The answer is 7.", [])
    ids = [*text_ids(wrong.completion, TOKENIZER), TOKENIZER.eos_token_id]
    tokens = rewriting(own, wrong, ids)
    assert tokens.completion_ids == ids and len(tokens.prompt_ids) + len(ids) == own.max_length
    assert tokens.prompt_ids[0] == TOKENIZER.bos_token_id
    request = ask_for_rewrite("", right="The answer is 7.", completion=wrong.completion)
    assert TOKENIZER.decode(tokens.prompt_ids).endswith(TOKENIZER.decode(text_ids(str(request), TOKENIZER)))
    with pytest.raises(UserError, match="prompt p: scorer `rewriter` shows the right solution"):
        rewriting(own, replace(wrong, solution=None), ids)


def changed(rewriter: Path, folder: Path, **record: Any) -> Path:
    """A copy of the rewriter with another record."""
    import shutil

    shutil.copytree(rewriter, folder)
    write_json(folder / RECORD, read_json(folder / RECORD) | record)
    return folder


@pytest.mark.invariant(
    "A rewriter's loss is that of the rewrite's tokens alone; another tokenizer is refused."
)
def test_another_tokenizer_is_refused_naming_both_and_what_differs(rewriter: Path, tmp_path: Path) -> None:
    own = json.loads((rewriter / "tokenizer.json").read_text())
    words = own["model"]["vocab"]
    words[" Tom"], words[" Ann"] = words[" Ann"], words[" Tom"]
    own["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/tokenizer.json").write_text(json.dumps(own))
    (tmp_path / "policy/tokenizer_config.json").write_bytes((rewriter / "tokenizer_config.json").read_bytes())
    policys = load_tokenizer(tmp_path / "policy")
    with pytest.raises(UserError) as refusal:
        check_rewriter(rewriter, policys, policy="the/policy", max_length=128)
    said = str(refusal.value)
    assert str(rewriter) in said and "the/policy" in said and read_json(rewriter / RECORD)["model"] in said
    size = len(words)
    assert f"vocabulary ({size} and {size} tokens, 2 with other ids, such as ' Ann'), normalizer." in said


def test_what_is_no_rewriter_for_this_policy_is_refused(rewriter: Path, tmp_path: Path) -> None:
    def refused(folder: Path, said: str, *, max_length: int = 128) -> None:
        with pytest.raises(UserError, match=said):
            check_rewriter(folder, TOKENIZER, policy="lab", max_length=max_length)

    refused(LAB, r"has no rewriter\.json, so it is not a rewriter")
    refused(changed(rewriter, tmp_path / "a", wording=0), "was trained with wording 0")
    refused(changed(rewriter, tmp_path / "b", tokenizer="?"), "files have changed since it was trained")
    refused(rewriter, "trained on rows of 160 tokens, which must be more", max_length=160)
    check_rewriter(rewriter, TOKENIZER, policy="lab", max_length=128)


def test_the_pipeline_checks_the_rewriter_first_and_scores_anew_when_it_changes(
    run: Run, rewriter: Path, tmp_path: Path
) -> None:
    def recipe(folder: Path | None) -> Any:
        own = [] if folder is None else [f"score.rewriter={folder}"]
        return load_recipe(RECIPE, overrides(tmp_path, "sft=null", "locate=null", "forget.density=1.0",
            "improve.density=1.0", "score.scorer=rewriter", *own))  # fmt: skip

    with pytest.raises(UserError, match=r"set score\.rewriter"):
        recipe(None)
    with pytest.raises(UserError, match="is not a rewriter"):
        run_all(recipe(LAB), until="score")
    assert not (tmp_path / "tiny/01-completions.jsonl").exists()

    copy = changed(rewriter, tmp_path / "copy")
    run_all(recipe(copy), until="score")
    manifest = tmp_path / "tiny/manifest.json"
    before = read_json(manifest)["stages"]["score"]["hash"]
    run_all(recipe(copy), until="score")
    assert read_json(manifest)["stages"]["score"]["hash"] == before
    write_json(copy / RECORD, read_json(copy / RECORD) | {"seed": 1})
    run_all(recipe(copy), until="score")
    assert read_json(manifest)["stages"]["score"]["hash"] != before


def flawed(split: str, size: int) -> list[tuple[Wrong, int]]:
    """Flawed demonstrations as wrong completions, each with the place of its first wrong word."""
    found = []
    for one in planted_flaws.demonstrations(split, size=size):
        if one.flaw is None:
            continue
        prompt = one.prompt
        wrong = Wrong(prompt.id, prompt.id, prompt.prompt, one.completion, True, prompt.solution, [])
        found.append((wrong, planted_flaws.planted_tokens(one.completion, one.flaw).index(True)))
    return found


@pytest.mark.slow
def test_a_trained_rewriter_finds_the_planted_token(tmp_path: Path) -> None:
    """In problems that neither it nor the policy was trained on."""
    learnt = [
        {"prompt": one.prompt, "right": one.solution, "completion": one.completion, "rewrite": one.solution}
        for one, _ in flawed("train", 1600)
    ]
    write_jsonl(tmp_path / "rows.jsonl", learnt)
    settings = read_settings(
        [*QUICK, "max_length=256", "training.learning_rate=2e-3", "training.per_device_train_batch_size=16"]
    )
    train_rewriter(tmp_path / "rows.jsonl", str(LAB), tmp_path / "rewriter", settings)
    own = load_rewriter(tmp_path / "rewriter", TOKENIZER, policy="lab", max_length=128, device="cpu")
    context = Context(own.model, TOKENIZER, 128, 0, rewriter=own)
    unseen = flawed("test", 200)
    rows = [
        Scored(wrong, Tokenized([], [*text_ids(wrong.completion, TOKENIZER), TOKENIZER.eos_token_id]))
        for wrong, _ in unseen
    ]
    scores = scorers.rewriter(rows, context)
    found = [
        min(one[: place + 1]) == one[place] < 0.5 for one, (_, place) in zip(scores, unseen, strict=True)
    ]
    assert sum(found) / len(found) >= FOUND
