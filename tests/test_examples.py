"""The examples run on the laboratory's model, are short, and do what they say."""

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny_run import LAB

EXAMPLES = Path(__file__).parent.parent / "examples"
PROMPT = "Problem: Tom has {n} pens. He buys 3 pens. He sells 5 pens. How many pens now?\n"
PAIRS = [
    {
        "prompt": PROMPT.format(n=n),
        "chosen": f"First {n} + 3 = {n + 3}. Then {n + 3} - 5 = {n - 2}. The answer is {n - 2}.",
        "rejected": f"First {n} - 3 = {n - 3}. Then {n - 3} - 5 = {n - 8}. The answer is {n - 8}.",
    }
    for n in range(10, 18)
]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that runs an example as a script in this process and returns its output."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_has_less_than_100_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 100


def test_by_hand_the_method_aligns_the_model(printed: Callable[..., str]) -> None:
    before, after = map(float, re.findall(r"accuracy \w+: ([\d.]+)", printed("allo_by_hand.py")))
    assert after > before + 0.15


TRLS = {
    "from allo import ImproveTrainer": "from trl import DPOTrainer",
    "    trainer = ImproveTrainer(": "    trainer = DPOTrainer(",
}
IN_FULL = {"    trainer = ImproveTrainer(": "    trainer = ImproveTrainer(mask=1.0, keep=1.0,"}


def run_of(changes: dict[str, str], folder: Path) -> Any:
    """Return the trainer of the script from TRL after its run, with these lines changed."""
    lines = (EXAMPLES / "from_dpo_trainer.py").read_text(encoding="utf-8").split("\n")
    assert all(lines.count(line) == 1 for line in changes)
    names: dict[str, Any] = {"__name__": "script"}
    exec("\n".join(changes.get(line, line) for line in lines), names)
    folder.mkdir()
    rows = "".join(json.dumps(pair) + "\n" for pair in PAIRS)
    (folder / "pairs.jsonl").write_text(rows, encoding="utf-8")
    return names["main"](str(LAB), str(folder / "pairs.jsonl"), str(folder / "out"))


# TRL 1.16 reads and sets names that transformers 5.23 has deprecated.
@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
@pytest.mark.invariant(
    "A script of TRL's DPOTrainer runs with two lines changed, and in full has TRL's losses."
)
def test_a_script_of_trl_has_two_lines_changed_and_in_full_the_same_losses(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is the oracle; install the extra `trl`")
    theirs, ours = run_of(TRLS, tmp_path / "trl"), run_of(IN_FULL, tmp_path / "full")
    steps, expected = ([row for row in each.state.log_history if "loss" in row] for each in (ours, theirs))
    assert len(steps) == len(expected) == 4
    assert abs(expected[0]["loss"] - expected[-1]["loss"]) > 1e-3  # it learnt something to compare
    for step, other in zip(steps, expected, strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logits/rejected", "entropy"):
            assert step[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    held_out = [
        [row["eval_first_loss"] for row in each.state.log_history if "eval_first_loss" in row]
        for each in (ours, theirs)
    ]
    assert held_out[0] == pytest.approx(held_out[1], abs=1e-4) and len(held_out[0]) == 2


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")
def test_as_it_stands_the_script_changes_a_located_tenth_alone(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trl = pytest.importorskip("trl", reason="the script takes its arguments; install the extra `trl`")
    assert trl.DPOConfig
    trainer = run_of({}, tmp_path / "run")
    assert trainer.state.global_step == 4
    assert trainer.mask.density == pytest.approx(0.1, abs=1e-5)
    saved = tmp_path / "run" / "out" / "model" / "model.safetensors"
    before, after = load_file(LAB / "model.safetensors"), load_file(saved)
    changed = {name: set((before[name] != after[name]).flatten().nonzero()[:, 0].tolist()) for name in before}
    assert sum(map(len, changed.values())) > trainer.mask.num_selected / 2
    for name, places in changed.items():
        assert places <= set(trainer.mask.indices[name].tolist() if name in trainer.mask.indices else ())


def test_the_own_scorer_doubts_arithmetic_alone(printed: Callable[..., str]) -> None:
    rows: list[Any] = [line.split() for line in printed("own_scorer.py").splitlines()]
    doubted = {row[0] for row in rows if float(row[1]) < 1.0}
    assert doubted
    assert all(set(token) <= set("0123456789+-*") for token in doubted)


def test_the_own_loss_stops_at_its_margin(printed: Callable[..., str], tmp_path: Path) -> None:
    steps = re.findall(r"margin (-?[\d.]+), loss ([\d.]+)", printed("own_loss.py", str(tmp_path)))
    assert len(steps) == 12
    assert float(steps[0][1]) == 2.0
    for margin, loss in steps:
        assert float(loss) == pytest.approx(max(0.0, 2.0 - float(margin)), abs=0.011)
    assert float(steps[-1][1]) == 0.0
