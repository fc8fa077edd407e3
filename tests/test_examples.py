"""The examples run on the laboratory's model, are short, and do what they say."""

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


def test_the_counterpart_of_a_dpo_trainer_changes_the_masks_weights_alone(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from allo import ParamMask
    from examples import from_dpo_trainer

    trainer = from_dpo_trainer.train(LAB, PAIRS, tmp_path)
    assert trainer.state.global_step == 4
    mask = ParamMask.load(tmp_path / "mask.safetensors")
    assert mask.density == pytest.approx(0.05, abs=1e-5)
    before, after = load_file(LAB / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    changed = {name: set((before[name] != after[name]).flatten().nonzero()[:, 0].tolist()) for name in before}
    assert sum(map(len, changed.values())) > mask.num_selected / 2
    for name, places in changed.items():
        assert places <= set(mask.indices[name].tolist() if name in mask.indices else ())


def test_the_counterpart_takes_the_arguments_that_the_dpo_trainer_takes() -> None:
    """The script with TRL that the example quotes is one: each of its arguments is a parameter there."""
    import inspect

    trl = pytest.importorskip("trl")
    text = (EXAMPLES / "from_dpo_trainer.py").read_text(encoding="utf-8")
    quoted = text.split("trainer = DPOTrainer(")[1].split("    trainer.train()")[0]
    given = set(re.findall(r"^ {8}(\w+)=", quoted, re.MULTILINE))
    assert given == {"model", "ref_model", "args", "train_dataset", "processing_class"}
    assert given <= set(inspect.signature(trl.DPOTrainer).parameters)


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
