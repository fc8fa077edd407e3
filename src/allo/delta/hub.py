"""Deltas in repositories of the Hugging Face hub, named as the hub names files: hf://OWNER/NAME[@REVISION][/FILE].

The token is the hub's own (HF_TOKEN, or its login) and the endpoint HF_ENDPOINT: neither is asked for, shown or
written here.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from allo.delta.file import read_delta
from allo.errors import UserError

FILE = "delta.safetensors"
SCHEME = "hf://"
_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_PLACE = re.compile(
    rf"{SCHEME}(?P<repo>{_REPO.pattern})"
    r"(@(?P<revision>refs/(pr|convert)/[^/]+|[^/]+))?"
    r"(/(?P<file>[^/].*))?"
)


def fetch(place: str | Path) -> Path:
    """The local file of a delta: `place` itself, or downloaded into the hub's cache where it begins with hf://.

    Without a file's name it is `delta.safetensors`. UserError for a malformed place, and when the hub does not
    give the file.
    """
    if isinstance(place, Path) or not place.startswith(SCHEME):
        return Path(place)
    found = _PLACE.fullmatch(place)
    if found is None:
        raise UserError(f"{place}: write a delta on the hub as {SCHEME}OWNER/NAME[@REVISION][/FILE]")
    from huggingface_hub import HfApi

    revision = unquote(found["revision"]) if found["revision"] else None
    with _speaking_of(place):
        return Path(HfApi().hf_hub_download(found["repo"], found["file"] or FILE, revision=revision))


def push(delta: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload a valid delta as `delta.safetensors` of the model repository `repo`; returns its hf:// place.

    The place has the commit, so it names these bytes for ever. A repository that is not there is made, private
    where asked. UserError when the file is no delta, or the hub refuses.
    """
    if not _REPO.fullmatch(repo):
        raise UserError(f"{repo!r} is no repository of the hub: give OWNER/NAME")
    read_delta(delta)
    from huggingface_hub import HfApi

    api = HfApi()
    with _speaking_of(repo):
        api.create_repo(repo, private=private or None, exist_ok=True)
        commit = api.upload_file(
            path_or_fileobj=str(delta),
            path_in_repo=FILE,
            repo_id=repo,
            commit_message="Upload a delta of allo",
        )
    return f"{SCHEME}{repo}@{commit.oid}/{FILE}"


@contextmanager
def _speaking_of(place: str) -> Iterator[None]:
    """What the hub, or the way to it, refuses becomes a UserError."""
    # Whichever HTTP client this version of the hub stands on: its errors are no OSErrors.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise UserError(f"{place}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What to do about it. An answer's text and address may hold signatures: only its status is passed on."""
    from huggingface_hub import errors

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return _reason(error.__cause__)  # one file of an upload
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision; give a branch, a tag or a commit"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"the repository has no such file; name it, as in {SCHEME}OWNER/NAME/{FILE}"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return (
            "the hub has no such repository, or does not let you in; check its name,"
            " and log in (`hf auth login`) or set HF_TOKEN to a token with the right to it"
        )
    if status is not None:
        return f"the hub answered with status {status}; try again later"
    return f"the hub cannot be reached ({type(error).__name__}); check the connection, HF_ENDPOINT and HF_HUB_OFFLINE"
