"""Runs without evaluation sets: rows are held out, measured before and after, and reported."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from allo.cli.result import show_result
from allo.delta import info
from allo.errors import UserError
from allo.files.artifacts import read_json, read_jsonl, sha256_file
from allo.files.records import Pair
from allo.models.load import load_model, load_tokenizer
from allo.pipeline import run_all
from allo.recipe import Recipe, load_recipe
from allo.stages.likelihood import measured_pairs
from allo.tasks.overlap import words
from tiny_run import LAB, steps, write_recipe

STEPS = steps(8, learning_rate=1e-4)


def recipe(folder: Path, data: str, *more: str) -> Recipe:
    improve = STEPS | {"loss": "dpo", "beta": 0.2}
    file = write_recipe(folder, locate=STEPS, score=None, forget=None, improve=improve)
    return load_recipe(file, [f"data={data}", f"out={folder / 'runs'}", *more])


def problems(number: int) -> list[tuple[str, int]]:
    return [(f"Tom has {place} pens and buys 3 more. How many?\n", place + 3) for place in range(number)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs of 25 prompts, two of each, and as many problems."""
    folder = tmp_path_factory.mktemp("held-out")
    rows = [
        {"prompt": text, "chosen": f"{way} {answer}.", "rejected": f"{way} {answer + 1}, so {answer + 1}."}
        for text, answer in problems(25)
        for way in ("The answer is", "It is")
    ]
    asked = [{"prompt": text, "answer": str(answer)} for text, answer in problems(25)]
    for name, content in (("pairs", rows), ("problems", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    return run_all(recipe(place, f"{{pairs: {place / 'pairs.jsonl'}}}")).path


def test_a_recipe_of_pairs_alone_measures_held_out_pairs(finished: Path) -> None:
    kept = read_jsonl(finished / "03-pairs.jsonl", Pair)
    held_out = read_jsonl(finished / "03-held-out.jsonl", Pair)
    assert (len(kept), len(held_out)) == (40, 10)  # a fifth of 25 prompts
    seen, unseen = ({words(str(pair.prompt)) for pair in side} for side in (kept, held_out))
    assert len(unseen) == 5 and seen.isdisjoint(unseen)
    models = read_json(finished / "08-eval.json")["models"]
    tokenizer = load_tokenizer(str(LAB))
    model = load_model(LAB, dtype=torch.float32, device="cpu")
    start = measured_pairs(held_out, model, tokenizer, None, beta=0.2, max_length=128, seed=0)
    assert models["start"]["held_out"] == start | {"overlap": models["start"]["held_out"]["overlap"]}
    aligned = models["aligned"]["held_out"]
    assert (aligned["num_pairs"], aligned["num_prompts"], aligned["beta"]) == (10, 5, 0.2)
    assert aligned["margin"]["value"] > 0  # it learned something
    assert aligned["overlap"]["exact"] == 0


def test_the_manifest_the_terminal_and_the_report_say_it(
    place: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = read_json(finished / "manifest.json")["stages"]
    assert stages["pair"]["counts"]["held_out"] == stages["evaluate"]["counts"]["held_out"] == 10
    read = recipe(place, f"{{pairs: {place / 'pairs.jsonl'}}}")
    show_result(read, run_all(read, force="report"))
    said = capsys.readouterr().err
    held_out = read_json(finished / "08-eval.json")["models"]["aligned"]["held_out"]
    share = f"{100 * held_out['reward_accuracy']['value']:.1f}%"
    assert f"On 10 held-out pairs, reward accuracy is {share}" in said
    for report in ("report.html", "report.md"):
        text = (finished / report).read_text()
        assert "Held-out pairs" in text and f"{held_out['margin']['value']:.3f}" in text
        assert "10 pairs of 5 prompts, beta 0.2" in text


def test_a_run_ends_with_where_its_model_is_and_what_to_do_with_it(
    place: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = recipe(place, f"{{pairs: {place / 'pairs.jsonl'}}}")
    show_result(read, run_all(read))
    said = capsys.readouterr().err.splitlines()
    assert f"the model is in {finished / 'model'}" in said
    assert any(line.endswith(f"vllm serve {finished / 'model'}") for line in said)
    assert any(f"allo push {finished} OWNER/NAME" in line for line in said)
    assert any(f"push {finished / '07-improve' / 'delta.safetensors'} OWNER/NAME" in line for line in said)
    for report in ("report.html", "report.md"):
        text = (finished / report).read_text()
        assert text.rindex("Use this model") > text.index("Held-out pairs")
        assert "vllm serve ./model" in text and "push 07-improve/delta.safetensors" in text
        assert str(finished) not in text.split("Use this model")[-1]


def test_a_run_that_begins_again_holds_out_the_same_pairs(
    place: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "runs" / "mine", symlinks=True)
    again = tmp_path / "runs" / "mine"
    for name in ("03-pairs.jsonl", "03-held-out.jsonl"):
        (again / name).unlink()
    run_all(recipe(place, f"{{pairs: {place / 'pairs.jsonl'}}}", f"out={tmp_path / 'runs'}"), until="pair")
    for name in ("03-pairs.jsonl", "03-held-out.jsonl"):
        assert (again / name).read_bytes() == (finished / name).read_bytes()


def test_without_held_out_rows_every_pair_is_trained_on(place: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "runs" / "mine", symlinks=True)
    data = f"{{pairs: {place / 'pairs.jsonl'}, held_out: 0}}"
    run = run_all(recipe(place, data, f"out={tmp_path / 'runs'}"), until="pair")
    assert len(read_jsonl(run.pairs, Pair)) == 50
    assert not run.held_out.exists()


def test_more_than_all_is_refused_before_anything_runs(place: Path, tmp_path: Path) -> None:
    data = f"{{pairs: {place / 'pairs.jsonl'}, held_out: 25}}"
    with pytest.raises(UserError, match=r"data.held_out: 25 holds out all 25 distinct prompts"):
        run_all(recipe(place, data, f"out={tmp_path}"))
    assert not list(tmp_path.glob("*/0*"))


def test_held_out_problems_are_answered_before_and_after(place: Path, tmp_path: Path) -> None:
    data = f"{{file: {place / 'problems.jsonl'}, held_out: 6}}"
    sampled = "sample={num_generations: 8, max_new_tokens: 24, temperature: 1.0}"
    run = run_all(recipe(place, data, f"out={tmp_path}", sampled, "evaluate.num_generations=0"))
    trained = {json.loads(line)["prompt_id"] for line in run.completions.read_text().splitlines()}
    content = read_json(run.evaluation)
    for model in ("start", "aligned"):
        result = content["models"][model]["sets"]["held_out"]
        assert result["num_prompts"] == result["greedy"]["num"] == 6
        assert result["overlap"]["exact"] == 0
        answered = {row["prompt_id"] for row in content["completions"][model]["held_out"]}
        assert len(answered) == 6 and answered.isdisjoint(trained) and len(answered | trained) == 25


def test_the_card_stands_beside_the_model_and_names_its_hashes(place: Path, finished: Path) -> None:
    text = (finished / "model-card.md").read_text()
    held_out = read_json(finished / "08-eval.json")["models"]["aligned"]["held_out"]
    assert f"{100 * held_out['reward_accuracy']['value']:.1f}%" in text
    assert sha256_file(finished / "07-improve" / "delta.safetensors") in text
    assert info(finished / "07-improve" / "delta.safetensors").base_fingerprint in text
    assert "preference pairs of the file pairs.jsonl" in text and str(place) not in text
    assert not (finished / "07-improve" / "model" / "model-card.md").exists()
    assert read_json(finished / "manifest.json")["stages"]["report"]["outputs"].keys() >= {"model-card.md"}


def test_a_lost_card_is_written_again_and_nothing_is_trained(
    place: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "model-card.md").read_bytes()
    (finished / "model-card.md").unlink()
    run_all(recipe(place, f"{{pairs: {place / 'pairs.jsonl'}}}"))
    assert (finished / "model-card.md").read_bytes() == before
    begun = [line.split()[0] for line in capsys.readouterr().err.splitlines() if line.endswith("...")]
    assert begun == ["report"]
