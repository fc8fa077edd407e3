"""The demo: the bundled laboratory model aligned twice on the same pairs, by plain DPO and by ALLO."""

from importlib.resources import as_file, files
from pathlib import Path

from rich.markdown import Markdown

from allo.console import console, say
from allo.pipeline import run_all
from allo.recipe import load_recipe


def run_demo(out: Path) -> Path:
    """Run both recipes below `out`, print their table, and return the path of the report on both."""
    with as_file(files("allo") / "lab") as lab:
        place = [f"out={out}", f"model={lab}"]
        allo = load_recipe(lab / "allo.yaml", place)
        sampled = run_all(allo, until="pair")
        baseline = run_all(load_recipe(lab / "dpo.yaml", [*place, f"data.pairs={sampled.pairs}"]))
        aligned = run_all(allo)
    from allo.stages.report import write_report

    html, markdown = write_report([baseline.path, aligned.path], out, title="Demo: plain DPO and ALLO")
    console.print(Markdown(markdown.read_text(encoding="utf-8"))) if console.is_terminal else say(
        markdown.read_text(encoding="utf-8")
    )
    return html
