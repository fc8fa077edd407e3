"""`allo check` refuses bad input with one message that names the place, and writes nothing."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from allo import cli
from allo.plan.preview import preview
from allo.stages import check as checks
from check_setup import CHAT, SHORT, asked_chat, chat_model, written
from tiny_run import arguments
from tiny_run import tiny as tiny_recipe

Refuse = Callable[[Sequence[str]], str]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """Call `allo check` with overrides that it must refuse; returns what it says."""

    def refused(overrides: Sequence[str]) -> str:
        monkeypatch.setattr(sys, "argv", ["allo", *arguments("check", tmp_path / "runs", *overrides)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        said = capsys.readouterr()
        assert leaving.value.code == 2 and "Traceback" not in said.err, said
        assert said.out == "" and said.err.count("allo: ") == 1
        assert not (tmp_path / "runs").exists(), "it wrote something"
        return said.err

    return refused


GOOD = {"prompt": "2+2?", "chosen": " 4.", "rejected": " 5."}
BAD_PAIRS = [
    ({**GOOD, "images": ["cat.png"]}, [":1", "`images`"]),
    ({"prompt": "Q", "completion": "x", "label": True}, [":1", "`label`", "KTO"]),
    ({"question": "2+2?", "chosen": "It is 4", "rejected": "It is 5"}, [":1", "`question`"]),
    ({**GOOD, "prompt": "2+2? \ud83d."}, [":1", "`prompt`", "surrogate"]),
    (
        {"prompt": CHAT, "chosen": [{**asked_chat("4")[0], "reasoning_content": "Two."}], "rejected": asked_chat("5")},
        ["prompt pairs-1", "`reasoning_content`"],
    ),
    (
        {
            "prompt": [*CHAT, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}, *CHAT],
            "chosen": asked_chat("4"),
            "rejected": asked_chat("5"),
        },
        ["pairs-1", "`tool_calls`"],
    ),
    ({**GOOD, "chosen": "because " * 200}, ["data.pairs", "1 do not fit into max_length 128", "Raise max_length"]),
    ({**GOOD, "rejected": " 4."}, ["`chosen` equals `rejected`"]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "words"), BAD_PAIRS, ids=[words[-1] for _, words in BAD_PAIRS])
def test_a_bad_row_of_pairs_is_named(
    refuse: Refuse, tmp_path: Path, row: dict[str, Any], words: list[str]
) -> None:
    file = written(tmp_path / "pairs.jsonl", row)
    model = chat_model(tmp_path / "model")
    said = refuse([f"data={json.dumps({'pairs': str(file)})}", "sft=null", f"model={model}", *SHORT])
    assert all(word in said for word in words), said


BAD_PROMPTS = [
    ({"prompt": "What melts?", "choices": ["ice", "sand"], "answer": "C"}, ["bad-1", "`choices`"]),
    ({"prompt": "What melts?", "choices": ["A", "B"], "answer": "C"}, ["bad-1", "none of its `choices`"]),
    ({"prompt": "What melts?"}, ["bad-1", "no `answer`"]),
    ({"prompt": "2+2?", "answer": "so\n####"}, [":1", "nothing follows"]),
    ({"prompt": "", "answer": "4"}, ["prompt"]),
    ({"prompt": [{"role": "robot", "content": "2+2?"}], "answer": "4"}, [":1", "role"]),
]


@pytest.mark.parametrize(("row", "words"), BAD_PROMPTS, ids=[str(words) for _, words in BAD_PROMPTS])
def test_a_bad_prompt_is_named(refuse: Refuse, tmp_path: Path, row: dict[str, Any], words: list[str]) -> None:
    file = written(tmp_path / "bad.jsonl", row)
    model = chat_model(tmp_path / "model")
    said = refuse([f"data={json.dumps({'file': str(file)})}", "sft=null", f"model={model}", *SHORT])
    assert all(word in said for word in words), said


def test_solutions_that_do_not_fit_are_an_error_before_they_are_learned(
    refuse: Refuse, tmp_path: Path
) -> None:
    row = {"prompt": "2+2?", "answer": "4", "solution": "because " * 200}
    sources = [{"file": str(written(tmp_path / "gold.jsonl", row))}]
    model = chat_model(tmp_path / "model")
    override = f"sft.sources={json.dumps(sources)}"
    said = refuse([override, f"model={model}", *SHORT])
    assert "sft: no row is left" in said and "max_length 128" in said
    written(tmp_path / "gold.jsonl", {"prompt": "2+2?", "answer": "4"})
    assert "none of its 1 prompts has a `solution`" in refuse([override, f"model={model}", *SHORT])


def test_a_weight_that_is_no_number_is_named(refuse: Refuse, tmp_path: Path) -> None:
    model = chat_model(tmp_path / "model")
    for value in (float("nan"), float("inf")):
        tensors = load_file(model / "model.safetensors")
        tensors["model.norm.weight"][3] = value
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        said = refuse(["sft=null", f"model={model}", *SHORT])
        assert "model.norm.weight" in said and str(model) in said


def test_a_disk_that_is_too_small_is_refused_with_both_numbers(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr("allo.stages.disk.shutil.disk_usage", lambda _: usage._replace(free=123_456))
    said = refuse([])
    assert "123 kB are free" in said and "MB" in said and "out=" in said


def test_the_space_that_a_run_needs_follows_from_its_stages(tmp_path: Path) -> None:
    bare = [
        "sft=null",
        "locate.criterion=magnitude",
        "score.scorer=confidence",
        "improve.training.save_strategy='no'",
    ]
    bare += ["forget.training.save_strategy='no'"]

    def needed(*more: str) -> int:
        return checks.findings(tiny_recipe(tmp_path / "runs", *bare, *more)).disk.needed

    model = 4 * preview(tiny_recipe(tmp_path / "runs")).found.num_weights
    base = needed()
    assert 2 * model < base < 3 * model
    assert model < needed("forget=null") < 2 * model
    assert needed("rounds=2") > 2 * base
    assert needed("dtype=bfloat16") < base  # though it writes a copy of the model to start from
    assert needed("sft={sources: [{task: planted_flaws}]}") >= 7 * model


def test_a_run_folder_that_cannot_be_written_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write the run folder" in refuse([f"out={tmp_path / 'file'}"])


def test_a_recipe_without_sampling_room_is_refused_by_the_rope_length(refuse: Refuse, tmp_path: Path) -> None:
    rope = {
        "rope_type": "dynamic",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 64,
    }
    model = chat_model(tmp_path / "model", rope_parameters=rope)
    said = refuse(["sft=null", f"model={model}", *SHORT])
    assert "max_length is 128" in said and "64 positions" in said


@pytest.mark.parametrize("name", ["lora", "shira"])
def test_label_smoothing_that_trl_would_ignore_is_refused(refuse: Refuse, name: str) -> None:
    pytest.importorskip("trl")
    pytest.importorskip("peft")
    adapter = ["forget=null", "score=null", "locate=null", f"improve.trainer={name}"]
    smooth = 'improve.loss_settings={"label_smoothing": 0.1}'
    said = refuse([*adapter, smooth])
    assert "improve.loss_settings.label_smoothing is 0.1" in said and "robust" in said
