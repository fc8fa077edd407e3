"""Bad input: exit code 2, one clear message, no traceback, nothing half-written."""

import json
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from allo import cli, delta
from allo.errors import UserError
from allo.models.load import load_model
from allo.tasks.answers import Verified
from allo.tasks.prompts import PromptSource, read_prompts
from allo.weights.param_mask import ParamMask
from allo.weights.selected import SelectedWeights
from tiny_run import LAB, RECIPE, arguments

# The files of stages; none may be there if the input was bad from the start.
OUTPUTS = "0[1-8]-*"
# Training straight on pairs.
TRAIN = ("sft=null", "locate=null", "score=null", "forget=null", "improve.density=1.0")

Refuse = Callable[..., str]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """Call `allo` with arguments that it must refuse; returns what it says."""

    def refused(*argv: str, code: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["allo", *argv])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        said = capsys.readouterr().err
        assert leaving.value.code == code, said
        assert "Traceback" not in said
        assert not list(tmp_path.rglob("*.part")), "half-written"
        return said[max(0, said.find("allo: ")) :]

    return refused


@pytest.fixture
def refuse_run(refuse: Refuse, tmp_path: Path) -> Refuse:
    """`allo run` on the tiny recipe with overrides that it must refuse before any stage is done."""

    def refused(*overrides: str) -> str:
        said = refuse(*arguments("run", tmp_path / "runs", *overrides))
        assert not list((tmp_path / "runs" / "tiny").glob(OUTPUTS)), "it began before it looked"
        return said

    return refused


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the laboratory's model, to be damaged."""
    return Path(shutil.copytree(LAB, tmp_path / "model"))


def solved(number: int) -> list[tuple[str, str]]:
    prompts = read_prompts(PromptSource(task="planted_flaws", limit=number))
    return [(str(prompt.prompt), str(prompt.solution)) for prompt in prompts]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], []),  # the help
        (["run"], ["Missing argument", "RECIPE"]),
        (["rnu"], ["No such command", "rnu"]),
        (["run", str(RECIPE), "--unitl", "pair"], ["No such option", "--unitl"]),
        (["run", "absent.yaml"], ["absent.yaml: cannot read the recipe", "Give the path"]),
        (["run", str(RECIPE), "--set", "improve.kepe=1"], ["improve.kepe: unknown key", "'keep'"]),
        (
            ["run", str(RECIPE), "--set", "improve.density=0"],
            ["improve.density", "greater than 0", "found 0"],
        ),
        (
            ["run", str(RECIPE), "--set", "forget.density=-1"],
            ["forget.density", "greater than 0", "found -1"],
        ),
        (["run", str(RECIPE), "--set", "forget.density=1.5"], ["forget.density", "less than or equal to 1"]),
        (["run", str(RECIPE), "--until", "smaple"], ["smaple: no such stage", "sample"]),
        (["mask", "info", "absent.safetensors"], ["absent.safetensors: no such file"]),
        (["delta", "apply", "absent", "absent.safetensors", "out"], ["absent: no such folder"]),
        (["delta", "info", "absent.safetensors"], ["absent.safetensors: no such file"]),
        (
            ["mask", "from-checkpoints", str(LAB), str(LAB), "--density", "2", "--out", "mask.safetensors"],
            ["density is 2.0", "at most 1"],
        ),
        (
            [
                *("mask", "from-checkpoints", str(LAB), str(LAB)),
                *("--density", "0.1", "--out", "mask.safetensors", "--granularity", "rows"),
            ],
            ["granularity 'rows' is none of weight, row, column and block(n)"],
        ),
        (["report", "absent"], ["absent"]),
        (["report", "one", "two"], ["2 runs", "--out FOLDER", "one's own"]),
        # Before the checkpoints are so much as opened.
        (["delta", "extract", "absent", "absent", "."], [".: a folder", "the name of a file"]),
        (
            ["mask", "from-checkpoints", "absent", "absent", "--density", "0.1", "--out", "."],
            [".: a folder", "the name of a file"],
        ),
        (["delta", "extract", "absent", "absent", "x" * 300], ["File name too long", "give another path"]),
        (["delta", "extract", "absent", "absent", str(RECIPE / "out")], ["published.yaml: File exists"]),
        (["delta", "extract", "absent", "absent", str(RECIPE / "a" / "b")], ["Not a directory"]),
    ],
)
def test_bad_arguments_are_refused_by_name(
    refuse: Refuse, argv: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refuse(*argv)
    assert all(word in said for word in words), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=/no/such/model", ["/no/such/model does not exist", "a checkpoint's folder"]),
        ("data={file: absent.jsonl}", ["absent.jsonl: there is no such file"]),
        ("data={pairs: absent.jsonl}", ["absent.jsonl: there is no such file"]),
        ("data={file: rows.tsv}", ["rows.tsv: unknown file type", ".jsonl"]),
        ("sft.sources=[{file: absent.jsonl}]", ["absent.jsonl: there is no such file"]),
        ("evaluate.sets.test={file: absent.jsonl}", ["absent.jsonl: there is no such file"]),
        ("evaluate.kl={file: absent.jsonl}", ["absent.jsonl: there is no such file"]),
        ("evaluate.sets.test.split=tset", ["tset", "test"]),
        ("data.skip=1000000", ["no prompts left", "lower `skip`"]),
        ("evaluate.max_new_tokens=128", ["max_new_tokens is 128", "128 positions", "lower max_new_tokens"]),
        ("judge.verifier=choice", ["planted_flaws", "no `choices`"]),
        ("pad_token=<absent>", ["<absent>", "pad_token"]),
        ("improve.training.lerning_rate=1", ["improve.training", "lerning_rate"]),
        ("locate.training.optim=nonsense", ["locate.training", "nonsense"]),
        ("forget.training.lr_scheduler_type=nope", ["forget.training", "nope"]),
        ("sft.training.output_dir=/tmp", ["sft.training.output_dir: set by allo", "remove it"]),
        (
            "improve.loss_settings={alpha: 1}",
            ["improve.loss_settings.alpha: dpo takes no such setting", "label_smoothing"],
        ),
        ("improve.loss_settings={label_smoothing: 0.5}", ["improve.loss_settings.label_smoothing is 0.5"]),
        ("improve.loss=simpo", ["improve.keep: simpo has no reference", "set keep to 1.0"]),
        ("improve.loss=absent.py:mine", ["improve.loss: absent.py: there is no such file"]),
    ],
)
def test_bad_input_is_found_before_anything_is_sampled(
    refuse_run: Refuse, override: str, words: list[str]
) -> None:
    said = refuse_run(override)
    assert all(word in said for word in words), said


def test_a_lean_stage_takes_no_other_optimizer(refuse_run: Refuse) -> None:
    said = refuse_run("forget.lean=true", "forget.training.optim=sgd")
    assert "forget.training.optim: sgd: lean training has its own AdamW" in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a", ', ["not JSON", "one JSON object a line"]),
        ("[1]", ["a JSON list", "one JSON object a line"]),
        ('{"question": "a", "answer": "1"}', ["lacks `prompt`", "`question`"]),
        ('{"prompt": " ", "answer": "1"}', ["`prompt`", "must not be empty"]),
        ('{"prompt": "a", "answer": 1.5}', ["`answer` 1.5"]),
        ('{"prompt": "b", "answer": "1", "id": "first"}', ["the id 'first' is that of"]),
    ],
)
def test_a_bad_line_of_prompts_is_named(
    refuse_run: Refuse, tmp_path: Path, line: str, words: list[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "answer": "1", "id": "first"}\n' + line + "\n")
    said = refuse_run(f"data={{file: {file}}}")
    assert said.startswith(f"allo: {file}:2: ") and all(word in said for word in words), said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"chosen": "a", "rejected": "b"}', ["lacks `prompt`"]),
        ('{"prompt": "p", "chosen": " ", "rejected": "b"}', ["`chosen` has no completion", "drop the row"]),
        ('{"prompt": "p", "chosen": "a", "rejected": ""}', ["`rejected` has no completion"]),
        ('{"prompt": "p", "chosen": "a"}', ["lacks `rejected`", "`chosen`, `prompt`"]),
    ],
)
def test_a_bad_pair_is_named(refuse_run: Refuse, tmp_path: Path, line: str, words: list[str]) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n' + line + "\n")
    said = refuse_run(f"data={{pairs: {file}}}")
    assert said.startswith(f"allo: {file}:2: ") and all(word in said for word in words), said


def test_a_slice_without_pairs_is_refused(refuse_run: Refuse, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    said = refuse_run(f"data={{pairs: {file}, skip: 1}}")
    assert said.startswith(f"allo: {file}: no pairs left: 1 were found, skip is 1"), said


def test_a_report_that_cannot_be_written_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "08-eval.json").write_text('{"schema": 1, "models": {"start": {"label": "SFT", "sets": {}}}}')
    (tmp_path / "file").touch()
    assert "file: File exists" in refuse("report", str(run), "--out", str(tmp_path / "file"))


def test_prompts_without_an_answer_cannot_be_judged(refuse_run: Refuse, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "id": "unanswered"}\n')
    for key in ("data", "evaluate.sets.test"):
        said = refuse_run(f"{key}={{file: {tmp_path / 'rows.jsonl'}}}")
        assert "prompt unanswered: no `answer` to judge by" in said


@pytest.mark.parametrize(("correct", "words"), [(False, "No sample is right"), (True, "No sample is wrong")])
def test_samples_of_one_kind_alone_make_no_pair(
    refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, correct: bool, words: str
) -> None:
    monkeypatch.setattr(
        "allo.stages.judge.verify_final_answer", lambda *_, **__: Verified(correct, None, "final_answer")
    )
    said = refuse(
        *arguments(
            "run", tmp_path, "sft=null", "data.limit=3", "evaluate.kl=null", "judge.max_unanswered=1.0"
        )
    )
    assert words in said and "3 prompts with " in said and " distinct samples" in said
    assert not list((tmp_path / "tiny").glob("0[3-8]-*"))


def damage_tokenizer(folder: Path, **changed: str | None) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: damage_tokenizer(folder, eos_token=None), ["no EOS token", "eos_token"]),
        (lambda folder: damage_tokenizer(folder, pad_token=None), ["no pad token", "pad_token:"]),
        (lambda folder: truncate(folder / "model.safetensors"), ["model.safetensors", "truncated"]),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            ["has neither model.safetensors nor", "complete checkpoint"],
        ),
        (lambda folder: (folder / "config.json").unlink(), ["no config.json"]),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            ["pickled weights (pytorch_model.bin)", "python -c", "save_file"],
        ),
    ],
)
def test_a_damaged_model_is_refused(
    refuse_run: Refuse, model: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    damage(model)
    said = refuse_run(f"model={model}", "sft=null")
    assert str(model) in said and all(word in said for word in words), said


@pytest.fixture
def deltas(model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A base beside a delta that was made from it."""
    tuned = Path(shutil.copytree(model, tmp_path / "tuned"))
    tensors = load_file(tuned / "model.safetensors")
    next(iter(tensors.values())).view(-1)[:3] += 1
    save_file(tensors, tuned / "model.safetensors", {"format": "pt"})
    delta.extract(model, tuned, tmp_path / "delta.safetensors")
    return model, tmp_path / "delta.safetensors"


def test_a_delta_is_refused_on_another_base(
    refuse: Refuse, deltas: tuple[Path, Path], tmp_path: Path
) -> None:
    _, file = deltas
    said = refuse("delta", "apply", str(tmp_path / "tuned"), str(file), str(tmp_path / "out"))
    assert "is not the base that" in said and "fingerprint must be" in said
    assert not (tmp_path / "out").exists()


def test_a_truncated_delta_or_mask_is_refused(
    refuse: Refuse, deltas: tuple[Path, Path], tmp_path: Path
) -> None:
    base, file = deltas
    truncate(file)
    assert "truncated" in refuse("delta", "apply", str(base), str(file), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    mask = tmp_path / "mask.safetensors"
    ParamMask.full({"a": (1000,)}).save(mask)
    truncate(mask)
    assert "truncated" in refuse("mask", "info", str(mask))


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        (lambda shapes: {**shapes, "lm_head.bias": (3,)}, ["lm_head.bias", "absent in this model"]),
        (lambda shapes: {name: (*shape, 2) for name, shape in shapes.items()}, ["2]", "another model"]),
        (lambda shapes: dict(list(shapes.items())[1:]), ["absent there"]),
    ],
)
def test_a_mask_of_another_model_is_refused(
    rename: Callable[[dict[str, tuple[int, ...]]], dict[str, tuple[int, ...]]], words: list[str]
) -> None:
    net = load_model(LAB, dtype=torch.float32, device="cpu")
    shapes = rename({name: tuple(param.shape) for name, param in net.named_parameters()})
    with pytest.raises(UserError) as error:
        SelectedWeights(net, ParamMask({}, shapes=shapes))
    assert all(word in str(error.value) for word in words)


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_last_checkpoint(
    refuse: Refuse, tmp_path: Path
) -> None:
    rows = solved(17)
    lines = [
        {"prompt": prompt, "chosen": right, "rejected": wrong}
        for (prompt, right), (_, wrong) in pairwise(rows)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = [
        f"improve.training.{one}" for one in ("learning_rate=1e30", "num_train_epochs=4", "save_steps=1")
    ]
    data = f"data={{pairs: {tmp_path / 'pairs.jsonl'}}}"
    said = refuse(*arguments("run", tmp_path, data, *TRAIN, *training))
    assert " is nan at step 3: stopped" in said and "Lower the learning rate" in said
    checkpoint = Path(said.split("the last good checkpoint is ")[1].split(". ")[0])
    assert checkpoint.name == "checkpoint-1"  # the warm-up's first step has learning rate 0
    assert (checkpoint / "complete").exists()
    assert not list((tmp_path / "tiny" / "07-improve").glob("*.safetensors"))
