"""Chat templates: the only place that renders them and finds where the assistant's answer begins and ends."""

import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime
from datetime import time as midnight
from functools import cache
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from allo.errors import UserError
from allo.models.written import marked, names_read

Conversation = Sequence[Mapping[str, object]]
"""Messages with `role`, `content` and any other field that the template reads."""

SECONDS = 5.0
"""The time limit for one conversation; a template takes less than a millisecond."""
GIVEN = frozenset({"tools", "documents", "chat_template_kwargs"})
# Arguments of `apply_chat_template` itself: a row may not set them.
_RESERVED = frozenset(
    {
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "return_tensors", "return_dict", "tokenizer_kwargs"),
        *("return_assistant_tokens_mask", "sanitize_control_tokens", "padding", "truncation", "max_length"),
    }
)
THOUGHT = re.compile(r"<\w+>|\[\w+\]")
"""The tag with which a generation prompt opens a thought. Tags of turns look different, such as `<|user|>`."""
_TAG = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\])$")
# Digits pass unchanged through template filters such as `trim`, `lower` or a split at the end of a thought.
PROBE = "7391846205"
# Fields that a template writes, or that only say whom a message belongs to.
_PLAIN_FIELDS = frozenset({"role", "content", "name", "tool_call_id"})
_DATE_LETTERS = "aAbBcdeDfFGHIjklmMpPrRSTuUVwWxXyYZz"
_DATES: WeakKeyDictionary[PreTrainedTokenizerBase, date] = WeakKeyDictionary()


@dataclass(frozen=True)
class Turn:
    """The assistant's turn after some messages, as the chat template writes it.

    `prompt`: the text that the model continues, with the assistant's header. `lead`: the text between it and the
    answer. `close`: the text after the answer.
    """

    prompt: str
    lead: str
    close: str


@dataclass(frozen=True)
class Chat:
    """Messages before an assistant's answer, as the chat template writes them.

    `template`: `tools`, `documents` and `chat_template_kwargs` of the row, passed on to the template. `place`: the
    beginning of errors, such as the row.
    """

    tokenizer: PreTrainedTokenizerBase
    messages: Conversation
    template: Mapping[str, object] | None = None
    place: str = ""

    @property
    def where(self) -> str:
        """Return the beginning of errors: the place and the tokenizer."""
        return f"{self.place}: {self._name}" if self.place else self._name

    @property
    def _name(self) -> str:
        return self.tokenizer.name_or_path or "the tokenizer"

    def text(self, *more: Mapping[str, object], generation_prompt: bool = False) -> str:
        """Render the messages and `more` with the chat template.

        Raises:
            UserError: the tokenizer has no template, or the template fails, refuses the messages or takes longer than
                `SECONDS` (detected only in the main thread).
        """
        place = f"{self.place}: " if self.place else ""
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"{place}the prompt is a list of messages, but {self._name} has no chat template; give prompts as text or a "
                "model with a template."
            )
        given = _arguments(self.template or {}, place)
        advice = "Change the messages to those that it takes, or take a model with another template."
        try:
            with _limited(SECONDS):
                return str(
                    self.tokenizer.apply_chat_template(
                        [dict(message) for message in (*self.messages, *more)],
                        add_generation_prompt=generation_prompt,
                        tokenize=False,
                        chat_template=_dated(self.tokenizer, given["tools"]),
                        **given,
                    )
                )
        except _EndlessError as error:
            what = f"did not end within {SECONDS:g} seconds; it was stopped"
            raise UserError(f"{self.where}: the chat template {what}. {advice}") from error
        except Exception as error:  # a template is a program: it raises anything
            own_words = type(error) is TemplateError  # from `raise_exception` in a template
            kind = f"{type(error).__name__}: {error}"
            what = f"refuses the conversation ({error})" if own_words else f"fails ({kind})"
            raise UserError(f"{self.where}: the chat template {what}. {advice}") from error

    def opening(self) -> str:
        """Return the text that the model continues: the messages and the assistant's header.

        A template without a generation prompt writes the header only before an answer, so it is extracted from there.
        Its trailing spaces are left to the answer, whose first token includes them.

        Raises:
            UserError: as `text`; a field of a message, or one that `template` gives, is not written.
        """
        self.check_fields()
        text = self.text(generation_prompt=True)
        return text if text != self.text() else self._around()[0].rstrip(" ")

    def turn(self) -> Turn:
        """Return the assistant's turn after the messages. Raises `UserError` as `opening`."""
        prompt, (before, close) = self.opening(), self._around()
        if before.startswith(prompt):
            return Turn(prompt, before[len(prompt) :], close)
        tag = _last_tag(prompt)
        return Turn(prompt, f"\n{_closing(tag)}\n\n" if THOUGHT.fullmatch(tag) else "", close)

    def answer(self, completion: str, found: Turn, *, finished: bool = True) -> str:
        """Return the text that follows `found.prompt` for a completion, without its close.

        It is the template's own text if that contains the whole completion, otherwise the completion itself. A
        template may strip thoughts or spaces, and no part of a completion may be lost. A tag such as `<think>` that
        both ends the prompt and begins the completion is written once. A thought opened by the prompt is closed
        before a finished answer without one.
        """
        tag = _last_tag(found.prompt)
        completion = _without_repeated(tag, found.prompt, completion)
        thinks = THOUGHT.fullmatch(tag) is not None
        if not found.lead or (thinks and (not finished or _closing(tag) in completion)):
            return completion
        text = self.text({"role": "assistant", "content": completion})
        rest = text.removeprefix(found.prompt)
        whole = (found.lead + kept + found.close for kept in (completion, completion.strip()))
        is_own = not text.startswith(found.prompt) or (rest != completion + found.close and rest in whole)
        return found.lead + completion if is_own else completion

    def check_fields(self) -> None:
        """Refuse what the template does not write. A field of messages that it knows may be left out, as earlier thoughts are."""
        whole, given = self.text(generation_prompt=True), _arguments(self.template or {}, "")
        self.check_marks()
        variables, known = names_read(self.tokenizer.get_chat_template(None, given["tools"]))
        for field in sorted(
            {key for one in self.messages for key in one if one[key]} - _PLAIN_FIELDS - known
        ):
            fewer = [{key: one[key] for key in one if key != field} for one in self.messages]
            if replace(self, messages=fewer).text(generation_prompt=True) == whole:
                self.refuse(f"`{field}`")
        passed = {key for key, value in given.items() if value is not None}
        for name in sorted(passed - (variables - {"tools", "documents"})):
            own = {key: value for key, value in given.items() if key not in ("tools", "documents", name)}
            other = {key: value for key, value in (self.template or {}).items() if key != name}
            without = replace(self, template={**other, "chat_template_kwargs": own})
            if without.text(generation_prompt=True) == whole:
                self.refuse(f"`{name}`{' of `chat_template_kwargs`' if name not in GIVEN else ''}")

    def check_marks(self, *answer: Mapping[str, object]) -> None:
        """Refuse messages, or an answer to them, of which the template leaves out a text or a call.

        Marks stand in for them, and a template that fails on marks reads what they stand for.
        """
        marks: dict[str, str] = {}
        given = [marked(message, self._probe(*answer), marks) for message in answer or self.messages]
        chat = replace(self, messages=[*self.messages, *given] if answer else given)
        try:
            text = chat.text(generation_prompt=not answer)
        except UserError:
            return
        missing = [what for mark, what in marks.items() if mark not in text]
        if missing and len(missing) == len(marks) and not answer:
            raise UserError(
                f"{self.where}: the chat template writes no message that is text. It may want lists of parts, as models of "
                "images do: take a model with a template for text."
            )
        if missing:
            self.refuse(missing[0])

    def refuse(self, what: str) -> NoReturn:
        """Raise the UserError that the template does not write something."""
        raise UserError(
            f"{self.place or 'a row'}: the chat template of {self._name} does not write {what}; remove it, put it where "
            "the template writes it, or take a model whose template does."
        )

    def _probe(self, *more: Mapping[str, object]) -> str:
        """A text that the row does not have."""
        probe = PROBE
        while probe in str((*self.messages, *more, self.template)):
            probe += PROBE[len(probe) % len(PROBE)]
        return probe

    def _around(self) -> tuple[str, str]:
        """Return the template's text before and after an answer.

        For a template that writes only prompts and no answer, all text is before the answer.
        """
        probe = self._probe()
        text = self.text({"role": "assistant", "content": probe})
        before, _, after = text.partition(probe)
        return before, after


def completion_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Conversation,
    message: Mapping[str, object],
    *,
    template: Mapping[str, object] | None = None,
    place: str = "",
) -> str:
    """Return the text that the template writes for an assistant's `message` after the prompt, up to the text's end.

    Raises:
        UserError: as `Chat.opening`; the template does not write all of `message`, or not where the prompt ends.
    """
    chat = Chat(tokenizer, messages, template, place)
    prompt, text = chat.opening(), chat.text(message)
    chat.check_marks(message)
    fields = [field for field, value in message.items() if field not in ("role", "content") and value]
    without = {}
    for field in fields:
        fewer = {"content": "", **{key: kept for key, kept in message.items() if key != field}}
        without[field] = chat.text(fewer) if field != "tool_calls" else ""
        if text == without[field]:
            chat.refuse(f"`{field}`")
    if text.startswith(prompt):
        return text[len(prompt) :]
    tag = _last_tag(prompt)
    before = prompt.rstrip().removesuffix(tag)
    shared = _common(before, text)
    if (
        THOUGHT.fullmatch(tag) is None or before[len(shared) :].strip()
    ):  # not a thought that only the prompt opens
        blamed = next((field for field in fields if without[field].startswith(prompt)), "content")
        chat.refuse(f"`{blamed}` of the answer after the prompt, which ends with {prompt[-30:]!r}")
    rest = _without_repeated(tag, prompt, text[len(shared) :])
    return rest if _closing(tag) in rest else chat.turn().lead + rest


def use_date(tokenizer: PreTrainedTokenizerBase, day: date) -> None:
    """Set `day` as today's date in `tokenizer`'s template."""
    _DATES[tokenizer] = day


def asks_for_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True if the template writes today's date."""
    return "strftime_now" in str(tokenizer.chat_template)


@cache
def today() -> date:
    """Return the day on which this process first asked, even after midnight."""
    return date.today()


def _dated(tokenizer: PreTrainedTokenizerBase, tools: object) -> str:
    """Return the template with the tokenizer's date as today's.

    transformers passes no functions to a template, so a Jinja macro is prepended.
    """
    own: str = tokenizer.get_chat_template(None, tools)
    if "strftime_now" not in own:
        return own
    day = datetime.combine(_DATES.get(tokenizer) or today(), midnight())
    forms = [f"%{flag}{letter}" for flag in ("-", "") for letter in _DATE_LETTERS]
    replaced = "".join(f".replace({form!r}, {day.strftime(form)!r})" for form in forms)
    return f"{{%- macro strftime_now(form) -%}}{{{{ form{replaced} }}}}{{%- endmacro -%}}{own}"


def _arguments(template: Mapping[str, object], where: str) -> dict[str, Any]:
    """Return the arguments that a row passes on to the template."""
    own = template.get("chat_template_kwargs") or {}
    if not isinstance(own, Mapping):
        raise UserError(
            f"{where}`chat_template_kwargs` is {own!r}; give an object of the template's variables."
        )
    refused = sorted({*(template.keys() - GIVEN), *(own.keys() & _RESERVED)})
    if refused:
        raise UserError(
            f"{where}{', '.join(f'`{key}`' for key in refused)} cannot be passed on to a chat template; a row may give "
            "`tools`, `documents` and, in `chat_template_kwargs`, variables of the template."
        )
    # For an empty list, some templates would still write the frame of a list of tools.
    return {"tools": template.get("tools") or None, "documents": template.get("documents") or None, **own}


def _last_tag(prompt: str) -> str:
    """Return the tag (`<think>`, `[THINK]`, `<|assistant|>`) that ends a prompt, ignoring spaces."""
    found = _TAG.search(prompt.rstrip())
    return found[0] if found else ""


def _closing(tag: str) -> str:
    return f"{tag[0]}/{tag[1:]}"


def _without_repeated(tag: str, prompt: str, completion: str) -> str:
    """Remove from the completion the tag that ends the prompt, and the spaces that follow it there."""
    if not tag or not completion.startswith(tag):
        return completion
    rest = completion[len(tag) :]
    return rest[len(_common(prompt[len(prompt.rstrip()) :], rest)) :]


def _common(one: str, other: str) -> str:
    """Return the common beginning of two texts."""
    size = min(len(one), len(other))
    return one[: next((at for at in range(size) if one[at] != other[at]), size)]


class _EndlessError(Exception):
    """A timeout of a template."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Stop the block after `seconds` if it runs in the main thread; an earlier alarm continues afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = False

    def stop(*_: object) -> None:
        if not over:
            raise _EndlessError

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        try:
            yield
        finally:
            over = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), interval)
