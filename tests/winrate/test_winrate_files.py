"""Win rates for other uses: the report's table, and files for AlpacaEval's and Arena-Hard's tools."""

import json
from pathlib import Path
from typing import Any

import pytest

from allo import cli
from allo.errors import UserError
from allo.files.artifacts import held
from allo.report.page import render
from allo.report.read import view
from allo.sampling.endpoint import Endpoint
from allo.winrate.figures import show
from allo.winrate.judging import JudgeSettings, judge
from allo.winrate.outputs import duels, of_file, of_run
from allo.winrate.style import style_metadata
from server import KEY, LONGEST, MODEL, Chat, serving, without_proxy

VARIABLE = "ALLO_TEST_KEY"
ASKED = {"a": " Say <b>hello</b>.\n", "b": "Count to two.", "c": "Count to three."}
"""The instructions as their own project has them, whitespace and all; a run may have stripped it."""
ANSWERS = {"a": "Hello | there", "b": "1 2\n", "c": "1 2 3"}


def evaluated(answers: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    for id, text in answers.items():
        prompt = [{"role": "user", "content": ASKED[id].strip()}]
        answer = {"text": text, "correct": False, "num_tokens": len(text.split())}
        rows.append({"prompt_id": id, "prompt": prompt, "answer": None, "greedy": answer, "sampled": []})
    return rows


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    completions = {
        "start": {"talk": evaluated(dict.fromkeys(ANSWERS, "what?"))},
        "aligned": {"talk": evaluated(ANSWERS)},
    }
    models = {name: {"label": name, "sets": {}} for name in completions}
    content = {"schema": 1, "models": models, "completions": completions}
    (folder / "08-eval.json").write_text(json.dumps(content))
    return folder


def allo(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["allo", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code


def judged(run: Path, chat: Chat, *, max_tokens: int = 20) -> dict[str, Any]:
    own, start = (of_run(run, model=name, set="talk", kind="greedy") for name in ("aligned", "start"))
    endpoint = Endpoint(chat.url, MODEL, key_variable=VARIABLE, timeout=LONGEST)
    return judge(own, start, endpoint, JudgeSettings(max_tokens=max_tokens, temperature=None), folder=run)


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(VARIABLE, KEY)
    without_proxy(monkeypatch)
    with serving(lambda question: "Verdict: 1") as served:
        yield served


def test_the_report_shows_the_records_figures(run: Path, chat: Chat) -> None:
    assert "Win rates" not in render([view(run)])[1]
    chat.answer = lambda question: "?" if "to three." in question else "Verdict: 1"
    found = judged(run, chat)
    html, markdown = render([view(run)])
    (row,) = [line for line in markdown.splitlines() if line.startswith("| aligned | talk |")]
    cells = [cell.strip().replace("\u00a0", " ") for cell in row.strip("|").split("|")]
    assert cells[2:4] == ["start", MODEL]
    assert cells[4] == "50.0% [50.0, 50.0]" and found["summary"]["win_rate"]["value"] == 0.5
    assert cells[6:] == ["+100.0", "0.0%", "2 of 3 2 replies without a verdict"]
    assert "Win rates by a judge" in html and 'value="0.5"' in html


@pytest.mark.parametrize("changed", ["aligned", "start"])
def test_a_rate_of_replaced_answers_is_left_out_and_named(changed: str, run: Path, chat: Chat) -> None:
    judged(run, chat)
    path = run / "08-eval.json"
    content = json.loads(path.read_text())
    content["harness"] = {}
    path.write_text(json.dumps(content))
    assert "| aligned | talk |" in render([view(run)])[1], "nothing that was judged is another"
    content["completions"][changed]["talk"][1]["greedy"]["text"] = "something else"
    path.write_text(json.dumps(content))
    html, markdown = render([view(run)])
    for page in (html, markdown):
        assert "| aligned | talk |" not in page and "+100.0" not in page
        assert f"judged-talk-aligned-start-{MODEL}.json" in page and "others now" in page
    judged(run, chat)
    assert "| aligned | talk |" in render([view(run)])[1]


def test_a_report_of_several_runs_says_whose_rate_it_is(run: Path, chat: Chat, tmp_path: Path) -> None:
    judged(run, chat)
    other = tmp_path / "other"
    other.mkdir()
    for path in run.glob("*.json"):
        (other / path.name).write_bytes(path.read_bytes())
    markdown = render([view(run), view(other)])[1]
    assert "| aligned (own) | talk |" in markdown and "| aligned (other) | talk |" in markdown


def test_alpaca_evals_file_has_its_fields_and_exact_texts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [{"instruction": text, "output": "x", "dataset": f"part {id}"} for id, text in ASKED.items()]
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(own[::-1]))
    out = tmp_path / "new" / "model_outputs.json"
    arguments = ["winrate", "export", run, "--format", "alpaca_eval", "--set", "talk", "--out", out]
    allo(monkeypatch, *arguments, "--questions", tmp_path / "alpaca_eval.json")
    rows = json.loads(out.read_text())
    assert rows == [
        {
            "dataset": f"part {id}",
            "instruction": ASKED[id],
            "output": text.strip(),
            "generator": "own-aligned",
        }
        for id, text in ANSWERS.items()
    ]
    allo(monkeypatch, *arguments, "--name", "mine")
    rows = json.loads(out.read_text())
    assert [row["instruction"] for row in rows] == [text.strip() for text in ASKED.values()]
    assert {row["generator"] for row in rows} == {"mine"} and all(len(row) == 3 for row in rows)


def test_arena_hards_file_has_its_fields_and_ids(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [
        {"question_id": f"9{id}", "category": "x", "cluster": "y", "turns": [{"content": text}]}
        for id, text in ASKED.items()
    ]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    out = tmp_path / "own-aligned.jsonl"
    arguments = ["winrate", "export", run, "--format", "arena_hard", "--set", "talk", "--out", out]
    allo(monkeypatch, *arguments)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["question_id"] for row in rows] == list(ANSWERS)
    for row, text in zip(rows, ANSWERS.values(), strict=True):
        turn = {"content": text.strip(), "token_len": len(text.split())}
        assert row["choices"] == [{"index": 0, "turns": [turn]}]
        assert list(row) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
        assert row["model_id"] == "own-aligned" == out.stem, (
            "their tool takes the model's name from the file's"
        )
    assert len({row["answer_id"] for row in rows}) == len(rows)
    first = out.read_bytes()
    allo(monkeypatch, *arguments)
    assert out.read_bytes() == first
    allo(monkeypatch, *arguments, "--questions", tmp_path / "question.jsonl")
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["question_id"] for row in again] == [f"9{id}" for id in ANSWERS]


def test_arena_hards_newer_file_holds_what_its_tools_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gen_judgment.py` joins by uid and asks for the last message's answer; `qa_browser.py` wants it second."""
    questions = [
        {"uid": uid, "category": "hard_prompt", "subcategory": "coding", "prompt": ASKED[id]}
        for uid, id in (("91", "c"), ("92", "a"), ("93", "b"))
    ]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    out = tmp_path / "own-aligned.jsonl"
    arguments = ["winrate", "export", run, "--format", "arena_hard_v2", "--set", "talk", "--out", out]
    allo(monkeypatch, *arguments, "--questions", tmp_path / "question.jsonl")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["uid"] for row in rows] == ["91", "92", "93"], "ordered as their tool leaves its own"
    for row, question, id in zip(rows, questions, "cab", strict=True):
        assert list(row) == ["uid", "ans_id", "model", "messages", "tstamp", "metadata"]
        assert row["model"] == out.stem, "their tools take the name from the file's and from here"
        answer = ANSWERS[id].strip()
        assert row["messages"] == [
            {"role": "user", "content": question["prompt"]},
            {"role": "assistant", "content": {"answer": answer}},
        ]
        assert isinstance(row["ans_id"], str) and isinstance(row["tstamp"], float)
        assert row["metadata"] == style_metadata(answer, num_tokens=len(answer.split()))
    assert len({row["ans_id"] for row in rows}) == len(rows)
    allo(monkeypatch, *arguments)
    assert [json.loads(line)["uid"] for line in out.read_text().splitlines()] == list(ANSWERS)


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        ("", {}),
        ("# A\n## B\n## C\n###### F\n#none\n # none\n####### none", {"h1": 1, "h2": 2, "h6": 1}),
        ("1. a\n  22. b\n- c\n* d\n\t+ e\n-none\n3.none\n4) none", {"ordered": 2, "unordered": 3}),
        ("**a** and **b c**, __d__; **no\nne** *none* _none_", {"**": 2, "__": 1}),
        ("# A\n```python\n# none\n- none\n```\n- a", {"h1": 1, "unordered": 1}),
        ("# A\n```\n`ticks` inside\n# B\n```", {"h1": 2}),
        ("```- a\n```\n- a\n- b", {"unordered": 1}),
    ],
    ids=[
        "empty",
        "headers",
        "lists",
        "bold",
        "code",
        "code with ticks stays",
        "code's text is struck everywhere",
    ],
)
def test_style_is_counted_as_arena_hard_counts_it(answer: str, counted: dict[str, int]) -> None:
    metadata = style_metadata(answer, num_tokens=7)
    assert list(metadata) == ["token_len", "header_count", "list_count", "bold_count"], (
        "`show_result.py` takes them by their place"
    )
    assert metadata.pop("token_len") == 7
    found = {name: number for counts in metadata.values() for name, number in counts.items()}
    names = [*(f"h{level}" for level in range(1, 7)), "ordered", "unordered", "**", "__"]
    assert found == dict.fromkeys(names, 0) | counted


@pytest.mark.parametrize("format", ["alpaca_eval", "arena_hard", "arena_hard_v2"])
def test_what_is_written_is_read_as_the_same_answers(
    format: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / ("x.json" if format == "alpaca_eval" else "x.jsonl")
    allo(monkeypatch, "winrate", "export", run, "--format", format, "--set", "talk", "--out", out)
    start = of_run(run, model="start", set="talk", kind="greedy")
    written = of_file(out)
    assert written.name == "own-aligned"
    found, alone = duels(start, written)
    assert alone == 0
    assert {duel.id: duel.baseline for duel in found} == {id: text.strip() for id, text in ANSWERS.items()}


def test_questions_of_another_set_are_refused(run: Path, tmp_path: Path) -> None:
    from allo.winrate.formats import matched

    path = tmp_path / "question.jsonl"
    own = of_run(run, model="aligned", set="talk", kind="greedy")
    path.write_text('{"question_id": "1", "turns": [{"content": "Count to two."}]}\n')
    with pytest.raises(UserError, match=r"lacks the questions of 2 of 3 answers, such as 'a'"):
        matched(own, path)
    path.write_text('{"question_id": "1", "text": "Count to two."}\n')
    with pytest.raises(
        UserError, match="has none of `instruction`, `prompt` and `turns`; found question_id, text"
    ):
        matched(own, path)


def test_a_set_and_a_file_are_judged_by_the_command(
    run: Path, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ["--base-url", chat.url, "--model", MODEL, "--key-variable", VARIABLE]
    allo(monkeypatch, "winrate", "judge", run, "--against", "start", *server)
    shown = capsys.readouterr()
    assert "50.0% [50.0, 50.0]" in shown.out and "+100.0%" in shown.out and "3 of 3" in shown.out
    out = tmp_path / "own.json"
    allo(monkeypatch, "winrate", "export", run, "--format", "alpaca_eval", "--set", "talk", "--out", out)
    allo(monkeypatch, "winrate", "judge", out, "--against", out, *server)
    assert "3 pairs of identical answers" in capsys.readouterr().out
    assert (tmp_path / f"judged-own-own-aligned-{MODEL}.json").is_file()
    assert KEY not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_a_place_that_is_not_there_is_what_the_error_names(run: Path, chat: Chat) -> None:
    from allo.cli.winrate import app

    server = ["--base-url", chat.url, "--model", MODEL, "--key-variable", VARIABLE]
    with pytest.raises(UserError, match=r"typo: there is no such run or file"):
        app(["judge", str(run.parent / "typo"), "--against", "start", *server], standalone_mode=False)


def test_a_files_name_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise `[red]` would set a colour, and `[/x]` would end the program."""
    summary: dict[str, Any] = {"num_prompts": 0, "win_rate": None, "length_controlled": None}
    counts: dict[str, Any] = dict.fromkeys(("without_counterpart", "identical", "prompts", "replies"), 0)
    counts |= {"unread": {}, "prompt_tokens": 0, "completion_tokens": 0}
    names = {
        "set": "[red]a",
        "model": {"name": "[/x]"},
        "baseline": {"name": "[b]c"},
        "judge": {"model": "m"},
    }
    show([{**names, "summary": summary, "counts": counts}])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("[red]a", "[/x]", "[b]c"))


def test_two_processes_do_not_judge_in_one_folder(run: Path, chat: Chat) -> None:
    from allo.cli.winrate import app

    server = ["--base-url", chat.url, "--model", MODEL, "--key-variable", VARIABLE]
    with held(run), pytest.raises(UserError, match="another allo process works in this folder"):
        app(["judge", str(run), "--against", "start", *server], standalone_mode=False)
    assert chat.requests == []


def test_each_baseline_has_a_record_of_its_own_though_all_files_have_one_name(
    run: Path, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AlpacaEval's files are `results/<model>/model_outputs.json`."""
    server = ["--base-url", chat.url, "--model", MODEL, "--key-variable", VARIABLE]
    for folder, generator in (("x", "gpt"), ("y", "llama"), ("z", None), ("z2", None), ("again", "gpt")):
        path = tmp_path / folder / "model_outputs.json"
        path.parent.mkdir()
        own = {} if generator is None else {"generator": generator}
        rows = [{"instruction": text, "output": f"{folder} {id}", **own} for id, text in ASKED.items()]
        path.write_text(json.dumps(rows))
        for _ in range(2):  # the same again takes its own place
            allo(monkeypatch, "winrate", "judge", run, "--against", path, *server)
    start = "judged-talk-aligned"
    records = {path.name: json.loads(path.read_text()) for path in run.glob("judged-*.json")}
    plain = {
        f"{start}-{name}-{MODEL}.json" for name in ("gpt", "llama", "z-model_outputs", "z2-model_outputs")
    }
    assert plain < set(records) and len(records) == 5
    (hashed,) = set(records) - plain
    assert hashed.startswith(f"{start}-gpt-{MODEL}-")
    assert len({record["baseline"]["sha256"] for record in records.values()}) == 5


def test_other_settings_have_a_record_of_their_own_and_a_retrained_model_has_not(
    run: Path, chat: Chat
) -> None:
    judged(run, chat)
    judged(run, chat, max_tokens=30)
    assert len(list(run.glob("judged-*.json"))) == 2
    path = run / "08-eval.json"
    path.write_text(path.read_text().replace("Hello", "Goodbye"))
    judged(run, chat)
    judged(run, chat, max_tokens=30)
    assert len(list(run.glob("judged-*.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--against", "aligned"], "that is the model itself"),
        (["--against", "improved"], "neither a file nor a model of .*start, aligned"),
        (["--against", "start", "--of", "improved"], "no model 'improved'"),
        (["--against", "start", "--base-url", "http://me:hidden@host/v1"], "base_url of host: no user"),
    ],
)
def test_answers_that_cannot_be_judged_are_refused_before_any_question(
    arguments: list[str], said: str, run: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    from allo.cli.winrate import app

    server = ["--base-url", chat.url, "--model", MODEL, "--key-variable", VARIABLE]
    with pytest.raises(UserError, match=said):
        app(["judge", str(run), *server, *arguments], standalone_mode=False)
    assert chat.requests == []
