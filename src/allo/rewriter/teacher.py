"""Rewrites by a teacher: a stronger model behind an OpenAI-compatible endpoint."""

from collections.abc import Sequence
from pathlib import Path

from allo.files.records import Message
from allo.rewriter.cases import Case
from allo.rewriter.proposals import Proposals
from allo.sampling.endpoint import Endpoint
from allo.sampling.questions import Answers, Question, ask
from allo.tokens.rewrite_wording import ask_for_rewrite


def taught(
    cases: Sequence[Case], endpoint: Endpoint, *, path: Path, max_tokens: int, temperature: float | None
) -> tuple[Proposals, Answers]:
    """Return the teacher's rewrites; replies are kept in `<path>.replies`, so nothing is asked twice."""
    found = Proposals(
        missing={case.wrong.id: "nothing right to show" for case in cases if case.right is None}
    )
    questions = [
        Question(case.wrong.id, _messages(case, case.right)) for case in cases if case.right is not None
    ]
    answers = ask(endpoint, questions, path=path, max_tokens=max_tokens, temperature=temperature)
    for id, reply in answers.replies.items():
        if not reply.finished:
            found.missing[id] = "not finished"
        elif text := reply.text.strip():
            found.texts[id] = [text]
        else:
            found.missing[id] = "without text"
    found.missing.update(dict.fromkeys(answers.failed, "not answered"))
    return found, answers


def _messages(case: Case, right: str) -> list[Message]:
    asked = ask_for_rewrite(case.wrong.prompt, right=right, completion=case.wrong.completion)
    return [Message(role="user", content=asked)] if isinstance(asked, str) else asked
