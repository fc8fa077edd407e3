"""Rows in other tools' forms: read as TRL's, counted and said, or refused if they can be read in two ways."""

import json
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.tasks.feedback import feedback_of_rows
from allo.tasks.pairs import completions_of_rows, pairs_of_rows, wrong_of_rows
from allo.tasks.prompts import PromptSource, prompts_and_reading


def turn(role: str, content: str | list[dict[str, str]]) -> dict[str, Any]:
    return {"role": role, "content": content}


def said(who: str, text: str, **more: Any) -> dict[str, Any]:
    return {"from": who, "value": text, **more}


SYSTEM, ASKED = turn("system", "Be brief."), turn("user", "Name a tree, please.")
OAK, ROCK = turn("assistant", "Oak."), turn("assistant", "Rock.")
TOOLS = [{"type": "function", "function": {"name": "w", "parameters": {}}}]
GIVEN = {"conversations": [said("system", "Be brief."), said("human", "Name a tree, please.")]}
SHAREGPT, HUMAN = (
    "messages in ShareGPT's form (`from` and `value`)",
    "Human: Hi\n\nAssistant: Hello.\n\nHuman: And?",
)


@pytest.mark.parametrize(
    ("row", "counted"),
    [
        ({"prompt": [SYSTEM, ASKED], "chosen": [OAK], "rejected": [ROCK]}, ""),
        ({"prompt": [SYSTEM, ASKED], "chosen": OAK, "rejected": ROCK}, ""),
        (
            {"input": {"messages": [SYSTEM, ASKED]}, "preferred_output": [OAK], "non_preferred_output": [ROCK]},
            "OpenAI's preference form",
        ),
        ({**GIVEN, "chosen": said("gpt", "Oak."), "rejected": said("gpt", "Rock.")}, SHAREGPT),
        ({**GIVEN, "chosen": [said("gpt", "Oak.")], "rejected": [said("assistant", "Rock.")]}, SHAREGPT),
        ({**GIVEN, "chosen": OAK, "rejected": ROCK, "prompt": None}, "the prompt is the conversation beside the answers"),
        ({"messages": [SYSTEM, ASKED], "chosen": OAK, "rejected": ROCK}, "the prompt is the conversation beside the answers"),
        ({"messages": [SYSTEM, ASKED], "chosen": [OAK], "rejected": [ROCK], "conversations": []}, "conversation beside the"),
        (
            {
                "chosen": [*GIVEN["conversations"], said("gpt", "Oak.", weight=1)],
                "rejected": [*GIVEN["conversations"], said("chatgpt", "Rock.")],
            },
            SHAREGPT,
        ),
        ({"prompt": GIVEN["conversations"], "chosen": [OAK], "rejected": [ROCK], "messages": [ASKED]}, SHAREGPT),
        (
            {"conversations": [said("user", "Name a tree, please.")], "system": "Be brief.", "chosen": OAK, "rejected": ROCK},
            SHAREGPT,
        ),
        ({"instruction": "Name a tree, please.", "system": "Be brief.", "chosen": [OAK], "rejected": [ROCK]}, "`instruction`"),
    ],
)  # fmt: skip
def test_pairs_of_messages_are_the_same_in_every_form(row: dict[str, Any], counted: str) -> None:
    ((pair,), reading) = pairs_of_rows([row])
    assert (pair.prompt, pair.chosen, pair.rejected) == ([SYSTEM, ASKED], "Oak.", "Rock.")
    assert any(counted in sentence for sentence in reading.sentences) or not counted
    assert all(number == 1 for number in reading.mapped.values())


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Name a tree.", "input": "In Europe."}, "Name a tree.\nIn Europe."),
        ({"instruction": "Name a tree.", "input": ""}, "Name a tree."),
        ({"instruction": "Name a tree.", "input": None, "history": []}, "Name a tree."),
        ({"instruction": "Name a tree."}, "Name a tree."),
        (
            {"instruction": "Name a tree.", "context": "", "category": "open questions", "user": "u-7"},
            "Name a tree.",
        ),
    ],
)
def test_alpacas_instruction_and_input_are_the_prompt(row: dict[str, Any], prompt: str) -> None:
    ((pair,), reading) = pairs_of_rows([{**row, "chosen": "Oak.", "rejected": "Rock."}])
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, "Oak.", "Rock.")
    assert reading.mapped == {"the prompt is `instruction`, and `input` below it": 1}
    ((bad,), _) = feedback_of_rows([{**row, "output": "Rock.", "label": False}])
    assert (bad.prompt, bad.completion, bad.label) == (prompt, "Rock.", False)


@pytest.mark.parametrize("prompt", [None, f"\n\n{HUMAN}\n\nAssistant:"])
def test_a_transcript_becomes_messages_for_a_chat_model(prompt: str | None) -> None:
    chosen, rejected = " Well, yes.\n\nNo.", " Well, never."
    row = {"chosen": chosen, "rejected": rejected, "prompt": prompt}
    if prompt is None:
        row = {name: f"\n\n{HUMAN}\n\nAssistant:{row[name]}" for name in ("chosen", "rejected")}
    ((pair,), reading) = pairs_of_rows([row], chat=True)
    asked = [turn("user", "Hi"), turn("assistant", "Hello."), turn("user", "And?")]
    assert pair.prompt == asked
    assert (pair.chosen.strip(), pair.rejected.strip()) == (chosen.strip(), rejected.strip())
    assert any("a transcript of `Human:` and `Assistant:`" in each for each in reading.mapped)
    ((plain,), _) = pairs_of_rows([row])
    assert isinstance(plain.prompt, str) and plain.prompt.strip().startswith(HUMAN)


def test_tools_and_unread_settings_of_openais_input_are_kept_and_listed() -> None:
    row = {
        "input": {"messages": [ASKED], "tools": TOOLS, "parallel_tool_calls": True},
        "preferred_output": [OAK],
        "non_preferred_output": [ROCK],
        "source": "logs",
    }
    ((pair,), reading) = pairs_of_rows([row])
    assert pair.template == {"tools": TOOLS}
    assert set(reading.ignored) == {"input.parallel_tool_calls", "source"}


def test_tools_that_speak_in_sharegpts_form_are_tools() -> None:
    chat = [said("human", "Weather?"), said("gpt", "I look."), said("observation", "sun")]
    ((pair,), _) = pairs_of_rows([{"conversations": chat, "chosen": said("gpt", "Sun."), "rejected": ROCK}])
    assert isinstance(pair.prompt, list)
    assert [message["role"] for message in pair.prompt] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": [said("narrator", "Q")], "chosen": OAK, "rejected": ROCK}, "`conversations` is from 'narrator'"),
        ({"conversations": [said("function_call", "{}")], "chosen": OAK, "rejected": ROCK}, "calls of tools as `tool_calls`"),
        ({"conversations": [said("human", "Q", role="user")], "chosen": OAK, "rejected": ROCK}, "beside `role` or `content`"),
        ({"conversations": [said("human", None)], "chosen": OAK, "rejected": ROCK}, "`content` inside"),
        ({**GIVEN, "messages": [ASKED], "chosen": OAK, "rejected": ROCK}, "`messages` and `conversations`; keep one"),
        ({**GIVEN, "chosen": "Oak.", "rejected": "Rock."}, "rename `conversations` to `prompt`"),
        ({"messages": [ASKED, OAK], "chosen": OAK, "rejected": ROCK}, "differ before their last message"),
        ({"preferred_output": [OAK], "non_preferred_output": [ROCK]}, "needs `input` with `messages`"),
        ({"input": "Q", "preferred_output": [OAK], "non_preferred_output": [ROCK]}, "needs `input` with `messages`"),
        ({"input": {"messages": [ASKED]}, "preferred_output": [OAK]}, "lacks `rejected`"),
        ({"input": {"messages": [ASKED]}, "preferred_output": [OAK], "rejected": [ROCK]}, "beside `rejected`; keep one form"),
        ({"instruction": "Q", "input": {"a": 1}, "chosen": "a", "rejected": "b"}, "`input` .*text below `instruction`"),
        *(
            ({"instruction": "Answer.", name: "What is it?", "chosen": "a", "rejected": "b"}, f"has `{name}` beside `instruction`")
            for name in ("question", "Context", "query", "dialogue")
        ),
        ({"instruction": "Q", "history": [["a", "b"]], "chosen": "a", "rejected": "b"}, "`history` looks like a part"),
        ({**GIVEN, "chosen": said("gpt", "Oak.", weight=0), "rejected": ROCK}, "`chosen` has `weight` 0"),
    ],
)  # fmt: skip
def test_a_row_that_can_be_read_in_two_ways_is_refused(row: dict[str, Any], message: str) -> None:
    first = {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Rock."}
    with pytest.raises(UserError, match=f"rows, row 1: .*{message}"):
        pairs_of_rows([first, row])


def read(folder: Path, *rows: dict[str, Any], **own: Any) -> Any:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prompts_and_reading(PromptSource(file=path, **own))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, OAK]},
        {"conversations": [said("human", "Name a tree, please."), said("gpt", "Oak.")]},
        {"messages": [ASKED, turn("assistant", [{"type": "text", "text": "Oak."}])]},
        {"instruction": "Name a tree, please.", "output": "Oak.", "input": ""},
    ],
)
def test_a_conversations_last_answer_is_the_solution_of_its_prompt(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    ((prompt,), reading) = read(tmp_path, row, chat=True)
    assert (prompt.prompt, prompt.solution) == ([ASKED], "Oak.")
    assert reading.mapped["the last answer is the `solution`, and all before it the prompt"] == 1
    ((done,), _) = completions_of_rows([row], chat=True)
    assert (done["prompt"], done["completion"]) == ([ASKED], "Oak.")
    ((same,), _) = feedback_of_rows([{**row, "label": True}], chat=True)
    assert (same.prompt, same.completion) == ([ASKED], "Oak.")
    with pytest.raises(UserError, match=r"mine\.jsonl:1: `completion` and `label` are labelled feedback"):
        read(tmp_path, {**row, "label": True})


def test_a_conversation_without_an_answer_is_a_prompt(tmp_path: Path) -> None:
    (prompts, reading) = read(tmp_path, {"messages": [ASKED, OAK, ASKED], "answer": "oak"}, GIVEN)
    assert [prompt.prompt for prompt in prompts] == [[ASKED, OAK, ASKED], [SYSTEM, ASKED]]
    assert [prompt.solution for prompt in prompts] == [None, None] and prompts[0].answer == "oak"
    assert reading.mapped == {SHAREGPT: 1}


def test_columns_that_stand_beside_a_prompt_are_left_and_listed(tmp_path: Path) -> None:
    row = {"prompt": "Name a tree.", "completion": "Oak.", "output": "Elm.", "messages": [ASKED, OAK]}
    ((prompt,), reading) = read(tmp_path, row)
    assert (prompt.prompt, prompt.solution) == ("Name a tree.", None)
    assert set(reading.ignored) == {"completion", "output", "messages"} and not reading.mapped
    ((given,), _) = read(tmp_path, {"messages": [ASKED, OAK], "solution": "Elm."})
    assert given.solution == "Elm."


def test_a_solution_that_is_more_than_text_is_refused(tmp_path: Path) -> None:
    call = {**OAK, "tool_calls": [{"type": "function", "function": {"name": "w", "arguments": {}}}]}
    with pytest.raises(
        UserError, match=r"mine\.jsonl:1: the last answer of `messages` has thoughts or calls"
    ):
        read(tmp_path, {"messages": [ASKED, call]})


def test_a_function_is_passed_the_columns_as_they_were(tmp_path: Path) -> None:
    row = {**GIVEN, "level": 3, "tests": [{"from": "x", "value": 1}]}
    ((prompt,), _) = read(tmp_path, row, for_function=True)
    assert prompt.columns == row and prompt.prompt == [SYSTEM, ASKED]


@pytest.mark.parametrize(
    "row",
    [
        {"input": {"messages": [ASKED]}, "preferred_output": [OAK], "non_preferred_output": [ROCK]},
        {"messages": [ASKED], "chosen": OAK, "rejected": ROCK},
        {"prompt": ASKED["content"], "chosen": [ASKED, OAK], "rejected": [ASKED, ROCK], "messages": [ASKED, OAK]},
        {"prompt": [ASKED], "completions": ["Rock.", "Oak."], "scores": [0, 1]},
    ],
)  # fmt: skip
def test_of_pairs_in_any_form_the_rejected_side_is_forgotten(row: dict[str, Any]) -> None:
    """UltraFeedback's pairs have their chosen conversation as `messages` too."""
    ((wrong,), reading) = wrong_of_rows([row])
    assert (wrong["prompt"], wrong["completion"]) == ([ASKED], "Rock.")
    assert reading.mapped["the completion is `rejected`, and `chosen` is not read"] == 1
