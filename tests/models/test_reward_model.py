"""A reward model: what it reads, that a reward is the completion's own, and which checkpoints are none."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaForSequenceClassification,
)

import tiny
from allo.errors import UserError
from allo.files.artifacts import read_json, write_json
from allo.files.records import Message, Prompt
from allo.models.reward_model import RewardModel, judged_ids, load_reward_model
from allo.stages.reward import Reader

TEMPLATE = "{% for message in messages %}{{ bos_token if loop.first }}{{ message.content }}{{ eos_token }}{% endfor %}"
# float32: what another batch and another padding change by rounding, of rewards of about 1.
SAME_REWARD = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.reward_model(tmp_path_factory.mktemp("reward") / "model")


@pytest.fixture(scope="module")
def judge(folder: Path) -> RewardModel:
    return load(folder)


def load(folder: Path, **settings: str) -> RewardModel:
    return load_reward_model(folder, dtype=torch.float32, device="cpu", **settings)


def rows(judge: RewardModel) -> list[list[int]]:
    return [
        judged_ids(judge.tokenizer, pair["prompt"], pair["chosen"], max_length=64)[0] for pair in tiny.pairs()
    ]


@pytest.mark.invariant(
    "A reward depends on neither batch nor padding, and one answer has one reward under every model."
)
def test_a_reward_depends_on_neither_batch_nor_padding(judge: RewardModel) -> None:
    ids = rows(judge)
    alone = [judge.rewards([row])[0] for row in ids]
    assert max(alone) - min(alone) > 100 * SAME_REWARD, "rewards that are all the same test nothing"
    assert judge.rewards(ids) == pytest.approx(alone, abs=SAME_REWARD)
    longest = [5] * 60
    assert judge.rewards([*ids, longest])[:-1] == pytest.approx(alone, abs=SAME_REWARD)


def test_an_encoders_reward_depends_on_neither_batch_nor_padding(tmp_path: Path) -> None:
    """It reads in both directions, so that padding would be read without a mask."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = DebertaV2Config(
        vocab_size=len(tiny.TOKENIZER), pad_token_id=0, type_vocab_size=0, num_labels=1, **sizes
    )
    encoder = DebertaV2ForSequenceClassification(config)
    for weight in encoder.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    encoder.save_pretrained(tmp_path)
    tiny.TOKENIZER.save_pretrained(tmp_path)
    judge = load(tmp_path)
    ids = rows(judge)
    alone = [judge.rewards([row])[0] for row in ids]
    assert max(alone) - min(alone) > 100 * SAME_REWARD
    assert judge.rewards(ids) == pytest.approx(alone, abs=SAME_REWARD)


def test_a_reward_is_the_heads_value_at_the_last_token(folder: Path, judge: RewardModel) -> None:
    plain = LlamaForSequenceClassification.from_pretrained(folder).eval()
    head = load_file(folder / "model.safetensors")["score.weight"]
    for row in rows(judge)[:4]:
        with torch.inference_mode():
            hidden = plain.model(torch.tensor([row])).last_hidden_state[0, -1]
        assert judge.rewards([row])[0] == pytest.approx(float(head[0] @ hidden), abs=SAME_REWARD)


def test_without_a_template_prompt_and_completion_follow_each_other_and_eos_ends_them(
    judge: RewardModel,
) -> None:
    tokenizer = judge.tokenizer
    ids, cut = judged_ids(tokenizer, "Tom has 7 pens.\n", "First 7", max_length=64)
    assert not cut
    assert ids == [*tokenizer("Tom has 7 pens.\nFirst 7").input_ids, tokenizer.eos_token_id]
    chat = [Message(role="user", content="Tom has 7 pens.\n")]
    assert judged_ids(tokenizer, chat, "First 7", max_length=64)[0] == ids
    with pytest.raises(UserError, match=r"a prompt has 2 messages, .* no chat template"):
        judged_ids(tokenizer, [Message(role="system", content="Add."), *chat], "First 7", max_length=64)


def test_a_tokenizer_with_a_separator_reads_two_segments(tmp_path: Path) -> None:
    tokenizer = load(tiny.reward_model(tmp_path / "model")).tokenizer
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = {"special_tokens": [("<bos>", bos), ("<eos>", eos)]}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B <eos>", **ids
    )
    tokenizer.sep_token = "<eos>"
    said = [tokenizer(text, add_special_tokens=False).input_ids for text in ("Tom has 7 pens.\n", "First 7")]
    found, _ = judged_ids(tokenizer, "Tom has 7 pens.\n", "First 7", max_length=64)
    assert found == [bos, *said[0], eos, *said[1], eos]


def test_with_a_template_the_completion_is_the_conversations_last_turn(tmp_path: Path) -> None:
    tokenizer = load(tiny.reward_model(tmp_path / "model", template=TEMPLATE)).tokenizer
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    said = [tokenizer(text, add_special_tokens=False).input_ids for text in ("Tom has 7 pens.", "First 7")]
    ids, _ = judged_ids(tokenizer, "Tom has 7 pens.\n", "First 7", max_length=64)
    assert ids == [bos, *said[0], eos, *said[1], eos]
    chat = [Message(role="user", content="Tom has 7 pens.")]
    assert judged_ids(tokenizer, chat, "First 7", max_length=64)[0] == ids


def test_a_template_that_refuses_is_a_users_error(tmp_path: Path) -> None:
    refusing = "{{ raise_exception('System role not supported') }}"
    tokenizer = load(tiny.reward_model(tmp_path / "model", template=refusing)).tokenizer
    with pytest.raises(UserError, match=r"template refuses the conversation .System role not supported"):
        judged_ids(tokenizer, "Tom", "First 7", max_length=64)


def test_a_text_that_is_too_long_loses_its_beginning_but_not_bos(judge: RewardModel) -> None:
    whole, _ = judged_ids(judge.tokenizer, "Tom has 7 pens.\n", "First 7", max_length=64)
    short, cut = judged_ids(judge.tokenizer, "Tom has 7 pens.\n", "First 7", max_length=len(whole) - 2)
    assert cut
    assert short == [whole[0], *whole[3:]]


@pytest.mark.parametrize(
    ("labels", "words"), [(2, "has 2 labels, and a reward model has one"), (5, "has 5 labels")]
)
def test_a_head_of_several_labels_is_refused(tmp_path: Path, labels: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(tiny.reward_model(tmp_path / "model", labels=labels))


def test_token_types_are_not_left_out_unsaid(tmp_path: Path) -> None:
    config = BertConfig(num_labels=1, architectures=["BertForSequenceClassification"])
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="tells segments apart by token types"):
        load(tmp_path)


def test_a_language_model_is_no_reward_model() -> None:
    with pytest.raises(UserError, match=r"one label; its config.json names LlamaForCausalLM"):
        load(tiny.LABORATORY)


def test_a_checkpoint_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    folder = tiny.reward_model(tmp_path / "model")
    tiny.model().save_pretrained(folder)
    config = read_json(folder / "config.json")
    write_json(
        folder / "config.json",
        config | {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}},
    )
    with pytest.raises(UserError, match=r"1 weights .* missing .*score.weight"):
        load(folder)


def test_a_pickled_model_is_refused_unread(tmp_path: Path) -> None:
    folder = tiny.reward_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never to be read")
    with pytest.raises(UserError, match="pickle"):
        load(folder)


def test_a_missing_pad_token_is_asked_for_and_then_taken(tmp_path: Path) -> None:
    folder = tiny.reward_model(tmp_path / "model", pad=False)
    with pytest.raises(UserError, match=r"neither config.json nor the tokenizer names a pad token"):
        load(folder)
    with pytest.raises(UserError, match=r"<absent>.* is no token"):
        load(folder, pad_token="<absent>")
    found = load(folder, pad_token="<pad>")
    assert found.pad_id == tiny.TOKENIZER.pad_token_id
    ids = rows(found)
    assert found.rewards(ids) == pytest.approx([found.rewards([row])[0] for row in ids], abs=SAME_REWARD)


def test_the_configurations_padding_counts_before_the_tokenizers(tmp_path: Path) -> None:
    folder = tiny.reward_model(tmp_path / "model")
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"pad_token_id": 3})
    assert load(folder).pad_id == 3


def test_a_reward_that_is_no_number_is_a_users_error(folder: Path) -> None:
    broken = load(folder)
    torch.nn.init.constant_(broken.model.score.weight, float("nan"))
    with pytest.raises(UserError, match=r"no finite number; set judge.dtype to float32"):
        broken.rewards(rows(broken)[:2])


def test_a_reward_model_is_shown_no_thoughts(judge: RewardModel) -> None:
    reader = Reader(judge, max_length=64, batch_size=2)
    prompt = Prompt("p", "Problem: Tom has 7 pens.\n")
    thought, plain = "<think>First 9.</think>The answer is 7.", "The answer is 7."
    rows = reader.rows(
        [(prompt, thought), (prompt, plain), (prompt, "<think>The answer is 7."), (prompt, "")]
    )
    assert rows["p", thought] == rows["p", plain]
    assert rows["p", "<think>The answer is 7."] == rows["p", ""], "an unfinished thought has no answer"
