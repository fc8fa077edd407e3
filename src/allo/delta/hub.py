"""Deltas in repositories of the Hugging Face hub, named in the hub's own way: hf://OWNER/NAME[@REVISION][/FILE].

The hub's client finds the token (HF_TOKEN or its login) and the endpoint (HF_ENDPOINT). This module neither asks for,
shows nor stores them.
"""

import re
from collections.abc import Iterator, Mapping
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
    """Return the local file of a delta: `place` itself, or a download in the hub's cache if it begins with hf://.

    Without a file's name it is `delta.safetensors`. Raises UserError for a malformed place and if the hub does not
    provide the file. Also if the hub's name for it would make the client write outside its cache. `read_delta` checks
    the content.
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
    """Upload a valid delta as `delta.safetensors` to the model repository `repo` and return its hf:// place.

    The place includes the commit, so it always refers to these bytes. A missing repository is created, private if
    requested. Raises UserError if the file is not a delta or the hub refuses.
    """
    _check_repo(repo)
    read_delta(delta)
    commit = push_files({FILE: Path(delta)}, repo, private=private, message="Upload a delta of allo")
    return f"{SCHEME}{repo}@{commit}/{FILE}"


def push_files(files: Mapping[str, Path], repo: str, *, private: bool, message: str) -> str:
    """Upload files under their names in one commit to the model repository `repo`, and return the commit.

    A missing repository is created, private if requested. Raises UserError if the hub refuses.
    """
    _check_repo(repo)
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _speaking_of(repo):
        api.create_repo(repo, private=private or None, exist_ok=True)
        try:
            adding = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
            commit = api.create_commit(repo, adding, commit_message=message)
        except (KeyError, TypeError, AttributeError) as error:  # the client does not check the answer
            raise _no_commit(repo) from error
    if not isinstance(commit.oid, str) or not _PLAIN.fullmatch(commit.oid):
        raise _no_commit(repo)
    return commit.oid


def _check_repo(repo: str) -> None:
    if not _REPO.fullmatch(repo):
        raise UserError(f"{repo!r} is no repository of the hub: give OWNER/NAME")


def _no_commit(repo: str) -> UserError:
    return UserError(
        f"{repo}: the hub accepted the upload but named no commit, so the file may be missing: try `allo delta info "
        f"{SCHEME}{repo}`, push again if that fails, and check HF_ENDPOINT."
    )


def _check_names(place: str, repo: str, file: str, revision: str | None) -> None:
    """Raise UserError if the hub gives an unsafe file name: its client would write to BLOBS/<ETag> unchecked.

    If the hub cannot be reached, nothing is refused here: the file may be in the cache.
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
                f"{place}: the hub calls the file {name[:80]!r}, which is not a file name: it is not downloaded."
            )


@contextmanager
def _speaking_of(place: str) -> Iterator[None]:
    """Turn errors of the hub or the connection into UserErrors."""
    # This version of the hub may use any HTTP client, whose errors are no OSErrors.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise UserError(f"{place}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the cause and the remedy, with only an answer's status: its text and address may hold signatures."""
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
            "the hub has no such repository, or you have no access; check its name, and log in (`hf auth login`) or "
            "set HF_TOKEN to a token that has access"
        )
    if status is not None:
        return f"the hub answered with status {status}; try again later"
    return f"the hub cannot be reached ({type(error).__name__}); check the connection, HF_ENDPOINT and HF_HUB_OFFLINE"
