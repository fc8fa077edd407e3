"""Servers of completions that lie, flood and mislead: what can be kept is kept, and the rest is asked for again or said."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from allo.errors import UserError
from allo.files.artifacts import ResumableLines
from allo.sampling.attempts import Failure
from allo.sampling.endpoint import Endpoint
from allo.sampling.replies import Asked, RequestSettings, read
from allo.sampling.served import complete
from hostile import ENDS, FLOODS, busy, endless, sends
from model_server import STARTING_MODEL, ModelHandler, ModelServer, model_server
from server import KEY, LONGEST, with_short_pauses, without_proxy

VARIABLE = "ALLO_TEST_KEY"
TOKENS = 20


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    without_proxy(monkeypatch)
    with_short_pauses(monkeypatch)


@pytest.fixture
def model() -> Iterator[ModelServer]:
    with model_server() as served:
        yield served


@pytest.mark.parametrize("choices", [5, True, 0.5, "text", {"0": {}}, None, [], [5], [None]])
def test_choices_of_another_form_are_a_failure(choices: Any) -> None:
    got = read(SimpleNamespace(choices=choices, usage=None), number=1, stop=[], key=KEY)
    assert isinstance(got, Failure) and got.kind == "garbled"


def sampled(model: ModelServer, folder: Path, *, patience: float = 5.0, num: int = 2) -> list[dict[str, Any]]:
    place = Endpoint(model.url, STARTING_MODEL, VARIABLE, concurrency=1, timeout=LONGEST, max_retries=2)
    lines = ResumableLines(folder / "out")
    complete(
        [place],
        [Asked(f"p{n}", f"prompt {n}", num_tokens=3) for n in range(num)],
        RequestSettings(num_generations=2, temperature=0.7, top_p=1.0, max_new_tokens=TOKENS, seed=0),
        lines=lines,
        patience=patience,
        advice="",
        num_tokens=len,
    )
    return list(lines.rows())


@pytest.mark.parametrize(("reason", "finished", "cut", "known"), ENDS, ids=lambda value: repr(value)[:20])
def test_the_end_of_a_completion_is_read_in_every_servers_words(
    reason: Any,
    finished: bool,
    cut: bool,
    known: bool,
    model: ModelServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model.choose = lambda asked: [("text", reason)] * asked["n"]
    if known and not finished and not cut:
        with pytest.raises(UserError, match="without a completion"):  # of a filter, or a call of a tool
            sampled(model, tmp_path, patience=0.1)
        return
    assert {row["finished"] for row in sampled(model, tmp_path)} == {finished}
    assert capsys.readouterr().err.count("such replies count as unfinished") == (0 if known else 1)


@pytest.mark.parametrize("name", ["without end", "without end, chunked", "gzip", "an error without end"])
def test_a_flood_while_sampling_is_stopped_and_asked_for_again(
    name: str, model: ModelServer, tmp_path: Path
) -> None:
    model.failures = [FLOODS[name]()]
    assert len(sampled(model, tmp_path)) == 4


def test_a_list_of_models_without_end_is_let_go(
    model: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelHandler, "do_GET", endless(b'{"data": ["'))
    assert len(sampled(model, tmp_path)) == 4


@pytest.mark.parametrize(
    "listed", ["null", "[]", '{"data": 5}', '{"data": [5, null, {}]}', '{"data": [{"id": 7}]}']
)
def test_a_list_of_models_of_another_form_is_let_go(
    listed: str, model: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelHandler, "do_GET", sends(listed.encode()))
    assert len(sampled(model, tmp_path)) == 4


@pytest.mark.parametrize("header", ["²", "soon", "9" * 400])
def test_a_throttling_server_is_waited_for_within_the_patience(
    header: str, model: ModelServer, tmp_path: Path
) -> None:
    model.failures = [busy(header)]
    assert len(sampled(model, tmp_path, patience=0.2)) == 4


def test_a_server_that_throttles_for_ever_is_said_with_what_it_asks(
    model: ModelServer, tmp_path: Path
) -> None:
    model.failures = [busy("3600")] * 100
    with pytest.raises(UserError, match=r"slow down; it asks to wait 3600 s, and at most 0 s are waited"):
        sampled(model, tmp_path, patience=0.1)


ROWS: list[Any] = [{}, {"prompt_id": "p0"}, {"prompt_id": "p0", "index": "0", "text": "t"}]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: json.dumps(row)[:30])
def test_kept_completions_of_another_form_are_refused_by_their_file(
    row: Any, model: ModelServer, tmp_path: Path
) -> None:
    ResumableLines(tmp_path / "out").append([row])
    with pytest.raises(UserError, match=r"out: completion 1 of those that an earlier run kept has no"):
        sampled(model, tmp_path)
