"""The text of sampled ids: what ended a sample is left out, and every other special token stays."""

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from allo.models.load import load_model
from allo.sampling.generate import end_ids, generate, read
from tiny_chat import SPECIAL, byte_fallback_tokenizer, chat_tokenizer, save_chat_model

CHAT = chat_tokenizer()
BYTES = byte_fallback_tokenizer()
ENDOFTEXT, IM_START, IM_END, PAD, THINK, UNTHINK, TOOLS = range(len(SPECIAL))
ENDS = [IM_END, ENDOFTEXT]


def ids_of(text: str, tokenizer: PreTrainedTokenizerFast = CHAT) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def byte_ids(data: bytes) -> list[int]:
    return [BYTES.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in data]


@pytest.mark.parametrize("special", ["<think>", "</think>", "[TOOL_CALLS]", "<pad>", "<|im_start|>"])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_special_token_inside_a_sample_stays_in_its_text(special: str, place: str) -> None:
    before, after = ("" if place == "first" else "We add"), ("" if place == "last" else " 2+2?")
    ids = [*ids_of(before), *ids_of(special), *ids_of(after)]
    for end in ENDS:
        sampled = [*ids, end]
        assert read(CHAT, sampled, eos=ENDS, stop=[]) == (before + special + after, True, sampled)
    assert read(CHAT, ids, eos=ENDS, stop=[]) == (before + special + after, False, ids)


@pytest.mark.parametrize("end", ENDS)
def test_a_sample_that_ends_at_once_is_its_end_and_no_text(end: int) -> None:
    assert read(CHAT, [end], eos=ENDS, stop=["<think>"]) == ("", True, [end])


def test_an_end_of_ordinary_text_is_no_part_of_the_text() -> None:
    """Some models name a line break among the ids that end a completion."""
    newline = ids_of("\n")
    assert read(CHAT, [*ids_of("blue"), *newline], eos=newline, stop=[]) == (
        "blue",
        True,
        [*ids_of("blue"), *newline],
    )


@pytest.mark.parametrize(
    ("sampled", "stop", "text", "kept"),
    [
        ("so[TOOL_CALLS] we", ["[TOOL_CALLS]"], "so", "so[TOOL_CALLS]"),
        ("so[TOOL_CALLS]", ["[TOOL_CALLS]"], "so", "so[TOOL_CALLS]"),
        ("</think>The</think>", ["</think>The"], "", "</think>The"),
        ("we add<pad>so", ["add<pad>"], "we ", "we add<pad>"),
        ("The answer is 4. What", ["answer is"], "The ", "The answer is"),
        ("blue green", ["never", "n"], "blue gree", "blue green"),
        ("blue<|im_end|>", ["<|im_end|>"], "blue", "blue<|im_end|>"),
        ("blue<|im_end|>", ["ue<|im_end|>"], "bl", "blue<|im_end|>"),
        ("blue<|im_end|>", ["im_end"], "blue", "blue<|im_end|>"),
        ("blue<|im_start|>user", ["<|im_start|>"], "blue", "blue<|im_start|>"),
    ],
)
def test_stop_strings_may_be_special_tokens_or_hold_them(
    sampled: str, stop: list[str], text: str, kept: str
) -> None:
    assert read(CHAT, ids_of(sampled), eos=ENDS, stop=stop) == (text, True, ids_of(kept))


def test_a_stop_string_that_is_a_special_token_ends_sampling(tmp_path: Path) -> None:
    """The model draws [TOOL_CALLS] with certainty once it may."""
    folder = save_chat_model(tmp_path / "model", CHAT, ends=[IM_END])
    model = load_model(folder, dtype=torch.float32, device="cpu")
    settings = {"num_generations": 4, "temperature": 1.5, "top_p": 1.0, "max_new_tokens": 60, "batch_size": 4}
    draw = partial(generate, model, CHAT, [ids_of("What colour")], **settings, seed=0)
    free = [sample for batch in draw(stop=[]) for sample in batch.samples]
    stop = max(SPECIAL, key=lambda one: sum(one in sample.text for sample in free if one != "<|im_end|>"))
    stopped = [sample for batch in draw(stop=[stop]) for sample in batch.samples]
    assert any(stop in sample.text for sample in free)
    for one, other in zip(free, stopped, strict=True):
        assert other.token_ids == one.token_ids[: len(other.token_ids)] and stop not in other.text
        if stop in one.text:
            assert other.finished and other.text == one.text.split(stop)[0]
            assert other.token_ids[-1] == CHAT.convert_tokens_to_ids(stop)


def test_turn_ends_end_a_sample_beside_the_models_own(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(eos="<|endoftext|>")
    folder = save_chat_model(tmp_path / "model", tokenizer, ends=[ENDOFTEXT])
    model = load_model(folder, dtype=torch.float32, device="cpu")
    assert end_ids(model, tokenizer) == [ENDOFTEXT]
    settings = {"num_generations": 32, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 80, "seed": 0}
    draw = partial(generate, model, tokenizer, [ids_of("What colour")], **settings, batch_size=32, stop=[])
    free = [sample for batch in draw() for sample in batch.samples]
    ended = [sample for batch in draw(turn_ends=[IM_END]) for sample in batch.samples]
    assert any(IM_END in sample.token_ids for sample in free)
    for one, other in zip(free, ended, strict=True):
        if IM_END in one.token_ids:
            place = one.token_ids.index(IM_END)
            assert other.token_ids == one.token_ids[: place + 1] and other.finished
            assert "<|im_end|>" not in other.text
        else:
            assert other == one


# Characters of several bytes.


@pytest.mark.parametrize("tokenizer", ["byte level", "byte fallback"])
@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_sample_cut_inside_a_character_keeps_all_of_its_ids(tokenizer: str, missing: int) -> None:
    cut = "so 🙂".encode()[:-missing]
    if tokenizer == "byte level":
        ids = ids_of("so 🙂")[:-missing]  # a token a byte: the emoji is not in its training text
        own = CHAT
    else:
        ids, own = byte_ids(cut), BYTES
    text, finished, kept = read(own, ids, eos=[2], stop=[])
    assert kept == ids and not finished
    assert text.rstrip("\ufffd") in ("so ", "") and text.endswith("\ufffd")


@pytest.mark.parametrize("num_bytes", [0, 1, 2, 3, 4, 5, 9])
def test_a_stop_string_fires_where_it_was_completed_whatever_bytes_follow(num_bytes: int) -> None:
    """Under byte fallback a cut character makes all bytes beside it unreadable, the line break among them."""
    after = byte_ids("🙂🙂🙂".encode()[:num_bytes])
    ids = [*ids_of("a", BYTES), *byte_ids(b"\n")]
    stop = ["\n"]
    assert read(BYTES, [*ids, *after], eos=[2], stop=stop) == ("a", True, ids)


@pytest.mark.parametrize("num_bytes", [1, 2, 3])
def test_a_stop_string_is_seen_in_time_beside_a_character_that_is_cut(num_bytes: int) -> None:
    """A row whose last look falls into a character ends there, as one whose look came before it."""
    ids = [*byte_ids(b"so\n"), *byte_ids("🙂".encode()[:num_bytes])]
    assert read(BYTES, ids, eos=[2], stop=["\n"])[1:] == (True, byte_ids(b"so\n"))


def test_a_stop_string_may_span_the_bytes_of_a_character() -> None:
    ids = byte_ids("e🙂s".encode())
    assert read(BYTES, ids, eos=[2], stop=["🙂"]) == ("e", True, ids[:5])
