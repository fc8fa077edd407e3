"""One tokenization for every stage: BOS once, EOS if finished, the prompt never changes the completion."""

from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from allo.errors import UserError
from allo.files.records import Message
from allo.models.load import load_tokenizer
from allo.models.tokenization import cut_left, prompt_ids, tokenize

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CORPUS = ["the answer is 12", "what is the sum of 5 and 7?", "5 + 7 = 12, so the answer is 12."] * 3
MESSAGES: list[Message] = [{"role": "user", "content": "what is 5 + 7?"}]


def byte_tokenizer(
    *, before: list[str], after: list[str] | None = None, template: str = TEMPLATE
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts the tokens `before` and `after` around every text."""
    after = after or []
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=[(token, core.token_to_id(token)) for token in {*before, *after}],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=template
    )


TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {
    "with BOS": byte_tokenizer(before=["<s>"]),
    "without BOS": byte_tokenizer(before=[]),
    "with BOS and EOS": byte_tokenizer(before=["<s>"], after=["</s>"]),
    "with EOS": byte_tokenizer(before=[], after=["</s>"]),
    "laboratory": load_tokenizer(str(files("allo") / "lab")),
}
tokenizers = pytest.mark.parametrize("name", TOKENIZERS)
texts = st.text(alphabet="the answer is 12 + ?.\nü", min_size=1, max_size=30)


@tokenizers
@settings(max_examples=50)
@given(first=texts, second=texts, completion=texts)
def test_a_completion_has_the_same_ids_whatever_the_prompt(
    name: str, first: str, second: str, completion: str
) -> None:
    tokenizer = TOKENIZERS[name]
    one = tokenize(tokenizer, first, completion, max_length=200)
    two = tokenize(tokenizer, second, completion, max_length=200)
    assert one is not None
    assert two is not None
    assert one.completion_ids == two.completion_ids


@tokenizers
@given(completion=texts, finished=st.booleans())
def test_a_completion_ends_with_eos_if_and_only_if_it_is_finished(
    name: str, completion: str, finished: bool
) -> None:
    tokenizer = TOKENIZERS[name]
    item = tokenize(tokenizer, "what is", completion, finished=finished, max_length=200)
    assert item is not None
    assert item.completion_ids.count(tokenizer.eos_token_id) == int(finished)
    assert (item.completion_ids[-1] == tokenizer.eos_token_id) == finished
    assert tokenizer.eos_token_id not in item.prompt_ids


@given(text=texts)
def test_bos_comes_once_whoever_writes_it(text: str) -> None:
    tokenizer = TOKENIZERS["with BOS"]
    bos = tokenizer.bos_token_id
    ids = prompt_ids(tokenizer, text)
    assert ids == list(tokenizer(text).input_ids)
    assert ids[0] == bos
    assert ids.count(bos) == 1
    assert prompt_ids(tokenizer, "<s>" + text) == ids
    assert prompt_ids(TOKENIZERS["with BOS and EOS"], text) == ids
    assert prompt_ids(TOKENIZERS["without BOS"], text) == ids[1:]


def test_messages_are_rendered_up_to_where_the_assistant_speaks_with_one_bos() -> None:
    text = "<user>what is 5 + 7?\n<assistant>"
    plain = TOKENIZERS["without BOS"]
    assert plain.decode(prompt_ids(plain, MESSAGES)) == text
    with_bos = prompt_ids(TOKENIZERS["with BOS"], MESSAGES)
    assert with_bos == [plain.bos_token_id, *prompt_ids(plain, MESSAGES)]
    template_writes_bos = byte_tokenizer(before=["<s>"], template="<s>" + TEMPLATE)
    assert prompt_ids(template_writes_bos, MESSAGES) == with_bos
    only_template_writes_bos = byte_tokenizer(before=[], template="<s>" + TEMPLATE)
    assert prompt_ids(only_template_writes_bos, MESSAGES) == with_bos


@tokenizers
@given(prompt=texts, completion=texts, max_length=st.integers(1, 40))
def test_a_long_pair_loses_the_beginning_of_its_prompt_only(
    name: str, prompt: str, completion: str, max_length: int
) -> None:
    tokenizer = TOKENIZERS[name]
    whole = tokenize(tokenizer, prompt, completion, max_length=1000)
    item = tokenize(tokenizer, prompt, completion, max_length=max_length)
    assert whole is not None
    if len(whole.completion_ids) >= max_length:
        assert item is None
        return
    assert item is not None
    assert item.completion_ids == whole.completion_ids
    length = min(max_length, len(whole.prompt_ids) + len(whole.completion_ids))
    assert len(item.prompt_ids) + len(item.completion_ids) == length
    has_bos = whole.prompt_ids[0] == tokenizer.bos_token_id
    assert (item.prompt_ids[0] == tokenizer.bos_token_id) == has_bos
    kept = item.prompt_ids[int(has_bos) :]
    assert whole.prompt_ids[len(whole.prompt_ids) - len(kept) :] == kept


def test_cut_left_by_hand() -> None:
    tokenizer = TOKENIZERS["with BOS"]
    bos = tokenizer.bos_token_id
    assert cut_left(tokenizer, [bos, 11, 12, 13], 4) == [bos, 11, 12, 13]
    assert cut_left(tokenizer, [bos, 11, 12, 13], 3) == [bos, 12, 13]
    assert cut_left(tokenizer, [bos, 11, 12, 13], 1) == [bos]
    assert cut_left(tokenizer, [11, 12, 13], 2) == [12, 13]


def test_a_completion_without_tokens_is_dropped_unless_it_ended() -> None:
    tokenizer = TOKENIZERS["with BOS"]
    assert tokenize(tokenizer, "what is", "", finished=False, max_length=10) is None
    ended = tokenize(tokenizer, "what is", "", finished=True, max_length=10)
    assert ended is not None
    assert ended.completion_ids == [tokenizer.eos_token_id]


def test_messages_need_a_chat_template_and_a_prompt_needs_a_token() -> None:
    bare = byte_tokenizer(before=[])
    bare.chat_template = None
    with pytest.raises(UserError, match="chat template"):
        prompt_ids(bare, MESSAGES)
    with pytest.raises(UserError, match="empty"):
        prompt_ids(bare, "")
    assert prompt_ids(TOKENIZERS["with BOS"], "") == [TOKENIZERS["with BOS"].bos_token_id]
