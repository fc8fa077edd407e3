"""A hub that lies: about where a file goes, about a commit, about the bytes."""

from pathlib import Path

import pytest
import test_delta_hub as honest
from test_delta_hub import REPO, Hub, hub, made

from allo import delta
from allo.delta.hub import FILE
from allo.errors import UserError

__all__ = ["hub", "made"]  # fixtures
pytestmark = honest.pytestmark


@pytest.fixture
def reply(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Headers that the hub's answers get in place of their own."""
    changed: dict[str, str] = {}
    plain = honest.Handler.reply

    def lying(self: honest.Handler, status: int, body: bytes = b"", **headers: str) -> None:
        plain(
            self, status, body, **(headers | {key: value for key, value in changed.items() if key in headers})
        )

    monkeypatch.setattr(honest.Handler, "reply", lying)
    return changed


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("ETag", '"../../../../stolen"'),
        ("ETag", '"/tmp/stolen"'),
        ("ETag", '".."'),
        ("ETag", '"a/b"'),
        ("ETag", f'"{"a" * 300}"'),
        ("X_Repo_Commit", "../../../stolen"),
    ],
)
def test_a_name_that_leads_out_of_the_cache_is_refused_before_anything_is_written(
    hub: Hub, made: Path, reply: dict[str, str], header: str, value: str
) -> None:
    delta.push(made / "mine.safetensors", REPO)
    before = files_of(made)
    reply[header] = value
    with pytest.raises(UserError, match=f"hf://{REPO}: the hub calls the file .* not a file name"):
        delta.fetch(f"hf://{REPO}")
    assert files_of(made) == before and not Path("/tmp/stolen").exists()


def test_other_bytes_than_were_pushed_are_refused_when_they_are_read(hub: Hub, made: Path) -> None:
    place = delta.push(made / "mine.safetensors", REPO)
    (oid,) = hub.commits[REPO]
    raw = bytearray(hub.commits[REPO][oid][FILE])
    raw[-1] ^= 1
    hub.commits[REPO][oid][FILE] = bytes(raw)
    found = delta.fetch(place)
    with pytest.raises(UserError, match=str(found.name)):
        delta.apply(made / "base", found, made / "out")
    assert not (made / "out").exists()


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"commitUrl": None}, {"success": True}, {"commitOid": 7}, "ok", 3]
)
def test_an_upload_that_is_answered_without_a_commit_is_told_as_that(
    hub: Hub, made: Path, answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = honest.Handler.answer

    def lying(self: honest.Handler, value: object) -> None:
        plain(self, answer if isinstance(value, dict) and "commitOid" in value else value)

    monkeypatch.setattr(honest.Handler, "answer", lying)
    with pytest.raises(
        UserError, match=f"^{REPO}: the hub accepted the upload but named no commit.*push again"
    ):
        delta.push(made / "mine.safetensors", REPO)
