"""TRL 1.16 is the oracle of token ids, on rows of every kind; each difference is a test that says why."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedTokenizerBase

from allo.models.rows import counted_pairs
from allo.models.tokenization import prompt_ids, tokenize
from tokenizers_of_kinds import (
    CHATML,
    DEFAULT_SYSTEM,
    EMPTY_THOUGHT,
    LLAMA_2,
    LLAMA_3,
    NO_END,
    NO_HEADER,
    OPENED_THOUGHT,
    PHI,
    TWO_ENDS,
    ZEPHYR,
    byte_level,
    sentence_piece,
)

pytestmark = pytest.mark.invariant(
    "Token ids are TRL's for every kind of row, or differ for a documented reason."
)

trl = pytest.importorskip("trl", reason="TRL is the oracle; install the extra `trl`")
disable_progress_bars()

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TOKENIZERS = {
    "byte level": byte_level(),
    "byte level with BOS": byte_level(bos=True),
    "byte level, EOS ends the turn": byte_level(eos="<|im_end|>"),
    "SentencePiece": sentence_piece(),
    "legacy SentencePiece": sentence_piece(legacy=True),
}
ASKED = [{"role": "user", "content": "Name a tree."}]
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def all_theirs(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """The ids of TRL's own preparation of a data set, as its DPOTrainer calls it."""
    settings = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    found = trl.DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, settings, "train")
    return [{name: row[name] for name in COLUMNS} for row in found]


def theirs(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> dict[str, list[int]]:
    return all_theirs(tokenizer, [row])[0]


def ours(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> dict[str, list[int]]:
    return counted_pairs(tokenizer, [row], max_length=10_000)[0][0]


def conversation(chosen: str, rejected: str = "Rock is it.", asked: Any = ASKED) -> dict[str, Any]:
    """One row as TRL reads it."""
    sides = {"chosen": chosen, "rejected": rejected}
    return {
        "prompt": asked,
        **{name: [{"role": "assistant", "content": text}] for name, text in sides.items()},
    }


def texts_of(row: dict[str, Any]) -> dict[str, Any]:
    """The same row with texts for sides, as our files have it."""
    return {"prompt": row["prompt"], **{name: row[name][0]["content"] for name in ("chosen", "rejected")}}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Name a tree.\n", "Oak.", "Rock is it."),
        ("Name a tree.", " Oak.", " Rock is it."),
        ("Name a tree.\nA:", " Oak.", "\nRock is it."),
        ("the answer is 5", "7", "+"),
        ("Name a tree.\n", "Oak, und Bäume: ü.", "?"),
    ],
)
@pytest.mark.parametrize("ended", [False, True])
def test_text_rows_have_trls_ids(name: str, prompt: str, chosen: str, rejected: str, ended: bool) -> None:
    tokenizer = TOKENIZERS[name]
    end = tokenizer.eos_token if ended else ""
    row = {"prompt": prompt, "chosen": chosen + end, "rejected": rejected + end}
    expected, found = theirs(tokenizer, row), ours(tokenizer, row)
    for column in COLUMNS:
        assert found[column] == expected[column], column
    assert found["chosen_ids"].count(tokenizer.eos_token_id) == 1


CHATS = {
    "ChatML": CHATML,
    "default system prompt": DEFAULT_SYSTEM,
    "BOS and trimmed": LLAMA_3,
    "line break before the answer": ZEPHYR,
    "EOS after the end of turn": PHI,
    "two end tokens": TWO_ENDS,
    "empty thought": EMPTY_THOUGHT,
}


@pytest.mark.parametrize("template", CHATS)
@pytest.mark.parametrize("kind", [byte_level, sentence_piece])
@pytest.mark.parametrize("eos", ["</s>", "<|endoftext|>", "<|im_end|>"])
def test_chat_rows_have_trls_ids_up_to_what_ends_the_turn(template: str, kind: Any, eos: str) -> None:
    """A line break or a last EOS that the template writes after it belongs to the next turn: no sample has it."""
    tokenizer = kind(CHATS[template], eos=eos)
    rows = [
        conversation("Oak."),
        conversation("Oak.\nIt is a tree."),
        conversation("<think>\n5 + 7 is 12.\n</think>\n\n12"),
        conversation("Oak.", asked=[*ASKED, {"role": "assistant", "content": "Rock."}, *ASKED]),
        conversation("Oak.", asked=[{"role": "system", "content": "it is"}, *ASKED]),
    ]
    for row, expected in zip(rows, all_theirs(tokenizer, rows), strict=True):
        found = ours(tokenizer, texts_of(row))
        if kind is byte_level or template == "BOS and trimmed":  # the others' BOS: see the test of BOS
            assert found["prompt_ids"] == expected["prompt_ids"]
        for side in ("chosen_ids", "rejected_ids"):
            length = len(found[side])
            assert found[side] == expected[side][:length]
            left = tokenizer.decode(expected[side][length:])
            assert left in ("", "\n", f"\n{eos}"), left


def test_the_end_is_what_ends_the_turn_and_not_eos_by_rote() -> None:
    tokenizer = byte_level(CHATML, eos="<|endoftext|>")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    found = ours(tokenizer, texts_of(conversation("Oak.")))
    assert found["chosen_ids"][-1] == found["rejected_ids"][-1] == end
    assert tokenizer.eos_token_id not in found["chosen_ids"]
    text = tokenize(tokenizer, "Name a tree.\n", "Oak.", max_length=100)
    assert text is not None
    assert text.completion_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", [byte_level, sentence_piece])
def test_without_a_generation_prompt_the_header_is_the_prompts(kind: Any) -> None:
    """TRL counts it to the completion. The sequences are the same; both sides of a pair share the header, and a model is
    prompted with it."""
    tokenizer, row = kind(NO_HEADER, eos="<|im_end|>"), conversation("Oak.")
    expected, found = theirs(tokenizer, row), ours(tokenizer, texts_of(row))
    header = "<|im_start|>assistant\n"
    assert tokenizer.decode(found["prompt_ids"]).endswith(f"Name a tree.<|im_end|>\n{header}")
    assert tokenizer.decode(found["chosen_ids"]) == "Oak.<|im_end|>"
    assert found["prompt_ids"] == prompt_ids(tokenizer, ASKED)  # as the sampler has it
    for side in ("chosen_ids", "rejected_ids"):
        assert tokenizer.decode(expected[side]).startswith(header)
        whole = found["prompt_ids"] + found[side]
        full = [tokenizer.bos_token_id] * (kind is sentence_piece) + expected["prompt_ids"] + expected[side]
        assert whole == full[: len(whole)]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_space_that_the_template_writes_before_an_answer_is_in_its_first_token(legacy: bool) -> None:
    tokenizer, row = sentence_piece(LLAMA_2, legacy=legacy), conversation("Oak.")
    assert ours(tokenizer, texts_of(row)) == theirs(tokenizer, row)
    assert ours(tokenizer, texts_of(conversation(" Oak."))) == theirs(tokenizer, row)


@pytest.mark.parametrize("template", sorted(path.name for path in TEMPLATES.glob("*.jinja")))
def test_templates_of_known_models(template: str) -> None:
    """Every template that TRL ships, but those that want lists of parts or open a thought in the prompt alone."""
    if template.startswith(("llava", "idefics", "smolvlm")):
        pytest.skip("of images: a message's content is a list of parts")
    if template.startswith(("deepseek", "nemotron")):
        pytest.skip("see the test of a thought that the generation prompt opens")
    tokenizer = byte_level((TEMPLATES / template).read_text(encoding="utf-8"))
    row = conversation("It is 12.", "4")
    expected, found = theirs(tokenizer, row), ours(tokenizer, texts_of(row))
    assert found["prompt_ids"] == expected["prompt_ids"]
    for side in ("chosen_ids", "rejected_ids"):
        if template == "glm4moe.jinja":  # it closes no turn with a token: only EOS ends a sample
            assert found[side] == [*expected[side], tokenizer.eos_token_id]
            continue
        length = len(found[side])
        assert found[side] == expected[side][:length]
        left = tokenizer.decode(expected[side][length:])
        assert left.replace(tokenizer.eos_token, "").strip() == "", left


def test_messages_with_thoughts_and_tool_calls_have_trls_ids() -> None:
    tokenizer = byte_level(EMPTY_THOUGHT, eos="<|im_end|>")
    thought = {"role": "assistant", "content": "12", "reasoning_content": "5 + 7 is 12."}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 5, "b": 7}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    earlier = [*ASKED, calling, {"role": "tool", "content": "12", "name": "add"}]
    for asked, chosen, rejected in (
        (ASKED, thought, thought | {"content": "4"}),
        (earlier, thought, calling),
    ):
        row = {"prompt": asked, "chosen": [chosen], "rejected": [rejected]}
        expected = theirs(tokenizer, row)
        sides = {"chosen_message": chosen, "rejected_message": rejected, "chosen": "", "rejected": ""}
        found = ours(tokenizer, {"prompt": asked, **sides})
        assert found["prompt_ids"] == expected["prompt_ids"]
        for side in ("chosen_ids", "rejected_ids"):
            assert tokenizer.decode(expected[side]) == tokenizer.decode(found[side]) + "\n"
            assert found[side] == expected[side][: len(found[side])]


def test_variables_of_a_row_reach_the_template_as_trls_do() -> None:
    template = "{% if short %}Be short.{% endif %}{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}"
    tokenizer = byte_level(template + CHATML, eos="<|im_end|>")
    tool = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}
    row = conversation("Oak.") | {"tools": [tool], "chat_template_kwargs": {"short": True}}
    found = ours(
        tokenizer,
        texts_of(row) | {"template": {"tools": [tool], "chat_template_kwargs": {"short": True}}},
    )
    assert tokenizer.decode(found["prompt_ids"]).startswith("Be short.[add]")
    assert found["prompt_ids"] == theirs(tokenizer, row)["prompt_ids"]


# Differences from TRL's, with their reasons.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["SentencePiece", "legacy SentencePiece", "byte level"])
@pytest.mark.parametrize(
    ("prompt", "chosen"), [("the answer ", "is"), ("the answer is 1", "2"), ("the an", "swer")]
)
def test_a_token_that_spans_both_keeps_the_prompts_ids(name: str, prompt: str, chosen: str) -> None:
    """TRL drops the prompt's last token, so that the model is trained on another prompt than is sampled from."""
    tokenizer = TOKENIZERS[name]
    row = {"prompt": prompt, "chosen": chosen, "rejected": "it"}
    expected, found = theirs(tokenizer, row), ours(tokenizer, row)
    assert found["prompt_ids"] == prompt_ids(tokenizer, prompt) != expected["prompt_ids"]
    for side in ("chosen_ids", "rejected_ids"):
        assert tokenizer.decode(found["prompt_ids"] + found[side]) == tokenizer.decode(
            expected["prompt_ids"] + expected[side]
        )


@pytest.mark.filterwarnings("ignore")
def test_a_thought_that_the_generation_prompt_opens_stays_opened() -> None:
    """TRL drops the opening from the prompt, and the thoughts from the answer."""
    tokenizer = byte_level(OPENED_THOUGHT, eos="<|im_end|>")
    prompt = prompt_ids(tokenizer, ASKED)
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n<think>\n")
    whole = conversation("5 + 7 is 12.\n</think>\n\n12", "<think>\n5 + 7 is 4.\n</think>\n\n4")
    assert theirs(tokenizer, whole)["prompt_ids"] != prompt
    found = ours(tokenizer, texts_of(whole))
    assert found["prompt_ids"] == prompt
    assert tokenizer.decode(found["chosen_ids"]) == "5 + 7 is 12.\n</think>\n\n12<|im_end|>"
    assert tokenizer.decode(found["rejected_ids"]) == "5 + 7 is 4.\n</think>\n\n4<|im_end|>"
    plain = ours(tokenizer, texts_of(conversation("12", "4")))
    assert tokenizer.decode(plain["chosen_ids"]) == "\n</think>\n\n12<|im_end|>"
    cut = tokenize(tokenizer, ASKED, "5 + 7 is", finished=False, max_length=100)
    assert cut is not None
    assert tokenizer.decode(cut.completion_ids) == "5 + 7 is"


def test_an_end_that_a_chats_answer_has_already_is_not_doubled() -> None:
    tokenizer = byte_level(CHATML, eos="<|endoftext|>")
    expected = ours(tokenizer, texts_of(conversation("Oak.", "it")))
    for end in ("<|im_end|>", "<|im_end|>\n"):
        row = conversation(f"Oak.{end}", f"it{end}")
        assert ours(tokenizer, texts_of(row)) == expected
        assert tokenizer.decode(theirs(tokenizer, row)["chosen_ids"]).count("<|im_end|>") == 2


def test_bos_comes_once_although_a_template_forgets_it() -> None:
    """TRL gives such a chat none, and a text one: a tokenizer that begins every text with BOS begins chats with it too."""
    row = conversation("Oak.")
    for template in (CHATML, "{{ bos_token }}" + CHATML):
        tokenizer = sentence_piece(template)
        found = ours(tokenizer, texts_of(row))["prompt_ids"]
        assert found.count(tokenizer.bos_token_id) == 1
        assert found[0] == tokenizer.bos_token_id
    assert theirs(tokenizer, row)["prompt_ids"] == found


def test_a_template_that_closes_no_turn_ends_with_eos() -> None:
    """TRL trains on no end. The line breaks before the next turn are no part of the answer."""
    tokenizer, row = byte_level(NO_END), conversation("Oak.")
    assert tokenizer.decode(theirs(tokenizer, row)["chosen_ids"]) == "Oak.\n\n"
    assert tokenizer.decode(ours(tokenizer, texts_of(row))["chosen_ids"]) == "Oak.</s>"


def test_spaces_around_an_answer_are_kept_although_a_template_trims_them() -> None:
    tokenizer = byte_level(LLAMA_3)
    row = conversation(" Oak.\n")
    assert tokenizer.decode(theirs(tokenizer, row)["chosen_ids"]) == "Oak.<|eot|>"
    assert tokenizer.decode(ours(tokenizer, texts_of(row))["chosen_ids"]) == " Oak.\n<|eot|>"
