"""The stage `pair` counts the completions to forget under a name that fits their kind."""

from pathlib import Path

import pytest

from allo.files.artifacts import RunFolder, read_jsonl, write_jsonl
from allo.files.records import Prompt, Verdict, Wrong
from allo.pipeline.outcome import in_words
from allo.recipe import Recipe, read_recipe
from allo.stages import pair
from start_rows import rows, write


def recipe_of(folder: Path, data: str) -> tuple[Recipe, RunFolder]:
    text = f"name: mine\nout: {folder}\nmodel: any\n{data}\n"
    run = RunFolder(folder / "mine")
    run.path.mkdir()
    return read_recipe(text, path=folder / "mine.yaml"), run


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pairs", "15 pairs, 15 rejected completions, 15 prompts"),
        ("rated", "15 pairs, 15 rejected completions, 15 prompts"),
        ("feedback", "7 good, 8 bad, 15 prompts"),
    ],
)
def test_ready_rows_are_rejected_or_bad(tmp_path: Path, kind: str, words: str) -> None:
    write(tmp_path / "rows.jsonl", rows(kind))
    key = (
        "feedback: {rows}\n  held_out: 0\nimprove: {{loss: kto}}"
        if kind == "feedback"
        else "pairs: {rows}\n  held_out: 0"
    )
    recipe, run = recipe_of(tmp_path, f"data:\n  {key.format(rows=tmp_path / 'rows.jsonl')}")
    assert in_words(pair.run(recipe, run)) == words


@pytest.mark.parametrize(
    ("verifier", "rewards", "words"),
    [
        ("final_answer", (1.0, 0.0), "2 pairs, 2 wrong completions, 2 prompts"),
        ("function", (1.0, 0.0), "2 pairs, 2 wrong completions, 2 prompts"),
        ("ranked_function", (0.75, 0.5), "2 pairs, 2 lower-reward completions, 2 prompts"),
        ("reward_model", (3.0, -2.0), "2 pairs, 2 lower-reward completions, 2 prompts"),
    ],
)
def test_samples_are_wrong_or_have_the_lower_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verifier: str, rewards: tuple[float, float], words: str
) -> None:
    recipe, run = recipe_of(tmp_path, "data: {file: rows.jsonl}")
    prompts = [Prompt(f"p{place}", f"Question {place}?", answer="1", task="file") for place in range(2)]
    monkeypatch.setattr(pair, "training_prompts", lambda _: prompts)
    write_jsonl(
        run.verdicts,
        [
            Verdict(one.id, index, f"text {index}", True, index == 0, reward, None, verifier)
            for one in prompts
            for index, reward in enumerate(rewards)
        ],
    )
    assert in_words(pair.run(recipe, run)) == words
    assert [one.completion for one in read_jsonl(run.wrong, Wrong)] == ["text 1", "text 1"]
