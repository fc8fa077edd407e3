"""Models of every family, sharded, are loaded, read, trained and written as whole ones are."""

import ast
import subprocess
import sys

import pytest

import sharded_families

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return the findings of each rank for every family."""
    folder = tmp_path_factory.mktemp("families")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, *launch, sharded_families.__file__, str(folder)],
        capture_output=True,
        timeout=1800,
        check=False,
    )
    found: dict[str, list[str]] = {}
    for rank in range(2):
        for line in (folder / f"said-{rank}").read_text().splitlines():
            name, text = line.split("\t")
            found.setdefault(name, []).append(ast.literal_eval(text))
    return found


@pytest.mark.invariant("A sharded model of any family has the weights, gradients and changes of a whole one.")
@pytest.mark.parametrize("name", sharded_families.ALL)
def test_a_sharded_model_is_like_a_whole_one(name: str, said: dict[str, list[str]]) -> None:
    assert said.get(name) == ["equal", "equal"]
