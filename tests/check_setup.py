"""Rows and a chat model for `allo check`."""

import json
from pathlib import Path
from typing import Any

from tiny_chat import chat_tokenizer, save_chat_model

SHORT = ("sample.max_new_tokens=8", "evaluate.max_new_tokens=8")
CHAT = [{"role": "user", "content": "2+2?"}]


def asked_chat(answer: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer}]


def written(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def chat_model(folder: Path, **config: Any) -> Path:
    return save_chat_model(folder, chat_tokenizer(eos="<|endoftext|>"), ends=[0, 2], **config)
