"""The checks before a run say which weights they have not looked at, and when that is done."""

from pathlib import Path

import pytest

import tiny
from allo.models import device, start
from allo.plan.preview import preview
from allo.plan.preview_page import lines
from allo.stages.check import check, findings
from tiny_run import LAB
from tiny_run import tiny as tiny_recipe


def judged(tmp_path: Path) -> list[str]:
    return [f"judge.reward_model={tiny.reward_model(tmp_path / 'judge')}"]


def test_large_weights_are_said_to_wait_for_every_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tmp_path, *judged(tmp_path))
    assert findings(recipe).unread == []
    monkeypatch.setattr(start, "_QUICKLY_READ", 1 << 10)
    check(recipe)
    said = " ".join(capsys.readouterr().err.split())
    shown = " ".join(" ".join(line.plain for line in lines(preview(recipe), width=1000, plain=True)).split())
    for model in (LAB, tmp_path / "judge"):
        for words in (said, shown):
            assert f"{model}: 0.0 GiB of weights; more than" in words
            assert "are looked at for NaN when they are loaded" in words


def test_weights_that_are_not_here_are_said_to_wait(tmp_path: Path) -> None:
    assert "a model of the hub, and their headers, are looked at after the download" in start.check_values(
        "a/b"
    )
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert "a GGUF file; the first stage, sft, converts it" in start.check_values(tmp_path / "m.gguf")


def test_a_dtype_that_the_cpu_is_slow_in_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, "dtype=bfloat16")
    for slow, expected in (
        (True, ["dtype: this CPU is several times slower in bfloat16 than in float32"]),
        (False, []),
    ):
        monkeypatch.setattr("allo.stages.check.is_slow_in_bf16", lambda device, slow=slow: slow)
        assert [sentence.partition(", which")[0] for sentence in findings(recipe).unread] == expected
        assert findings(tiny_recipe(tmp_path, "dtype=float32")).unread == []


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [({"bfloat16": 3.0, "float32": 1.0}, True), ({"bfloat16": 1.9, "float32": 1.0}, False)],
)
def test_a_cpu_is_slow_in_bf16_if_a_product_takes_over_twice_as_long(
    seconds: dict[str, float], slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_seconds", lambda dtype: seconds[str(dtype).removeprefix("torch.")])
    assert device.is_slow_in_bf16("cpu") is slow
    assert not device.is_slow_in_bf16("cuda"), "a GPU is not measured, nor asked for"
