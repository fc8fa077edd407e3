"""A server that the run itself starts for its samples: it ends with them, with an error, and with a kill."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_sample_backends import entry, sampled

from allo.errors import UserError
from allo.recipe.sample import Sample
from allo.sampling.own_server import server_command, serving
from server import LONGEST, without_proxy

STAND_IN = Path(__file__).parents[1] / "stand_in.py"


def command(folder: Path, how: str = "well") -> str:
    return f"{sys.executable} {STAND_IN} {{model}} {{name}} {{port}} {how} {folder / 'pids'}"


def is_there(number: int) -> bool:
    """Return whether a process lives; one that nobody has waited for does not."""
    try:
        return ") Z " not in Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False


def test_a_run_starts_a_server_samples_and_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_proxy(monkeypatch, "OPENAI_API_KEY")
    run = sampled(tmp_path, "sample.backend=openai", f"sample.serve={command(tmp_path)}")
    assert entry(run)["counts"]["completions"] == entry(run)["counts"]["finished"] > 0
    (number,) = map(int, (tmp_path / "pids").read_text().split())
    assert not is_there(number)


def test_a_server_ends_with_an_error_and_with_a_kill_of_its_process(tmp_path: Path) -> None:
    start = {"model": tmp_path, "name": "start", "log": tmp_path / "log"}
    with pytest.raises(KeyboardInterrupt), serving(command(tmp_path), **start):
        raise KeyboardInterrupt
    program = (
        "import os, pathlib, signal; from allo.sampling.own_server import serving\n"
        f"with serving({command(tmp_path)!r}, model=pathlib.Path('m'), name='start', log=pathlib.Path({str(tmp_path / 'log')!r})):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    numbers = [int(line) for line in (tmp_path / "pids").read_text().split()]
    end = time.monotonic() + LONGEST
    while any(map(is_there, numbers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(numbers) == 2 and not any(map(is_there, numbers))


@pytest.mark.parametrize(
    ("serve", "said"),
    [
        ("no-such-server {model} {port}", "no-such-server is not installed: .*sample.servers"),
        ("python serve.py {port}", r"lacks \{model\}"),
        ("python serve.py {model}", r"lacks \{port\}"),
        ("python {modle} {model} {port}", r"no command .*modle.* its places are"),
        ("python '{model} {port}", "no command"),
    ],
)
def test_a_command_that_cannot_start_is_refused_before_the_first_stage(
    tmp_path: Path, serve: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        sampled(tmp_path, "sample.backend=openai", f"sample.serve={serve}")
    assert not list(tmp_path.rglob("00-sft"))


def test_a_server_that_ends_before_it_answers_is_quoted(tmp_path: Path) -> None:
    start = {"model": tmp_path, "name": "start", "log": tmp_path / "log"}
    said = r"ended with 1 before it answered.*\n  no such GPU"
    with pytest.raises(UserError, match=said), serving(command(tmp_path, "never"), **start):
        pass


def test_vllm_gets_the_model_its_name_and_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    words = server_command(True, model="a folder", name="start", port=8000)
    assert words[:3] == ["vllm", "serve", "a folder"]
    assert words[3:] == ["--served-model-name", "start", "--port", "8000", "--tensor-parallel-size", "4"]


def test_a_recipe_has_servers_or_starts_one() -> None:
    with pytest.raises(ValueError, match="remove servers, or serve"):
        Sample(backend="openai", serve=True, model="m", servers={"base_urls": ["http://localhost:1/v1"]})
    with pytest.raises(ValueError, match="remove serve"):
        Sample(serve=True)
