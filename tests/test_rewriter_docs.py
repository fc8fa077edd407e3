"""docs/rewriter.md is executed: its commands in order but for the teacher's, whose server is this machine's."""

import json
import re
import shlex
from pathlib import Path

import pytest

from allo import cli
from allo.rewriter.row import RewriteRow
from server import KEY, MODEL, serving
from tiny_run import LAB, tiny

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "rewriter.md").read_text(encoding="utf-8")
TEXT = dict(re.findall(r"(?s)```(json)\n(.*?)```", PAGE))
# Smaller than on the page: a handful of rows is enough to see every command work.
FEW_STEPS = ["--set", "training.max_steps=2"]
WHOLE = ("forget.density=1.0", "improve.density=1.0")  # nothing is located


def commands() -> list[list[str]]:
    """The arguments of each `allo` command of the page."""
    text = "".join(re.findall(r"(?s)```bash\n(.*?)```", PAGE)).replace("\\\n", " ")
    found = [shlex.split(line) for line in text.splitlines() if line]
    assert {words[0] for words in found} == {"allo"}
    return [words[1:] for words in found]


def allo(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["allo", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code, shlex.join(arguments)


def test_the_commands_do_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from allo.recipe import save_recipe

    monkeypatch.chdir(tmp_path)
    recipe = tiny(Path("runs"), "name=problems", "sft=null", "locate=null", "score.scorer=uniform", *WHOLE)
    Path("problems.yaml").write_text(save_recipe(recipe))
    Path("lab").symlink_to(LAB)
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(lambda content: content.split("Correct solution:\n")[1].split("\n\nDraft:")[0]) as chat:
        for arguments in commands():
            if "train" in arguments:
                arguments = [*arguments, *FEW_STEPS]
            served = {"http://localhost:8000/v1": chat.url, "some-model": MODEL}
            allo([served.get(word, word) for word in arguments], monkeypatch)
    for name in ("rewrites.jsonl", "rewrites.record.json", "taught.jsonl", "taught.jsonl.replies"):
        assert Path(name).is_file() and name in PAGE
    for name in ("rewriter.json", "metrics.jsonl", "model.safetensors"):
        assert (Path("rewriter") / name).is_file()
    assert Path("runs/problems/05-token-scores.parquet").is_file()


def test_the_row_shown_is_one_that_the_command_writes(tmp_path: Path) -> None:
    row = json.loads(TEXT["json"])
    assert RewriteRow.model_validate(row).rewrite == row["right"]
    assert list(row)[:4] == list(RewriteRow.model_fields)[:4]
