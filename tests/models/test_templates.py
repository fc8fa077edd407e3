"""Chat templates: the answer's beginning and end, every failure named, one date a run."""

import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

import tiny_run
from allo.errors import UserError
from allo.files.artifacts import RunFolder
from allo.models import templates
from allo.models.load import load_tokenizer
from allo.models.reward_model import judged_ids
from allo.models.start import load_start_tokenizer, read_start
from allo.models.tokenization import prompt_ids, prompt_text, tokenize, turn_end_ids
from allo.stages import sft
from allo.stages.check import findings
from tokenizers_of_kinds import (
    CHATML,
    EMPTY_THOUGHT,
    LLAMA_2,
    LLAMA_3,
    NO_HEADER,
    OPENED_THOUGHT,
    TWO_ENDS,
    ZEPHYR,
    byte_level,
    sentence_piece,
)

pytestmark = pytest.mark.invariant("A completion's ids read as its text, after any prompt.")

ASKED = [{"role": "user", "content": "Name a tree."}]
KINDS: dict[str, Callable[[str], PreTrainedTokenizerBase]] = {
    "byte level": byte_level,
    "SentencePiece": sentence_piece,
    "legacy SentencePiece": lambda template: sentence_piece(template, legacy=True),
}
TOKENIZERS = {
    (kind, name): make(template)
    for kind, make in KINDS.items()
    for name, template in {
        "ChatML": CHATML,
        "no header": NO_HEADER,
        "Llama 2": LLAMA_2,
        "Llama 3": LLAMA_3,
        "Zephyr": ZEPHYR,
        "empty thought": EMPTY_THOUGHT,
        "opened thought": OPENED_THOUGHT,
    }.items()
}
texts = st.text(alphabet="the answer is 12 + ?.\n:", max_size=20)


def read(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(prompt=texts.filter(str.strip), completion=texts, finished=st.booleans())
def test_ids_read_as_the_text_and_a_completion_never_changes_its_prompt(
    kind: str, prompt: str, completion: str, finished: bool
) -> None:
    tokenizer = TOKENIZERS[kind, "ChatML"]
    found = tokenize(tokenizer, prompt, completion, finished=finished, max_length=1000)
    if found is None:
        assert not completion and not finished
        return
    assert found.prompt_ids == prompt_ids(tokenizer, prompt)
    whole = read(tokenizer, found.prompt_ids + found.completion_ids)
    assert whole == read(tokenizer, found.prompt_ids) + completion + "</s>" * finished
    assert read(tokenizer, found.prompt_ids).endswith(prompt[1:])


@pytest.mark.parametrize(("kind", "name"), TOKENIZERS)
@settings(max_examples=30, deadline=None)
@given(asked=texts.filter(str.strip), completion=texts, finished=st.booleans())
def test_nothing_of_an_answer_in_a_chat_is_lost_or_made_up(
    kind: str, name: str, asked: str, completion: str, finished: bool
) -> None:
    tokenizer = TOKENIZERS[kind, name]
    messages = [{"role": "user", "content": asked}]
    found = tokenize(tokenizer, messages, completion, finished=finished, max_length=1000)
    if found is None:
        assert not completion and not finished
        return
    assert found.prompt_ids == prompt_ids(tokenizer, messages)
    before = read(tokenizer, found.prompt_ids)
    text = read(tokenizer, found.prompt_ids + found.completion_ids).removeprefix(before)
    for thought in ("<think>\n\n</think>\n\n", "\n</think>\n\n"):  # the template's own
        text = text.removeprefix(thought)
    if finished:
        text = re.sub(r"(<\|im_end\|>|<\|eot\|>|</s>)$", "", text)
    if finished and name == "Llama 2":
        text = text.removesuffix(" ")  # the template's own
    assert text.endswith(completion)
    assert not text.removesuffix(completion).strip()


@pytest.mark.parametrize("kind", KINDS)
def test_thoughts_are_trained_on_whole_although_the_template_strips_them(kind: str) -> None:
    strips = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    for template in (strips, EMPTY_THOUGHT):
        tokenizer = KINDS[kind](template)
        for answer in ("<think>\nit is 7\n</think>\n\n12", "<think>it is 7</think>12", "<think></think>12"):
            found = tokenize(tokenizer, ASKED, answer, max_length=1000)
            assert found is not None
            before = read(tokenizer, found.prompt_ids)
            whole = read(tokenizer, found.prompt_ids + found.completion_ids)
            assert whole == f"{before}{answer}<|im_end|>"


@pytest.mark.parametrize("opening", ["<think>\n", "<think>", "<|im_start|>assistant\n<think>\n"])
def test_what_the_prompt_opened_is_not_opened_again(opening: str) -> None:
    tokenizer = byte_level(OPENED_THOUGHT)
    found = tokenize(tokenizer, ASKED, "<think>\nit is\n</think>\n\n12", max_length=1000)
    bare = tokenize(tokenizer, ASKED, "it is\n</think>\n\n12", max_length=1000)
    assert found == bare
    assert bare is not None
    assert read(tokenizer, bare.prompt_ids + bare.completion_ids).count("<think>") == 1


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>", "</s>\n", "<|im_end|> \n"])
def test_an_end_is_never_doubled(end: str) -> None:
    tokenizer = byte_level(CHATML)
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("</s>", "<|im_end|>")}
    for prompt in ("Name a tree.\n", ASKED):
        found = tokenize(tokenizer, prompt, f"Oak.{end}", max_length=100)
        assert found is not None
        assert read(tokenizer, found.completion_ids) == "Oak." + end.strip()
        assert len(ends.intersection(found.completion_ids)) == 1
        other = tokenize(tokenizer, prompt, "Oak.</think>", max_length=100)  # no end, but a tag
        assert other is not None and other.completion_ids[-1] in ends
    two = byte_level(TWO_ENDS)
    for written in ("Oak.", "Oak.<|end_of_answer|>", "Oak.<|end_of_answer|><|im_end|>"):
        found = tokenize(two, ASKED, written, max_length=100)
        assert found is not None
        assert read(two, found.completion_ids) == "Oak.<|end_of_answer|><|im_end|>"


def test_sampled_ids_are_taken_as_they_are() -> None:
    tokenizer = byte_level(CHATML)
    ids = [*range(40, 50), tokenizer.convert_tokens_to_ids("<|im_end|>")]
    for prompt in ("Name a tree.\n", ASKED):
        found = tokenize(tokenizer, prompt, "another text", completion_ids=ids, max_length=100)
        assert found is not None
        assert (found.prompt_ids, found.completion_ids) == (prompt_ids(tokenizer, prompt), ids)
    assert tokenize(tokenizer, ASKED, "", completion_ids=[], max_length=100) is None


def test_a_prompts_text_makes_its_ids_whatever_the_template() -> None:
    """But for SentencePiece and a template that writes BOS before text: a server would put a space after its own."""
    for (kind, name), tokenizer in TOKENIZERS.items():
        if (kind, name) == ("SentencePiece", "Llama 2"):
            continue
        text = prompt_text(tokenizer, ASKED, 1000)
        assert list(tokenizer(text).input_ids) == prompt_ids(tokenizer, ASKED), (kind, name)


def test_the_token_that_ends_a_turn() -> None:
    expected = {CHATML: "<|im_end|>", LLAMA_3: "<|eot|>", LLAMA_2: "</s>", TWO_ENDS: "<|im_end|>"}
    for template, token in expected.items():
        tokenizer = byte_level(template, eos="</s>")
        assert turn_end_ids(tokenizer) == [tokenizer.convert_tokens_to_ids(token)]
    demanding = "{% if messages[0].role != 'system' %}{{ raise_exception('Who am I?') }}{% endif %}" + CHATML
    tokenizer = byte_level(demanding, eos="</s>")
    answered = tokenize(
        tokenizer, [{"role": "system", "content": "Be terse."}, *ASKED], "Oak.", max_length=100
    )
    assert turn_end_ids(tokenizer) == answered.completion_ids[-1:]  # sampling ends where training does
    for without in ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "{{ raise_exception('No') }}"):
        assert turn_end_ids(byte_level(without)) == []


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('System role not supported') }}", r"refuses .*\(System role not supported\)"),
        ("{{ messages[0].tool.name }}", r"UndefinedError.*'dict object' has no attribute 'tool'"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ messages | first | dictsort(by='colour') }}", "FilterArgumentError"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
        ({"tool_use": CHATML}, "ValueError"),
        (
            "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
            "parts|Undefined",
        ),
    ],
)
def test_a_failure_names_the_row_the_template_and_its_own_words(template: str, words: str) -> None:
    tokenizer = byte_level(CHATML)
    tokenizer.chat_template, tokenizer.name_or_path = template, "models/tree"
    for call in (
        lambda: prompt_ids(tokenizer, ASKED, place="data.jsonl:3"),
        lambda: tokenize(tokenizer, ASKED, "Oak.", max_length=100, place="data.jsonl:3"),
        lambda: prompt_text(tokenizer, ASKED, 100, place="data.jsonl:3"),
    ):
        with pytest.raises(UserError, match=rf"(?s)^data.jsonl:3: models/tree: .*({words})"):
            call()
    if "parts" not in words:
        with pytest.raises(
            UserError, match=rf"(?s)^data.jsonl:3: the reward model: models/tree: .*({words})"
        ):
            judged_ids(tokenizer, ASKED, "Oak.", max_length=100, place="data.jsonl:3")


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_does_not_end_is_stopped_and_an_earlier_alarm_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        tokenizer, began = byte_level(ENDLESS), time.monotonic()
        with pytest.raises(UserError, match=r"row 3: .*did not end within 0\.2 seconds"):
            prompt_ids(tokenizer, ASKED, place="row 3")
        assert time.monotonic() - began < 5
        assert prompt_ids(byte_level(CHATML), ASKED)  # another one has its own time
        handler = signal.getsignal(signal.SIGALRM)
        deadline = time.monotonic() + 10
        while not rung and time.monotonic() < deadline:
            time.sleep(0.05)
        assert rung == [1]
        assert handler is signal.getsignal(signal.SIGALRM)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_templates_are_rendered_in_other_threads_too() -> None:
    found: list[list[int]] = []
    tokenizer = byte_level(CHATML)
    thread = threading.Thread(target=lambda: found.append(prompt_ids(tokenizer, ASKED)))
    thread.start()
    thread.join()
    assert found == [prompt_ids(tokenizer, ASKED)]


def test_a_row_may_set_the_templates_variables_and_nothing_else() -> None:
    tokenizer = byte_level("{{ mood }}" + CHATML)
    given_mood = prompt_text(tokenizer, ASKED, 100, template={"chat_template_kwargs": {"mood": "calm"}})
    assert given_mood.startswith("calm<|im_start|>")
    for refused in (
        {"chat_template_kwargs": {"tokenize": True}},
        {"chat_template_kwargs": {"chat_template": "x"}},
        {"images": ["cat.png"]},
    ):
        with pytest.raises(UserError, match=r"row 3: `(tokenize|chat_template|images)` cannot be passed on"):
            prompt_ids(tokenizer, ASKED, template=refused, place="row 3")


def test_the_text_of_a_message_is_the_templates_and_a_dropped_field_is_refused() -> None:
    tokenizer = byte_level(EMPTY_THOUGHT)
    thought = {"role": "assistant", "content": "4", "reasoning_content": "Two and two."}
    assert (
        templates.completion_text(tokenizer, ASKED, thought)
        == "<think>\nTwo and two.\n</think>\n\n4<|im_end|>\n"
    )
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}
    assert templates.completion_text(tokenizer, ASKED, call).endswith("[TOOL_CALLS]add<|im_end|>\n")
    for field in ("reasoning_content", "tool_calls", "thinking"):
        message = {"role": "assistant", "content": "4", field: [{"function": {"name": "add"}}]}
        with pytest.raises(UserError, match=f"row 3: .*does not write `{field}`"):
            templates.completion_text(byte_level(CHATML), ASKED, message, place="row 3")
    plain = {"role": "assistant", "content": "4"}
    for make in KINDS.values():
        whole = {CHATML: "4<|im_end|>\n", NO_HEADER: "4<|im_end|>\n", LLAMA_2: " 4 </s>", ZEPHYR: "\n4</s>\n"}
        for template, expected in whole.items():
            assert templates.completion_text(make(template), ASKED, plain) == expected


@pytest.mark.parametrize("field", ["tool_calls", "reasoning_content", "thinking"])
def test_a_prompts_field_that_the_template_does_not_know_is_refused(field: str) -> None:
    said = {"role": "assistant", "content": "It is", field: [{"function": {"name": "add"}}]}
    asked = [*ASKED, said, *ASKED]
    with pytest.raises(UserError, match=f"^row 3: .*does not write `{field}`"):
        prompt_ids(byte_level(CHATML), asked, place="row 3")
    whole = "{% for m in messages %}{{ m | tojson }}{% endfor %}"  # it names none, and writes all
    assert field in prompt_text(byte_level(whole), asked, 1000)
    assert "[TOOL_CALLS]add" in prompt_text(
        byte_level(EMPTY_THOUGHT), [*ASKED, said | {"tool_calls": said[field]}], 1000
    )
    empty = {"role": "assistant", "content": "It is", field: None}
    assert prompt_ids(byte_level(CHATML), [*ASKED, empty, *ASKED])


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"tools": [{"type": "function", "function": {"name": "add"}}]}, "tools"),
        ({"documents": [{"title": "Trees", "text": "Oak."}]}, "documents"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "enable_thinking"),
    ],
)
def test_what_a_row_gives_a_template_that_does_not_know_it_is_refused(given: dict, field: str) -> None:
    with pytest.raises(UserError, match=f"^row 3: .*does not write `{field}`"):
        tokenize(byte_level(CHATML), ASKED, "Oak.", max_length=100, template=given, place="row 3")


DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%A, %B %-d, %Y", "on day %j of %y at %H:%M", "%x"])
def test_a_template_is_given_the_tokenizers_date(form: str) -> None:
    tokenizer = byte_level(DATED.replace("%d %b %Y", form))
    day = date(2024, 2, 29)
    templates.use_date(tokenizer, day)
    assert prompt_text(tokenizer, ASKED, 1000).startswith(f"{day.strftime(form)}\n<|im_start|>")
    assert templates.asks_for_date(tokenizer)
    assert not templates.asks_for_date(byte_level(CHATML))


def laboratory(folder: Path, template: str) -> Path:
    """The laboratory's model with a chat template."""
    shutil.copytree(tiny_run.LAB, folder, ignore=shutil.ignore_patterns("__pycache__"))
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("trained", [False, True])
def test_a_run_has_one_date_also_on_another_day(
    trained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [] if trained else ["sft=null"]
    recipe = tiny_run.tiny(tmp_path, f"model={laboratory(tmp_path / 'model', DATED)}", *settings)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for day in (date(2024, 2, 29), date(2024, 3, 1)):
        monkeypatch.setattr(templates, "today", lambda day=day: day)
        sft.run(recipe, run)
        assert read_start(run).date == "2024-02-29"
        assert prompt_text(load_start_tokenizer(recipe, run), ASKED, 1000).startswith("29")
    other = tiny_run.tiny(tmp_path, f"model={tiny_run.LAB}", "sft=null")
    run = RunFolder(tmp_path / "other")
    run.path.mkdir()
    sft.run(other, run)
    assert read_start(run).date is None


def test_a_preview_shows_the_date_of_a_run_that_was_killed_while_it_was_fine_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_run.tiny(tmp_path, f"model={laboratory(tmp_path / 'model', DATED)}", "chat=true")
    run = RunFolder(recipe.run_folder)
    run.path.mkdir(parents=True)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as first:
        first.setattr(templates, "today", lambda: date(2024, 2, 29))
        first.setattr(sft, "_fine_tune", killed)
        with pytest.raises(KeyboardInterrupt):
            sft.run(recipe, run)
    assert not (run.start / "start.json").exists()
    monkeypatch.setattr(templates, "today", lambda: date(2024, 3, 1))
    found = findings(recipe)
    assert prompt_text(found.tokenizer, ASKED, 1000).startswith("29 Feb 2024")
    assert sorted(path.name for path in run.start.iterdir()) == ["date.json"]  # nothing is written
