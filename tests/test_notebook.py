"""The notebook runs in a kernel, and is kept without outputs."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from pages import ROOT

PATH = ROOT / "examples" / "notebook.ipynb"


def test_it_is_kept_without_outputs() -> None:
    cells = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
# The kernel is another process, and these are of its client's sockets and event loop.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    notebook = nbformat.read(PATH, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    text = json.dumps(outputs)
    assert "Held-out pairs" in text and "Diagnosis" in text
    assert "forget" in text and "rewards/accuracies" in text
    assert (tmp_path / "runs/notebook/report.html").is_file()
