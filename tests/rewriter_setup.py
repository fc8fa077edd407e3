"""A finished run, and rows of rewrites."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from allo.rewriter.cases import Run
from allo.rewriter.data import DataSettings, make_data
from allo.sampling.endpoint import Endpoint
from server import MODEL, Chat

VARIABLE = "ALLO_TEST_KEY"


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def made(run: Run, out: Path, source: str, *, endpoint: Endpoint | None = None, **own: Any) -> dict[str, Any]:
    return make_data(run, DataSettings(source, **own), out, endpoint=endpoint)  # type: ignore[arg-type]


def place(chat: Chat, **own: Any) -> Endpoint:
    return replace(Endpoint(chat.url, MODEL, key_variable=VARIABLE, timeout=5.0, max_retries=0), **own)
