"""The documents as a site: built with warnings as errors, so every link, anchor and docstring of the API is sound."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from pages import ROOT
from test_public import PUBLIC

CONF = runpy.run_path(str(ROOT / "docs" / "conf.py"))
FIRST = ["start", "data", "settings", "report", "method"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as by `make site`."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", "-d", out / "read"]
    done = subprocess.run(
        [*command, ".", out / "html"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_five_pages_come_first_and_all_others_follow(site: Path) -> None:
    front = (site / "README.html").read_text(encoding="utf-8")
    found = re.findall(
        r'<li class="toctree-l1[^"]*"><a class="reference internal" href="([^"#]+)\.html', front
    )
    assert found[:5] == [f"docs/{name}" for name in FIRST]
    below = {path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.glob("docs/*.md")}
    assert below <= set(found)
    assert (site / "docs/decisions/0001-one-flat-vector.html").is_file()


def test_the_api_describes_every_public_name(site: Path) -> None:
    text = (site / "docs/api.html").read_text(encoding="utf-8")
    named = {f"{room}.{name}" for room, names in PUBLIC.items() for name in names} - {"allo.__version__"}
    described = dict(re.findall(r'(?s)<dt class="[^"]*" id="([\w.]+)">.*?</dt>\s*<dd>(.*?)</dd>', text))
    assert {name for name in named if "<p>" not in described.get(name, "")} == set()
    assert "optimizer = torch.optim.AdamW" in re.sub("<[^>]+>", "", text)


def test_a_link_to_a_folder_leads_to_its_page() -> None:
    source = ["[a](docs/decisions) [b](recipes) [c](docs/start.md#going-on) [d](https://x.org/docs)"]
    CONF["add_navigation"](None, "ARCHITECTURE", source)
    assert source == [
        "[a](docs/decisions/README.md) [b](recipes) [c](docs/start.md#going-on) [d](https://x.org/docs)"
    ]


def test_code_and_pages_in_a_docstring_are_marked_up() -> None:
    lines = [
        "Learn (method.md 1.3).",
        "",
        "    f(x)",
        "",
        "    g(x)",
        "",
        "Then:",
        "",
        "Args:",
        "    x: a number",
    ]
    CONF["mark_up"](None, "", "", None, None, lines)
    assert lines == [
        *(
            "Learn (:doc:`method.md </docs/method>` 1.3).",
            "",
            ".. code-block:: python",
            "",
            "    f(x)",
            "",
            "    g(x)",
            "",
        ),
        *("Then:", "", "Args:", "    x: a number"),
    ]


def test_the_sections_that_docstrings_name_are_on_the_page_of_the_method() -> None:
    sections = set(re.findall(r"^#+ (\d\.\d) ", (ROOT / "docs/method.md").read_text(), re.MULTILINE))
    for path in sorted(ROOT.glob("src/allo/**/*.py")):
        named = set(re.findall(r"method\.md (\d\.\d)", path.read_text(encoding="utf-8")))
        assert named <= sections, f"{path.name}: method.md {named - sections}"
