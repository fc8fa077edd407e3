"""The wheel and the source distribution: what they hold, and that the command works from the wheel alone."""

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from pages import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both distributions."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", out], cwd=ROOT, check=True)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    ours = {
        f"allo/{path.relative_to(ROOT / 'src/allo')}"
        for path in (ROOT / "src/allo").rglob("*")
        if path.is_file()
    }
    ours = {name for name in ours if "__pycache__" not in name}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == ours


def test_the_source_distribution_has_what_git_has(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()} - {"PKG-INFO"}
    if not (ROOT / ".git").exists():
        pytest.skip("no .git here: nothing says which files the project has")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = set(listed.stdout.splitlines())
    assert tracked
    assert {name for name in tracked - names if (ROOT / name).exists()} == set()
    assert {name.split("/")[0] for name in names} <= {name.split("/")[0] for name in tracked}


def test_the_readme_on_an_index_has_no_link_that_leads_nowhere(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    read = email.message_from_bytes(wheel.read(name))
    assert read["Description-Content-Type"] == "text/markdown"
    text = str(read.get_payload())
    assert "## Three ways in" in text and "from your rows to a model" in text
    assert [each for each in re.findall(r"\]\(([^)]*)\)", text) if not each.startswith("https://")] == []
    assert "![" not in text and "<!-- plot" not in text


def test_the_command_works_from_the_wheel_alone(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "installed")

    def run(*words: str) -> str:
        # Libraries are those of this process; the package is the wheel's.
        plain = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "NO_COLOR": "1", "COLUMNS": "200"}
        done = subprocess.run(
            [sys.executable, "-c", "import allo.cli; allo.cli.main()", *words],
            cwd=tmp_path, env=plain, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert (
        run("--version")
        .strip()
        .endswith(re.findall(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text())[0])
    )
    run("init", "problems", "--model", "installed/allo/lab", "--out", "mine.yaml")
    settings = [
        "chat=false",
        "max_length=128",
        "data={task: planted_flaws, limit: 4}",
        "sample.max_new_tokens=40",
    ]
    page = run("check", "mine.yaml", "--plain", *(word for each in settings for word in ("--set", each)))
    assert "628,224" in page
