"""A delta goes to a repository of the hub and comes back, over HTTP, and the token is nowhere but in its header.

The hub here is a server on this machine that speaks the part of the hub's protocol that huggingface_hub uses.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from allo import delta
from allo.cli.push import push_run
from allo.delta.hub import FILE
from allo.errors import UserError
from commands import run_allo

# huggingface_hub's own upload uses its HTTP client in this way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

TOKEN = "hf_" + "aSecretThatNobodySees"
REPO = "someone/tuned"


@dataclass
class Hub:
    """Repositories as commits (newest last), each a mapping from file name to content."""

    url: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    # Every request: its line, the headers with the token aside, and whether the token was right.
    requests: list[str] = field(default_factory=list)
    broken: int | None = None

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(repr((repo, len(self.commits[repo]), files)).encode()).hexdigest()
        latest = list(self.commits[repo].values())[-1] if self.commits[repo] else {}
        self.commits[repo][oid] = latest | files
        return oid

    def find(self, repo: str, revision: str) -> str | None:
        """The commit of a revision: itself, or of the one branch."""
        commits = list(self.commits.get(repo, {}))
        return revision if revision in commits else commits[-1] if commits and revision == "main" else None


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Keep the server's own log out of the tests' output."""

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content_Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode(), Content_Type="application/json")

    def admitted(self) -> bool:
        """Read the body, note the request; answer at once where the token is wrong or the hub is broken."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        others = [f"{key}: {value}" for key, value in self.headers.items() if key.lower() != "authorization"]
        self.hub.requests.append("\n".join([f"{self.command} {self.path}", *others, repr(self.body)]))
        if self.hub.broken is not None:
            self.reply(self.hub.broken, X_Error_Message="signed with " + TOKEN)
        elif not allowed:
            self.reply(401, X_Error_Message="Invalid username or password.")
        return allowed and self.hub.broken is None

    def do_POST(self) -> None:
        if not self.admitted():
            return
        if self.path == "/api/repos/create":
            asked = json.loads(self.body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in self.hub.commits:
                self.reply(
                    409,
                    json.dumps({"url": f"{self.hub.url}/{repo}"}).encode(),
                    Content_Type="application/json",
                )
                return
            self.hub.commits[repo] = {}
            if asked.get("visibility") == "private":
                self.hub.private.add(repo)
            self.answer({"url": f"{self.hub.url}/{repo}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = json.loads(self.body)["files"]
            mode = {"uploadMode": "lfs", "shouldIgnore": False}
            self.answer({"files": [{"path": file["path"], **mode} for file in files]})
        elif match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
            wanted = json.loads(self.body)["objects"]
            blobs = f"{self.hub.url}/blobs"
            places = [{"upload": {"href": f"{blobs}/{one['oid']}"}} for one in wanted]
            found = [one | {"actions": place} for one, place in zip(wanted, places, strict=True)]
            self.answer({"transfer": "basic", "objects": found})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            lines = [json.loads(line) for line in self.body.splitlines()]
            files = {
                line["value"]["path"]: self.hub.blobs[line["value"]["oid"]]
                for line in lines
                if line["key"] == "lfsFile"
            }
            oid = self.hub.commit(match[1], files)
            self.answer(
                {"commitUrl": f"{self.hub.url}/{match[1]}/commit/{oid}", "commitOid": oid, "success": True}
            )
        else:
            self.reply(404)

    def do_PUT(self) -> None:
        """Storage: addresses there are signed and need no token."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.blobs[oid] = content
        self.reply(200)

    def do_GET(self) -> None:
        if not self.admitted():
            return
        match = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", self.path)
        if match is None or match[1] not in self.hub.commits:
            self.reply(404, X_Error_Code="RepoNotFound")
            return
        oid = self.hub.find(match[1], match[2])
        if oid is None:
            self.reply(404, X_Error_Code="RevisionNotFound")
            return
        content = self.hub.commits[match[1]][oid].get(match[3])
        if content is None:
            self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
            return
        self.reply(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=oid)

    def do_HEAD(self) -> None:
        self.do_GET()


def talk_to(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub reads its environment once, when it is imported, perhaps by an earlier test."""
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between attempts


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub, and every process started here, talks to instead of the one on the net."""
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": state}))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    talk_to(state.url, tmp_path / "hub", monkeypatch)
    for name, text in {
        "HF_ENDPOINT": state.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }.items():
        monkeypatch.setenv(name, text)
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with `base`, `tuned` and their delta, the working folder of commands."""
    base = {"a.weight": torch.arange(12.0).reshape(3, 4), "b.weight": torch.zeros(5, dtype=torch.bfloat16)}
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    tuned["a.weight"][1, 2], tuned["b.weight"][4] = 0.25, -3
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    delta.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "mine.safetensors")
    return tmp_path


def test_what_is_pushed_comes_back_bit_for_bit(hub: Hub, made: Path) -> None:
    place = delta.push(made / "mine.safetensors", REPO)
    (oid,) = hub.commits[REPO]
    assert place == f"hf://{REPO}@{oid}/{FILE}"
    for named in (place, f"hf://{REPO}", f"hf://{REPO}@main", f"hf://{REPO}/{FILE}"):
        assert delta.fetch(named).read_bytes() == (made / "mine.safetensors").read_bytes()


def test_a_place_names_its_revision_and_its_file(hub: Hub, made: Path) -> None:
    first = delta.push(made / "mine.safetensors", REPO)
    hub.commit(REPO, {FILE: b"newer", "runs/7/other.safetensors": b"other"})
    assert delta.fetch(first).read_bytes() == (made / "mine.safetensors").read_bytes()
    assert delta.fetch(f"hf://{REPO}").read_bytes() == b"newer"
    assert delta.fetch(f"hf://{REPO}@main/runs/7/other.safetensors").read_bytes() == b"other"


@pytest.mark.parametrize(
    ("written", "revision", "path"),
    [
        ("@refs%2Fpr%2F1/x", "refs%2Fpr%2F1", "x"),
        ("@refs/pr/1/x", "refs%2Fpr%2F1", "x"),
        ("@refs/pr/1", "refs%2Fpr%2F1", FILE),
        ("@v1.0/a/b", "v1.0", "a/b"),
    ],
)
def test_revisions_are_written_as_the_hub_writes_them(
    hub: Hub, made: Path, written: str, revision: str, path: str
) -> None:
    delta.push(made / "mine.safetensors", REPO)
    with pytest.raises(UserError, match="no such revision"):
        delta.fetch(f"hf://{REPO}{written}")
    assert f" /{REPO}/resolve/{revision}/{path}\n" in hub.requests[-1]


def test_pushing_again_makes_no_second_repository_and_keeps_the_first_commit(hub: Hub, made: Path) -> None:
    first = delta.push(made / "mine.safetensors", REPO, private=True)
    other = delta.read_delta(made / "mine.safetensors")
    delta.write_delta(made / "other.safetensors", **(vars(other) | {"metadata": {"made": "again"}}))
    second = delta.push(made / "other.safetensors", REPO, private=True)
    assert hub.private == {REPO} and len(hub.commits[REPO]) == 2
    for place, name in ((first, "mine"), (second, "other")):
        assert delta.fetch(place).read_bytes() == (made / f"{name}.safetensors").read_bytes()


def test_a_repository_is_private_only_where_asked(hub: Hub, made: Path) -> None:
    delta.push(made / "mine.safetensors", REPO)
    assert hub.private == set()


def test_no_file_but_a_delta_is_pushed(hub: Hub, made: Path) -> None:
    with pytest.raises(UserError, match="not one of allo's"):
        delta.push(made / "base" / "model.safetensors", REPO)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("hf://someone", "OWNER/NAME"),
        ("hf://someone/tuned/", "OWNER/NAME"),
        ("hf://someone/tuned@", "OWNER/NAME"),
        ("hf://someone/absent", "no such repository.*HF_TOKEN"),
        ("hf://someone/tuned@absent", "no such revision"),
        ("hf://someone/tuned/absent.safetensors", "no such file"),
    ],
)
def test_a_place_that_the_hub_does_not_have_is_refused(
    hub: Hub, made: Path, place: str, message: str
) -> None:
    delta.push(made / "mine.safetensors", REPO)
    with pytest.raises(UserError, match=rf"^{place}: .*{message}"):
        delta.fetch(place)


@pytest.mark.parametrize("repo", ["tuned", "a/b/c", "https://example.org/a/b", "../tuned"])
def test_a_repository_that_can_be_none_is_refused_without_a_request(hub: Hub, made: Path, repo: str) -> None:
    with pytest.raises(UserError, match="OWNER/NAME"):
        delta.push(made / "mine.safetensors", repo)
    assert hub.requests == []


def test_a_wrong_token_is_refused_and_not_repeated(
    hub: Hub, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "another")
    with pytest.raises(UserError, match=r"log in .* or set HF_TOKEN") as refused:
        delta.push(made / "mine.safetensors", REPO)
    assert "another" not in str(refused.value)
    with pytest.raises(UserError, match=r"log in .* or set HF_TOKEN"):
        delta.fetch(f"hf://{REPO}")


def test_of_a_broken_hub_only_the_status_is_told(hub: Hub, made: Path) -> None:
    hub.broken = 418
    with pytest.raises(UserError, match="status 418") as refused:
        delta.push(made / "mine.safetensors", REPO)
    assert TOKEN not in str(refused.value)


def test_a_hub_out_of_reach_is_said_to_be(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk_to("http://127.0.0.1:1", tmp_path / "hub", monkeypatch)
    with pytest.raises(UserError, match=r"cannot be reached .* HF_ENDPOINT"):
        delta.push(made / "mine.safetensors", REPO)
    with pytest.raises(UserError, match=r"cannot be reached .* HF_ENDPOINT"):
        delta.fetch(f"hf://{REPO}")


@pytest.fixture
def allo(
    made: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Return a function that runs `allo` in the folder of deltas; it returns standard output and standard error."""
    monkeypatch.chdir(made)

    def run(*arguments: str) -> tuple[str, str]:
        status = run_allo(*arguments)
        said = capfd.readouterr()
        assert status == 0, said.err
        return said.out, said.err

    return run


@pytest.mark.invariant("A token is written nowhere.")
def test_the_commands_push_and_apply_over_http_and_the_token_is_written_nowhere(
    hub: Hub, made: Path, allo: Callable[..., tuple[str, str]]
) -> None:
    pushed = allo("delta", "push", "mine.safetensors", REPO)
    applied = allo("delta", "apply", "base", pushed[0].strip(), "out")
    tuned, out = (load_file(made / name / "model.safetensors") for name in ("tuned", "out"))
    assert tuned.keys() == out.keys()
    assert all(torch.equal(tuned[name], out[name]) for name in tuned)

    written = [file.read_bytes() for file in made.rglob("*") if file.is_file()]
    seen = [*pushed, *applied, *hub.requests, *map(str, hub.blobs)]
    secret = TOKEN.encode()
    assert len(hub.requests) > 5 and os.environ["HF_TOKEN"] == TOKEN
    for content in [*written, *(text.encode() for text in seen)]:
        assert secret not in content and base64.b64encode(secret) not in content


@pytest.fixture
def finished(made: Path) -> Path:
    """Write those files of a finished run that are pushed."""
    stage = made / "run" / "07-improve"
    shutil.copytree(made / "tuned", stage / "model")
    (stage / "model" / "config.json").write_text("{}")
    (stage / "model" / "README.md").write_text("the base's card")
    shutil.copyfile(made / "mine.safetensors", stage / FILE)
    (made / "run" / "model-card.md").write_text("# Mine")
    return made / "run"


@pytest.mark.parametrize("is_delta", [False, True])
def test_a_run_is_pushed_with_its_card_in_one_commit(
    hub: Hub, finished: Path, allo: Callable[..., tuple[str, str]], is_delta: bool
) -> None:
    said, _ = allo("push", "run", REPO, *(["--delta"] if is_delta else []))
    ((oid, files),) = hub.commits[REPO].items()
    assert said.startswith(f"{REPO}@{oid}: ")
    assert files.pop("README.md") == b"# Mine"  # not the base's
    stage = finished / "07-improve"
    if is_delta:
        assert files == {FILE: (stage / FILE).read_bytes()}
        assert delta.fetch(f"hf://{REPO}").read_bytes() == files[FILE]
    else:
        names = {"model.safetensors", "config.json"}
        assert files == {name: (stage / "model" / name).read_bytes() for name in names}


@pytest.mark.parametrize("missing", ["model-card.md", "07-improve/model"])
def test_an_unfinished_run_is_not_pushed(hub: Hub, finished: Path, missing: str) -> None:
    gone = finished / missing
    gone.rename(finished / "aside")
    with pytest.raises(UserError, match=rf"{missing}: not there. Give the folder of a finished run"):
        push_run(finished, REPO)
    assert hub.requests == []
