"""The starting model's server that a run starts for its samples and stops after them (`sample.serve`)."""

import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from allo.console import note
from allo.errors import UserError

VLLM = "vllm serve {model} --served-model-name {name} --port {port} --tensor-parallel-size {gpus}"
_LAST_LINES = 15
_STOPS_IN = 30.0
_START, _POLL = 3600.0, 0.25


def server_command(serve: bool | str, *, model: str = "", name: str = "", port: int = 0) -> list[str]:
    """Return the words of `sample.serve`. Raises `UserError` if the command is not installed, or its places are wrong."""
    text = VLLM if serve is True else str(serve)
    places = {"model": model, "name": name, "port": port, "gpus": max(1, torch.cuda.device_count())}
    try:
        words = [word.format(**places) for word in shlex.split(text)]
    except (LookupError, ValueError, AttributeError) as error:
        raise UserError(
            f"sample.serve: {text!r} is no command ({error}): its places are {{model}}, {{name}}, {{port}} and {{gpus}}."
        ) from error
    if missing := [place for place in ("{model}", "{port}") if place not in text]:
        raise UserError(f"sample.serve: {text!r} lacks {' and '.join(missing)}: the run fills it in.")
    if shutil.which(words[0]) is None:
        raise UserError(
            f"sample.serve: {words[0]} is not installed: install it (pip install vllm), give another command, or start "
            "servers yourself and name them in sample.servers."
        )
    return words


@contextmanager
def serving(serve: bool | str, *, model: Path, name: str, log: Path) -> Iterator[str]:
    """Yield the address of a server of `model`, once it is healthy; it ends with the block and with this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = server_command(serve, model=str(model), name=name, port=port)
    keeper = [sys.executable, "-I", str(Path(__file__).with_name("kept_server.py")), *words]
    with log.open("wb") as out:
        process = subprocess.Popen(
            keeper, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    assert process.stdin is not None
    try:
        note("sample", f"starts {shlex.join(words)}; what it says is in {log}")
        _wait(process, f"http://127.0.0.1:{port}/health", words[0], log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.stdin.close()
        try:
            process.wait(_STOPS_IN)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(process: "subprocess.Popen[bytes]", address: str, command: str, log: Path) -> None:
    """Return once the server answers; a large model takes minutes. Raises `UserError` if it ends before."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _START
    while process.poll() is None:
        try:
            with opener.open(address, timeout=5):
                return
        except OSError as error:  # also what urllib raises
            if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                return  # it answers, and has no such page
        if time.monotonic() > end:
            raise UserError(
                f"sample.serve: {command} has not answered at {address} for {_START:.0f} s; see {log}, or start it "
                "yourself and name it in sample.servers."
            )
        time.sleep(_POLL)
    last = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    raise UserError(
        f"sample.serve: {command} ended with {process.returncode} before it answered. Its last words, in {log}:\n"
        + "\n".join(f"  {line}" for line in last)
    )
