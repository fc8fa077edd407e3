"""A reward model: a sequence classifier with one label, which reads a prompt and a completion and rates them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig

from allo.errors import UserError
from allo.files.records import Message
from allo.models.device import resolve_device
from allo.models.load import (
    CONFIG_FILES,
    MODEL_FILES,
    TOKENIZER_FILES,
    Model,
    Tokenizer,
    loading,
    locate_checkpoint,
    require_all_weights,
    require_safetensors,
)
from allo.models.model_checks import check_config, check_depth, check_stored, rope_sides
from allo.models.templates import Chat
from allo.models.tokenization import bare_ids, cut_left, encoded
from allo.models.tokenizer_checks import check_ids_fit, check_tokenizer
from allo.weights.checkpoints import refuse_adapter

KIND = "a reward model"
_TRAINED = "so it was not trained as a reward model: give one that was"


@dataclass(frozen=True)
class RewardModel:
    """A reward model: `model` maps rows of token ids to one number each; it ignores the padding `pad_id`."""

    model: Model
    tokenizer: Tokenizer
    pad_id: int

    @torch.inference_mode()
    def rewards(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Return the rewards of rows of token ids, right-padded to the longest.

        Raises `UserError` if a reward is not finite.
        """
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[self.pad_id] * (longest - len(row))] for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        device = self.model.device
        found = torch.empty(len(rows))
        for side, width in rope_sides(self.model.config, mask) or [(torch.arange(len(rows)), longest)]:
            part = {"input_ids": ids[side, :width], "attention_mask": mask[side, :width]}
            logits = self.model(**{name: tensor.to(device) for name, tensor in part.items()}).logits
            assert logits.shape == (len(side), 1)
            found[side] = logits[:, 0].float().cpu()
        if not found.isfinite().all():
            raise UserError(
                f"{self.model.name_or_path}: a completion's reward is no finite number; "
                "set judge.dtype to float32, or take another reward model."
            )
        return found.tolist()


def load_reward_model(
    ref: str | Path,
    *,
    dtype: torch.dtype,
    device: str = "auto",
    pad_token: str | None = None,
    trust_remote_code: bool = False,
) -> RewardModel:
    """Load the reward model of a folder or a hub id, in eval mode, with its own tokenizer.

    Raises `UserError` as `read_reward_config` and `load_reward_tokenizer` do, and if weights are absent or pickled.
    """
    config = read_reward_config(ref, trust_remote_code=trust_remote_code)
    tokenizer, pad_id = load_reward_tokenizer(
        ref, config, pad_token=pad_token, trust_remote_code=trust_remote_code
    )
    config.get_text_config().pad_token_id = pad_id
    where = resolve_device(device)
    folder, _ = locate_checkpoint(ref, MODEL_FILES)
    check_reward_folder(folder, ref, config, trust_remote_code=trust_remote_code)
    with loading(ref, KIND, folder=folder):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    require_all_weights(model, info, ref, advice=_TRAINED)
    return RewardModel(model.to(where).eval(), tokenizer, pad_id)


def check_reward_folder(
    folder: Path, ref: str | Path, config: PretrainedConfig, *, trust_remote_code: bool = False
) -> None:
    """Raise UserError unless the folder's files can be the dense weights of the reward model that `config` describes.

    It reads little beyond headers, so it can run before the first stage.
    """
    require_safetensors(folder, ref)
    check_depth(folder, ref)
    with loading(ref, KIND, folder=folder), torch.device("meta"):
        empty = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    check_stored(empty, folder, ref, advice=_TRAINED)


def read_reward_config(ref: str | Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return the configuration of a reward model; of a hub id nothing else is downloaded.

    Raises `UserError` for a GGUF file, and for a model that does not give exactly one number.
    """
    folder, gguf = locate_checkpoint(ref, CONFIG_FILES)
    if gguf is not None:
        raise UserError(f"{ref}: a GGUF file holds no reward model; give a checkpoint's folder or a hub id.")
    refuse_adapter(folder)
    check_config(folder, ref)
    with loading(ref, KIND, folder=folder):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    kinds = config.architectures or []
    if not any("SequenceClassification" in kind or "RewardModel" in kind for kind in kinds):
        found = ", ".join(kinds) or "no architecture"
        raise UserError(
            f"{ref}: a reward model is a sequence classification model with one label; its config.json names {found}."
        )
    if config.num_labels != 1:
        raise UserError(
            f"{ref}: the classifier has {config.num_labels} labels, and a reward model has one: which of them would be "
            "the reward? Give a model with `num_labels` 1."
        )
    if getattr(config, "type_vocab_size", 0) > 1:
        raise UserError(
            f"{ref}: the model tells segments apart by token types, which allo does not give. Take a decoder, or an "
            "encoder without them, such as DeBERTa-v3."
        )
    return config


def load_reward_tokenizer(
    ref: str | Path,
    config: PretrainedConfig,
    *,
    pad_token: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Tokenizer, int]:
    """Return a reward model's own tokenizer and its padding id.

    A decoder reads the reward at the last token before the padding. The padding id is the configuration's
    `pad_token_id`, otherwise the tokenizer's pad token, otherwise `pad_token`.

    Raises `UserError` if there is no tokenizer or no padding, or `pad_token` is unknown.
    """
    folder, _ = locate_checkpoint(ref, TOKENIZER_FILES)
    with loading(ref, "a tokenizer", folder=folder):
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        check_tokenizer(tokenizer, ref)
    check_ids_fit(tokenizer, config, ref=ref)
    if pad_token is not None and pad_token not in tokenizer.get_vocab():
        raise UserError(f"judge.pad_token {pad_token!r} is no token of {ref}; choose one of its vocabulary.")
    known = (config.get_text_config().pad_token_id, tokenizer.pad_token_id)
    found = next((pad for pad in known if pad is not None), None)
    if found is None and pad_token is None:
        raise UserError(
            f"{ref}: neither config.json nor the tokenizer names a pad token, which tells a classifier where a text "
            "ends; set `judge.pad_token` to the one that it was trained with, a token that ends no text."
        )
    return tokenizer, tokenizer.convert_tokens_to_ids(pad_token) if found is None else found


def judged_ids(
    tokenizer: Tokenizer,
    prompt: str | list[Message],
    completion: str,
    *,
    max_length: int,
    template: Mapping[str, object] | None = None,
    place: str = "",
) -> tuple[list[int], bool]:
    """Return the ids that a reward model reads for a prompt and its completion; True if their beginning was cut.

    With a chat template, the completion is the last turn of a conversation; a text prompt is then the user's turn.
    Without a template, prompt and completion are two segments if the tokenizer has a separator, as encoders do.
    Otherwise they are concatenated and closed by EOS. A prompt of messages is then a single user's turn.

    Raises `UserError` for longer conversations without a template, and for those that the template refuses.
    """
    if tokenizer.chat_template is not None:
        ids = _conversation(tokenizer, prompt, completion, template=template, place=place)
    else:
        ids = _text(tokenizer, prompt, completion, place=place)
    return cut_left(tokenizer, ids, max_length), len(ids) > max_length


def _conversation(
    tokenizer: Tokenizer,
    prompt: str | list[Message],
    completion: str,
    *,
    template: Mapping[str, object] | None,
    place: str,
) -> list[int]:
    asked = [Message(role="user", content=prompt.strip())] if isinstance(prompt, str) else prompt
    said = [*asked, Message(role="assistant", content=completion)]
    text = Chat(
        tokenizer, said, template, f"{place}: the reward model" if place else "the reward model"
    ).text()
    return bare_ids(tokenizer, text, place=place)


def _text(tokenizer: Tokenizer, prompt: str | list[Message], completion: str, *, place: str) -> list[int]:
    if not isinstance(prompt, str):
        if [message["role"] for message in prompt] != ["user"]:
            raise UserError(
                f"{tokenizer.name_or_path}: a prompt has {len(prompt)} messages, but the reward model's tokenizer has no "
                "chat template: it can be shown a single user's turn alone. Take a reward model with a template."
            )
        prompt = prompt[0]["content"]
    if tokenizer.sep_token is not None:
        return list(encoded(tokenizer, prompt, completion, place=place, special=True).input_ids)
    ids = list(encoded(tokenizer, prompt + completion, place=place, special=True).input_ids)
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    return ids
