"""Thoughts that a chat template opens: the judge stage and evaluation read answers behind their end."""

from dataclasses import replace
from pathlib import Path

import pytest

from allo.files.artifacts import RunFolder, read_jsonl, write_jsonl
from allo.files.records import Completion, Message, Prompt, Verdict
from allo.models.load import load_tokenizer
from allo.models.thoughts import thoughts_of
from allo.stages import judge
from allo.tasks.answers.thoughts import Marker
from tiny import LABORATORY
from tiny_run import tiny

CHAT = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
CUT = "Maybe the answer is 5? Let me"


def prompting(end: str) -> str:
    return f"{{% if add_generation_prompt %}}{end}{{% endif %}}"


def asked(chat: bool) -> Prompt:
    return Prompt("p", [Message(role="user", content="2 + 3?")] if chat else "2 + 3?\n", answer="5")


def sample(index: int, text: str) -> Completion:
    return Completion("p", index, text, finished=False, num_tokens=8)


@pytest.mark.parametrize(
    ("end", "opened"), [("<think>\n", True), ("<think>\n\n</think>\n\n", False), ("Answer:\n", False)]
)
def test_a_template_that_opens_a_thought_is_known(end: str, opened: bool) -> None:
    tokenizer = load_tokenizer(LABORATORY)
    tokenizer.chat_template = CHAT + prompting(end)
    thoughts = thoughts_of(tokenizer, [asked(chat=True)])
    assert thoughts.begins_inside(asked(chat=True).prompt) == opened
    assert judge.verify(asked(chat=True), sample(0, CUT), thoughts=thoughts).correct == (not opened)
    assert judge.verify(asked(chat=True), sample(0, f"9?</think>{CUT}"), thoughts=thoughts).correct


def test_a_thought_opens_under_a_rows_own_settings_alone() -> None:
    tokenizer = load_tokenizer(LABORATORY)
    tokenizer.chat_template = CHAT + prompting("{% if thinking %}<think>\n{% endif %}")
    plain = asked(chat=True)
    thinking = replace(plain, id="q", template={"chat_template_kwargs": {"thinking": True}})
    thoughts = thoughts_of(tokenizer, [plain, thinking])
    assert judge.verify(plain, sample(0, CUT), thoughts=thoughts).correct
    assert not judge.verify(thinking, sample(0, CUT), thoughts=thoughts).correct


def test_a_text_prompt_that_opens_a_thought_is_known() -> None:
    prompt = Prompt("p", "2 + 3?\n<think>\n", answer="5")
    assert not judge.verify(prompt, sample(0, CUT)).correct
    assert judge.verify(asked(chat=False), sample(0, CUT)).correct


def test_declared_markers_are_known() -> None:
    tokenizer = load_tokenizer(LABORATORY)
    tokenizer.response_template = {"fields": {"thinking": {"open": "<plan>", "close": "</plan>"}}}
    thoughts = thoughts_of(tokenizer, [asked(chat=False)])
    assert Marker("<plan>", "</plan>") in thoughts.markers
    assert not judge.verify(asked(chat=False), sample(0, f"<plan>{CUT}"), thoughts=thoughts).correct


def test_the_judge_stage_knows_the_template_of_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(LABORATORY)
    tokenizer.chat_template = CHAT + prompting("<think>\n")
    monkeypatch.setattr(judge, "load_start_tokenizer", lambda *_: tokenizer)
    monkeypatch.setattr(judge, "training_prompts", lambda _: [asked(chat=True)])
    recipe = tiny(tmp_path)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    texts = [CUT, "The answer is 9.</think>The answer is 5.", "The answer is 5.</think>The answer is 9."]
    write_jsonl(run.completions, [sample(index, text) for index, text in enumerate(texts)])
    judge.run(recipe, run)
    verdicts = list(read_jsonl(run.verdicts, Verdict))
    assert [verdict.correct for verdict in verdicts] == [False, True, False]
    assert [verdict.text for verdict in verdicts] == texts  # thoughts stay in what is trained on
