"""The prompt of a pair: the answers' shared beginning, cut at a word and a token, never guessed, never doubled."""

from typing import Any

import pytest

from allo.errors import UserError
from allo.tasks.beginnings import shared_beginning
from allo.tasks.pairs import completions_of_rows, pairs_of_rows


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SPLITS = [
    # Special tokens and marks in brackets stay whole.
    ("<|user|>Call.<|end|><|assistant|>", "<|tool_call|>x", "<|text|>no"),
    ("<|user|>Call.<|end|><|assistant|>", "<|text|>x", "<|tex"),
    ("Call.", " <|a|>x", " <|ab|>x"),
    ("[INST] Call.", " [/INST] x", " [/SYS] x"),
    ("Call.", "<think>x</think>", "<thought>x</thought>"),
    ("Call.", "<｜tool▁call｜>x", "<｜tool▁out｜>x"),
    ("Call.", " [[A]]", " [[B]]"),
    ("a", " < b, so no.", " <|x|>"),
    # Words.
    ("The sky is", " blue.", " green."),
    ("I am", " happy.", " happier."),
    ("I am", " unhappy.", " unwell."),
    ("It", " is so.", " isn't so."),
    ("He", " can't.", " can."),
    ("A", " well-known fact", " well-read man"),
    ("x =", " snake_case", " snake_eyes"),
    ("Ich bin", " größer", " größte"),
    # Numbers.
    ("It is", " 12", " 123"),
    ("It is", " 3.50", " 3.75"),
    ("It is", " 1,200", " 1,300"),
    ("At", " 12:30", " 12:45"),
    ("It is", " 12", " 1O"),
    # Characters of several code points.
    ("Hi", " cafe\u0301", " cafe"),
    ("Hi", " 👍🏽!", " 👍🏾!"),
    ("Hi", " 👩‍🚀!", " 👩‍🔬!"),
    ("Hi", " 🇩🇪", " 🇩🇰"),
    ("नमस्ते", " दुनिया", " दुनिये"),
    # Scripts without spaces: a word may begin at each character, but not before its vowel signs.
    ("天空是", "蓝色的", "绿色的"),
    ("空は", "青い", "赤い"),
    ("ปลา", "ดี", "ดำ"),
    ("空は", "コーヒー", "コーラ"),
    # Spaces and line breaks.
    ("Q?\n", "Yes", "No"),
    ("Q?\n\n", "Yes", "No"),
    ("Q?", "\nYes", "\n\nNo"),
    ("Q?\r\n", "Yes", "No"),
    ("Q? ", " yes", " no"),
    ("Q?", "yes", "no"),
    ("Well", "... yes", ".. no"),
    # One answer begins with the other, inside a word.
    ("Q:", " a", " ab"),
    ("Q:", " 1", " 12"),
]


@pytest.mark.parametrize(("prompt", "chosen", "rejected"), SPLITS)
def test_an_inferred_prompt_ends_where_a_word_and_a_token_begin(
    prompt: str, chosen: str, rejected: str
) -> None:
    for first, second in ((chosen, rejected), (rejected, chosen)):
        row = {"chosen": prompt + first, "rejected": prompt + second}
        ((pair,), reading) = pairs_of_rows([row])
        assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, first, second)
        assert sum(reading.mapped.values()) == 1


@pytest.mark.parametrize("text", [prompt + side for prompt, *sides in SPLITS for side in sides])
def test_whatever_two_texts_share_is_the_beginning_of_both(text: str) -> None:
    for at in range(1, len(text)):
        other = text[:at] + "\0"
        shared = shared_beginning(text, other)
        assert text.startswith(shared) and other.startswith(shared)
        assert len(shared) <= at


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ("Q: Yes", "Q: Yes, it is.", "`chosen` has no completion after the prompt"),
        ("Q: Yes.\n", "Q: Yes.\nNo.", "`chosen` has no completion after the prompt"),
        ("yes", "no", "lacks `prompt`"),
        ("yes", "yesterday", "lacks `prompt`"),
        ("<|a|>x", "<|b|>x", "lacks `prompt`"),
        ("コーヒー", "コーラ", "lacks `prompt`"),
    ],
)
def test_answers_without_a_shared_prompt_are_refused(chosen: str, rejected: str, message: str) -> None:
    with pytest.raises(UserError, match=f"rows, row 0: {message}"):
        pairs_of_rows([{"chosen": chosen, "rejected": rejected}])


@pytest.mark.parametrize(
    "column",
    [
        *(
            "question",
            "questions",
            "Question",
            "query",
            "input",
            "inputs",
            "problem",
            "context",
        ),
        *(
            "messages",
            "conversation",
            "conversations",
            "user",
            "user_question",
            "userQuestion",
            "question_text",
        ),
        *("Prompt", "PROMPT", "prompt_text", "history", "dialogue"),
    ],
)
def test_no_prompt_is_guessed_beside_a_column_that_looks_like_one(column: str) -> None:
    row = {column: "What colour is it?", "chosen": "The sky is blue.", "rejected": "The sky is green."}
    with pytest.raises(UserError, match=rf"row 0: lacks `prompt`, .* rename `{column}` to `prompt`"):
        pairs_of_rows([row])
    answers = {"chosen": [assistant("The sky is blue.")], "rejected": [assistant("The sky is green.")]}
    with pytest.raises(UserError, match=rf"rename `{column}` to `prompt`"):
        pairs_of_rows([{column: "What colour is it?", **answers}])
    ((pair,), reading) = pairs_of_rows([{**row, "prompt": "What colour is it?\n"}])
    assert (pair.prompt, pair.chosen) == ("What colour is it?\n", "The sky is blue.")
    assert reading.ignored == (column,)


@pytest.mark.parametrize(
    "beside",
    [
        *({"question_id": "q1"}, {"prompt_length": 5}, {"num_questions": 2}, {"source": "x"}),
        *({"question": None}, {"query": ""}, {"messages": []}, {"user": 7}),
    ],
)
def test_a_prompt_is_inferred_beside_other_columns(beside: dict[str, Any]) -> None:
    ((pair,), _) = pairs_of_rows([{"chosen": "The sky is blue.", "rejected": "The sky is green.", **beside}])
    assert pair.prompt == "The sky is"


ASKED = "What colour is the sky today?"


@pytest.mark.parametrize(
    ("row", "prompt", "chosen"),
    [
        ({"prompt": ASKED, "chosen": f"{ASKED} Blue.", "rejected": f"{ASKED} Red."}, ASKED, " Blue."),
        ({"prompt": f"{ASKED}\n", "chosen": f"{ASKED}\nBlue.", "rejected": f"{ASKED}\nRed."}, f"{ASKED}\n", "Blue."),
        ({"prompt": f"{ASKED}\n", "chosen": f"{ASKED} Blue.", "rejected": f"{ASKED} Red."}, ASKED, " Blue."),
        ({"prompt": "Q?", "chosen": "Q? yes", "rejected": "Q? no"}, "Q?", " yes"),
        (
            {"prompt": [user(ASKED)], "chosen": f"{ASKED}\nBlue.", "rejected": f"{ASKED}\nRed."},
            [user(ASKED)],
            "Blue.",
        ),
        (
            {
                "prompt": [{"role": "system", "content": "Be brief."}, user(ASKED)],
                "chosen": [user(ASKED), assistant("Blue.")],
                "rejected": [assistant("Red.")],
            },
            [{"role": "system", "content": "Be brief."}, user(ASKED)],
            "Blue.",
        ),
        (
            {
                "prompt": ASKED,
                "chosen": [user("Hi"), assistant("Hi"), user(f" {ASKED}"), assistant("Blue.")],
                "rejected": [user("Hi"), assistant("Hi"), user(f" {ASKED}"), assistant("Red.")],
            },
            [user("Hi"), assistant("Hi"), user(f" {ASKED}")],
            "Blue.",
        ),
    ],
)  # fmt: skip
def test_a_conversation_repeated_beside_its_prompt_is_read_once(
    row: dict[str, Any], prompt: Any, chosen: str
) -> None:
    ((pair,), _) = pairs_of_rows([row])
    assert (pair.prompt, pair.chosen) == (prompt, chosen)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": ASKED, "chosen": f"Human: {ASKED}\n\nAssistant: Blue.", "rejected": f"Human: {ASKED}\n\nAssistant: Red."},
            "repeat the prompt inside a conversation",
        ),
        (
            {"prompt": ASKED, "chosen": f"<|user|>\n{ASKED}<|assistant|>Blue.", "rejected": f"<|user|>\n{ASKED}<|assistant|>Red."},
            "repeat the prompt inside a conversation",
        ),
        (
            {"prompt": ASKED, "chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), assistant("b")]},
            "conversations in which nobody says the `prompt`",
        ),
        (
            {"prompt": [user(ASKED)], "chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), assistant("b")]},
            "`chosen` begins with another user message than `prompt`",
        ),
        (
            {"prompt": [user(ASKED), assistant("Blue")], "chosen": [assistant(".")], "rejected": [assistant("!")]},
            "follows another message of the assistant",
        ),
        (
            {
                "prompt": [user(ASKED)],
                "chosen": [assistant("a"), user("And?"), assistant("b")],
                "rejected": [assistant("c"), user("And?"), assistant("d")],
            },
            "differ before their last message; one message is trained on",
        ),
    ],
)  # fmt: skip
def test_a_row_that_would_be_doubled_or_halved_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"rows, row 0: .*{message}"):
        pairs_of_rows([row])


def test_an_answer_may_begin_with_the_words_of_a_short_prompt() -> None:
    """Most rows of the source do not repeat their prompt, so this one is taken not to either."""
    rows = [
        {"prompt": "Hello!", "chosen": "Hello! How are you?", "rejected": "Hello! Go away."},
        {"prompt": ASKED, "chosen": "Blue.", "rejected": "Red."},
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    ]
    pairs, reading = pairs_of_rows(rows)
    assert pairs[0].chosen == "Hello! How are you?"
    assert list(reading.mapped.values()) == [1]
    longer = {"prompt": ASKED, "chosen": f"{ASKED} Blue.", "rejected": f"{ASKED} Red."}
    assert pairs_of_rows([*rows, longer])[0][-1].chosen == " Blue."


def test_a_prompt_that_ends_inside_a_word_of_the_answers_is_no_repetition() -> None:
    row = {"prompt": "The sky", "chosen": "The skyline is near.", "rejected": "The skyline is far."}
    ((pair,), _) = pairs_of_rows([row])
    assert pair.chosen == "The skyline is near."


def test_completions_are_cut_as_pairs_are() -> None:
    rows = [
        {"prompt": ASKED, "completion": f"{ASKED} Blue."},
        {"messages": [user(ASKED), assistant("Blue.")]},
        {"prompt": ASKED, "completion": [assistant("Blue.")], "finished": False},
        {"prompt": [user(ASKED)], "completion": "Blue.", "token_weights": [1.0, 0.0]},
    ]
    found, _ = completions_of_rows(rows)
    assert [row["prompt"] for row in found] == [ASKED, [user(ASKED)], [user(ASKED)], [user(ASKED)]]
    assert [row["completion"] for row in found] == [" Blue.", "Blue.", "Blue.", "Blue."]
    assert [row["finished"] for row in found] == [True, True, False, True]
    assert found[3]["token_weights"] == [1.0, 0.0]
    with pytest.raises(UserError, match="lacks `prompt`"):
        completions_of_rows([{"completion": "Blue."}])
