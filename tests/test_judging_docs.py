"""docs/judging.md is executed: its commands in order, against a judge on this machine, and its JSON is what they write."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from allo import cli
from allo.recipe import load_recipe
from allo.winrate.style import style_metadata
from server import KEY, MODEL, serving, without_proxy

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "judging.md").read_text(encoding="utf-8")
ALPACA, ARENA_V2, ARENA, RECORD = (json.loads(text) for text in re.findall(r"(?s)```json\n(.*?)```", PAGE))


def commands() -> list[list[str]]:
    """The arguments of each `allo` command of the page."""
    text = "".join(re.findall(r"(?s)```bash\n(.*?)```", PAGE)).replace("\\\n", " ")
    found = [shlex.split(line) for line in text.splitlines() if line]
    assert {words[0] for words in found} == {"allo"}
    return [words[1:] for words in found]


def evaluated(**texts: str) -> list[dict[str, Any]]:
    rows = []
    for id, text in texts.items():
        answer = {"text": text, "correct": False, "num_tokens": 3}
        rows.append(
            {"prompt_id": id, "prompt": f"Say {id}.", "answer": None, "greedy": answer, "sampled": []}
        )
    return rows


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the page's commands were run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", KEY)
    without_proxy(monkeypatch)
    completions = {
        "start": {"talk": evaluated(a="I say a.", b="I say b.")},
        "aligned": {"talk": evaluated(a="a", b="I say that it is b.")},
    }
    models = {name: {"label": name, "sets": {}} for name in completions}
    content = {"schema": 1, "models": models, "completions": completions}
    Path("runs/own").mkdir(parents=True)
    Path("runs/own/08-eval.json").write_text(json.dumps(content))
    for name, output in (("model_outputs.json", "mine"), ("baseline.json", "theirs")):
        Path(name).write_text(json.dumps([{"instruction": "Say a.", "output": output}]))
    with serving(lambda question: "The first is better.\n\nVerdict: 1") as chat:
        served = {"http://localhost:8000/v1": chat.url, "some-model": MODEL}
        for arguments in commands():
            monkeypatch.setattr("sys.argv", ["allo", *(served.get(word, word) for word in arguments)])
            with pytest.raises(SystemExit) as end:
                cli.main()
            assert not end.value.code, shlex.join(arguments)
    return tmp_path


def shape(value: Any) -> Any:
    """The keys of a JSON value, at every depth; of a list those of its first entry."""
    if isinstance(value, dict):
        return {key: shape(inside) for key, inside in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


def test_the_commands_write_what_the_page_shows(written: Path) -> None:
    record = json.loads((written / f"runs/own/judged-talk-aligned-start-{MODEL}.json").read_text())
    assert shape(record) == shape(RECORD)
    assert record["judge"] | {"base_url": "", "model": ""} == RECORD["judge"] | {"base_url": "", "model": ""}
    assert "Win rates by a judge" in (written / "runs/own/report.md").read_text()
    assert shape(json.loads((written / "model_outputs.json").read_text())) == shape(ALPACA)
    for place, shown in (("model_answer", ARENA), ("data/arena-hard-v0.1/model_answer", ARENA_V2)):
        lines = (written / place / "own.jsonl").read_text().splitlines()
        assert shape(json.loads(lines[0])) == shape(shown)
    answer = ARENA_V2["messages"][-1]["content"]["answer"]
    assert ARENA_V2["metadata"] == style_metadata(answer, num_tokens=ARENA_V2["metadata"]["token_len"])


def test_the_records_figures_on_the_page_fit_each_other() -> None:
    found, judge, counts = RECORD["summary"], RECORD["judge"], RECORD["counts"]
    assert found["wins"] + found["ties"] + found["losses"] == found["num_prompts"] == counts["prompts"]
    assert found["win_rate"]["value"] == (found["wins"] + found["ties"] / 2) / found["num_prompts"]
    cost = counts["prompt_tokens"] * judge["price_in"] + counts["completion_tokens"] * judge["price_out"]
    assert counts["cost"] == pytest.approx(cost / 1e6)


def test_the_recipes_shown_are_some(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    recipes = []
    for shown in re.findall(r"(?s)```yaml\n(.*?)```", PAGE):
        path.write_text(f"name: shown\nmodel: some/model\ndata: {{task: alpaca_eval, split: test}}\n{shown}")
        recipes.append(load_recipe(path))
    own, ranking, on_policy = recipes
    assert own.judge.function == ["rewards.py:right_number"] and own.evaluate.sets["gsm8k"].by_answer
    assert ranking.measuring_reward_model != ranking.judge.reward_model is not None
    assert on_policy.on_policy and on_policy.judge.reward_model is not None
