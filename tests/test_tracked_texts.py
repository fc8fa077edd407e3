"""Texts under version control: no path of one machine, no unfinished work."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
# Paths of one machine and hosts of package registries: the project runs anywhere.
ONE_MACHINE = re.compile(
    r"(?<![\w.~-])/(?:work|root|home|opt)/|\b(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs\.org)\b"
)


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Every text file that git tracks or would track, and its content."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""  # deleted, and not yet so in the index
        if b"\0" not in content:
            yield name, content.decode("utf-8")


def test_nothing_tracked_names_one_machine_or_a_registry() -> None:
    hits = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if ONE_MACHINE.search(line)
    ]
    assert hits == []


def test_a_path_of_one_machine_is_found() -> None:
    assert ONE_MACHINE.search("see " + "/".join(["", "home", "me", "x"]))
    assert ONE_MACHINE.search("https://" + ".".join(["pypi", "org"]) + "/simple")
    assert not ONE_MACHINE.search("docs/work/x and ~/home/x")


def test_source_holds_no_unfinished_work() -> None:
    hits = [
        f"{name}:{number}"
        for name, text in tracked_texts()
        if name.startswith("src/")
        for number, line in enumerate(text.splitlines(), start=1)
        if UNFINISHED.search(line)
    ]
    assert hits == []
