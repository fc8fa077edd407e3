"""The files of ../shared/cases as they lie there: `allo check` accepts each, or refuses it, in the words that its table asks for."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from allo.cli import main

CASES = Path(__file__).resolve().parent.parent.parent / "shared" / "cases"
RECIPE = """
name: case
model: {model}
dtype: float32
device: cpu
out: {out}
max_length: {length}
data: {data}
locate: {{}}
improve: {{}}
sample: {{max_new_tokens: 8}}
evaluate: {{sets: {{test: {{task: planted_flaws, split: test, limit: 1}}}}, kl: null, max_new_tokens: 8}}
"""

# The rows, the model folder, the longest row, the exit status, and words of what is said.
ROWS: list[tuple[str, str, int, int, tuple[str, ...]]] = [
    ("bom", "plain", 256, 0, ("1 pair trained on", "Name·a·tree.⏎\n", "[Oa][k][.][<|im_end|>]")),
    ("eos", "plain", 256, 0, ("[Oa][k][·0][.][<|im_end|>]\n",)),
    ("eos", "end_of_turn", 256, 0, ("[Oa][k][·0][.][<|im_end|>]\n",)),
    ("gsm_answer", "plain", 256, 0, ("1 row: `answer` is a worked solution, read as what follows `####`",)),
    ("images_column", "plain", 256, 2, ("images_column.jsonl:1: has `images`", "only text")),
    (
        "implicit_special_token_split",
        "plain",
        256,
        0,
        (
            "1 row: prompt inferred",
            "<|user|>Call·it.<|end|><|assistant|>\n",
            "[<][|][t][o][o][l]",
            "[<][|][t][e][x][t]",
        ),
    ),
    ("kto_row", "plain", 256, 2, ("kto_row.jsonl:1: `completion` and `label`", "`data.feedback`")),
    ("letters", "plain", 256, 0, ("3 rows: `answer` is a letter, read as the option's text",)),
    ("long", "gpt2_32_positions", 256, 2, ("max_length is 256", "32 positions", "set max_length to 32")),
    ("long", "gpt2_32_positions", 32, 0, ("4 prompts cut: the beginning is lost",)),
    (
        "orca_question_column",
        "plain",
        256,
        2,
        ("orca_question_column.jsonl:1", "beside `question`", "rename"),
    ),
    (
        "reasoning_content",
        "plain",
        256,
        2,
        ("prompt reasoning_content-1", "does not write `reasoning_content`"),
    ),
    ("surr", "plain", 256, 2, ("surr.jsonl:1: `prompt` has half of a surrogate pair",)),
    ("sys", "plain", 256, 0, ("4 pairs trained on", "Be·terse.<|im_end|>⏎\n")),
    ("sys", "no_system_role", 256, 2, ("prompt sys-1", "chat template", "System role not supported")),
    (
        "sys",
        "end_of_turn",
        256,
        0,
        ("[Oa][k][·0][.][<|im_end|>]\n", "the answer to messages ends with <|im_end|>"),
    ),
    ("sys", "no_generation_prompt", 256, 0, ("<|im_start|>assistant⏎\n",)),
    (
        "tool_calls_user_reply",
        "plain",
        256,
        2,
        ("prompt tool_calls_user_reply-1", "does not write `tool_calls`"),
    ),
    (
        "toolcall",
        "larger_tokenizer",
        256,
        2,
        ("2 tokens", "'<tool_call>' (337), '<img>' (338)", "vocab_size is 337"),
    ),
]
MODELS: dict[str, tuple[int, tuple[str, ...]]] = {
    "plain": (0, ("4 pairs trained on",)),
    "end_of_turn": (0, ("[Oa][k][·0][.][<|im_end|>]\n",)),
    "no_system_role": (0, ("4 pairs trained on",)),
    "no_generation_prompt": (0, ("4 pairs trained on",)),
    "special_tokens": (0, ("340 tokens",)),
    "larger_tokenizer": (2, ("larger_tokenizer: the tokenizer has 2 tokens",)),
    "single_file_beside_shards": (2, ("model.safetensors and in model-00001-of-00002", "Keep one")),
    "nan": (2, ("tensor model.norm.weight has 1 of 16 entries that are NaN or infinite",)),
    "deeper_than_config": (2, ("no place for tensor model.layers.1.", "and 8 more")),
    "int8": (2, ("tensor model.layers.0.self_attn.q_proj.weight is stored as int8", "dense")),
    "gpt2_32_positions": (0, ("32 positions",)),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not CASES.is_dir():
        pytest.skip(
            "../shared/cases is not here; tests of rows and of model folders hold neighbours of its files"
        )
    out = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make_models.py", str(out)])
        runpy.run_path(str(CASES / "make_models.py"), run_name="__main__")
    return out


def checked(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rows: Path,
    model: Path,
    length: int,
) -> tuple[int, str]:
    """The exit status of `allo check`, and what it says."""
    first = json.loads(rows.read_text("utf-8-sig").splitlines()[0])
    data = {"file" if "answer" in first else "pairs": str(rows)}
    recipe = tmp_path / "case.yaml"
    recipe.write_text(RECIPE.format(model=model, out=tmp_path / "runs", length=length, data=json.dumps(data)))
    monkeypatch.setattr(sys, "argv", ["allo", "check", str(recipe)])
    with pytest.raises(SystemExit) as left:
        main()
    out = capsys.readouterr()
    return int(left.value.code or 0), out.out + out.err


@pytest.mark.parametrize(
    ("name", "model", "length", "status", "words"), ROWS, ids=[f"{r[0]}-{r[1]}-{r[2]}" for r in ROWS]
)
def test_rows(
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    model: str,
    length: int,
    status: int,
    words: tuple[str, ...],
) -> None:
    found, said = checked(
        tmp_path, capsys, monkeypatch, CASES / "rows" / f"{name}.jsonl", models / model, length
    )
    assert found == status, said
    assert [each for each in words if each not in said] == [], said


@pytest.mark.parametrize("name", MODELS)
def test_model_folders(
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    status, words = MODELS[name]
    found, said = checked(tmp_path, capsys, monkeypatch, CASES / "rows" / "eos.jsonl", models / name, 32)
    assert found == status, said
    assert [each for each in words if each not in said] == [], said


def test_the_table_has_every_file(models: Path) -> None:
    assert {path.stem for path in (CASES / "rows").iterdir()} == {row[0] for row in ROWS}
    assert {path.name for path in models.iterdir()} == set(MODELS)
