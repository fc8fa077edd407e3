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
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PLAIN = re.compile(r"[\w+=:-][\w.+=:-]{0,199}")  # an ETag or a commit that is safe as a file's name
_PLACE = re.compile(
    rf"{SCHEME}(?P<repo>{_REPO.pattern})"
    r"(@(?P<revision>refs/(pr|convert)/[^/]+|[^/]+))?"
    r"(/(?P<file>[^/].*))?"
)


def fetch(place: str | Path) -> Path:
    """The local file of a delta: `place` itself, or downloaded into the hub's cache where it begins with hf://.

    Without a file's name it is `delta.safetensors`. UserError for a malformed place, when the hub does not give the
    file, and when it names the file such that the client would write it outside its cache. The content is checked
    by `read_delta`.
    """
    if isinstance(place, Path) or not place.startswith(SCHEME):
        return Path(place)
    found = _PLACE.fullmatch(place)
    if found is None:
        raise UserError(f"{place}: write a delta on the hub as {SCHEME}OWNER/NAME[@REVISION][/FILE]")
    from huggingface_hub import HfApi

    revision = unquote(found["revision"]) if found["revision"] else None
    file = found["file"] or FILE
    _check_names(place, found["repo"], file, revision)
    with _speaking_of(place):
        path = Path(HfApi().hf_hub_download(found["repo"], file, revision=revision))
    from huggingface_hub.constants import HF_HUB_CACHE

    if not path.resolve().is_relative_to(Path(HF_HUB_CACHE).resolve()):
        raise UserError(
            f"{place}: the hub had the file written to {path.resolve()}, outside of {HF_HUB_CACHE}; remove it."
        )
    return path


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
        try:
            commit = api.upload_file(
                path_or_fileobj=str(delta),
                path_in_repo=FILE,
                repo_id=repo,
                commit_message="Upload a delta of allo",
            )
        except (KeyError, TypeError, AttributeError) as error:  # its client reads the answer's keys unseen
            raise _no_commit(repo) from error
    if not isinstance(commit.oid, str) or not _PLAIN.fullmatch(commit.oid):
        raise _no_commit(repo)
    return f"{SCHEME}{repo}@{commit.oid}/{FILE}"


def _no_commit(repo: str) -> UserError:
    return UserError(
        f"{repo}: the hub took the upload but its answer names no commit, so the file may not be there: look whether "
        f"{SCHEME}{repo} gives it (`allo delta info`), and push again if not; check HF_ENDPOINT."
    )


def _check_names(place: str, repo: str, file: str, revision: str | None) -> None:
    """UserError if the hub gives a name that is no file's: its client writes to BLOBS/<ETag> without a look at it.

    A hub that cannot be asked is not refused here: the file may be in the cache.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if revision and _COMMIT.fullmatch(revision) and try_to_load_from_cache(repo, file, revision=revision):
        return
    try:
        found = get_hf_file_metadata(hf_hub_url(repo, file, revision=revision))
    except (OSError, ValueError, RuntimeError, HTTPError):
        return
    for name in (found.etag, found.commit_hash):
        if name is not None and not _PLAIN.fullmatch(name):
            raise UserError(
                f"{place}: the hub calls the file {name[:80]!r}, which is no name of a file: it is not downloaded."
            )


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
