"""`allo check` loads no more than its checks need: nothing heavy for a bad row, no Trainer for numbers."""

import subprocess
import sys
from pathlib import Path

from tiny_run import arguments

CODE = """
import sys
from allo.cli import main
try:
    main()
except SystemExit as end:
    print("status", end.code or 0)
print("loaded", *sorted(sys.modules))
"""


def checked(out: Path, *more: str) -> tuple[str, set[str]]:
    """Return all printed lines except the last, and the modules that are loaded by then."""
    run = subprocess.run(
        [sys.executable, "-c", CODE, *arguments("check", out, *more)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    *said, loaded = run.stdout.splitlines()
    return "\n".join([*said, run.stderr]), set(loaded.split())


def test_a_bad_row_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "2+2?", "answer": "4"}\n{"answer": "4"}\n')
    said, loaded = checked(tmp_path, f"data={{file: {file}}}")
    assert "status 2" in said and "rows.jsonl:2: lacks `prompt`" in said
    assert not {"torch", "transformers", "scipy"} & loaded


def test_numbers_of_training_are_checked_without_a_trainer(tmp_path: Path) -> None:
    steps = '{"learning_rate": 1e-4, "per_device_train_batch_size": 8}'
    blocks = [f"{block}.training={steps}" for block in ("sft", "locate", "forget", "improve")]
    said, loaded = checked(tmp_path, *blocks)
    assert "status 0" in said
    assert not {"transformers.trainer", "transformers.training_args", "datasets", "peft", "trl"} & loaded
