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
from tokenizers_of_kinds import byte_level

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


BY_MESSAGE = {
    "after a tool's message the thought goes on": (
        "{% if messages[-1].role != 'tool' %}<think>\n{% endif %}",
        [Message(role="tool", content="5")],
    ),
    "a message switches thoughts off": (
        "{% if '/no_think' in messages[-1].content %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}",
        [Message(role="user", content="2 + 3? /no_think")],
    ),
    "a system message switches them off": (
        "{% if messages[0].role != 'system' %}<think>{% endif %}",
        [Message(role="system", content="Be brief."), Message(role="user", content="2 + 3?")],
    ),
}


@pytest.mark.parametrize("thinking_first", [True, False])
@pytest.mark.parametrize(("end", "messages"), BY_MESSAGE.values(), ids=BY_MESSAGE)
def test_each_conversation_says_whether_it_opens_a_thought(
    end: str, messages: list[Message], thinking_first: bool
) -> None:
    tokenizer = load_tokenizer(LABORATORY)
    tokenizer.chat_template = CHAT + prompting(end)
    thinking, plain = asked(chat=True), replace(asked(chat=True), id="q", prompt=messages)
    prompts = [thinking, plain] if thinking_first else [plain, thinking]
    thoughts = thoughts_of(tokenizer, prompts)
    assert judge.verify(plain, sample(0, "The answer is 5."), thoughts=thoughts).correct
    assert not judge.verify(thinking, sample(0, CUT), thoughts=thoughts).correct
    assert thoughts.spoken("Mine.", plain.prompt) == "Mine." and not thoughts.spoken(CUT, thinking.prompt)


@pytest.mark.parametrize(
    "close",
    [
        "<|END_RESPONSE|><|END_OF_TURN|>",
        "<answer_ends><turn_ends>",
        "[/ANSWER]\n</s>",
        "[OVER]</s>",
        "\n[END] <stop></s>\n",
        "<turn_ends>",
    ],
)
def test_what_closes_an_answer_is_no_part_of_it(close: str) -> None:
    tokens = ["<|END_RESPONSE|>", "<|END_OF_TURN|>", "<answer_ends>", "<turn_ends>"]
    answered = "{% if message['role'] == 'assistant' %}" + close + "{% endif %}"
    tokenizer = byte_level(CHAT.replace("}}\n", "}}" + answered + "\n") + prompting("Answer:\n"))
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    thoughts = thoughts_of(tokenizer, [asked(chat=True)])
    for text in ("The answer is 5", "The answer is 5.", "So: the answer is 5 "):
        for cut in range(len(close) + 1):
            whole = close[:cut] in ("", close) or any(map(close[:cut].endswith, thoughts.ends))
            if whole:
                verdict = judge.verify(asked(chat=True), sample(0, text + close[:cut]), thoughts=thoughts)
                assert verdict.correct and verdict.extracted == "5", close[:cut]
    assert thoughts.spoken("Five." + close) == "Five."
    assert not judge.verify(asked(chat=True), sample(0, "The answer is 6" + close), thoughts=thoughts).correct


def test_a_special_token_that_closes_a_thought_is_no_end() -> None:
    tokenizer = byte_level(CHAT)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    thoughts = thoughts_of(tokenizer, [asked(chat=True)])
    assert not judge.verify(
        asked(chat=True), sample(0, "The answer is 5.</think>"), thoughts=thoughts
    ).correct


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
