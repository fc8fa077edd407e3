"""`allo check`: the tokens that it shows are the trainer's, bad input is refused, and nothing is written."""

import json
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerBase

import tiny
from allo.files.artifacts import RunFolder, write_jsonl
from allo.files.records import Pair, Wrong
from allo.models.load import load_tokenizer
from allo.models.token_texts import num_unknown, token_texts
from allo.pipeline import run_all
from allo.plan.preview import preview
from allo.plan.preview_page import lines
from allo.plan.preview_sample import sampled_pair
from allo.plan.preview_tokens import SHOWN_ENDS, Token, laid_out, visible
from allo.recipe import Recipe
from allo.stages import check as checks
from allo.stages.right_answers import demonstrations
from allo.training.trainer import ImproveTrainer, SftTrainer
from check_setup import CHAT, SHORT, asked_chat, chat_model, written
from tiny import TOKENIZER
from tiny_chat import byte_fallback_tokenizer, chat_tokenizer
from tiny_run import tiny as tiny_recipe


def on_pairs(tmp_path: Path, model: Path | None, *rows: dict[str, Any], more: Sequence[str] = ()) -> Recipe:
    file = written(tmp_path / "pairs.jsonl", *rows)
    data = f"data={json.dumps({'pairs': str(file)})}"
    named = [] if model is None else [f"model={model}"]
    return tiny_recipe(tmp_path / "runs", data, "sft=null", *named, *SHORT, *more)


def shown(recipe: Recipe) -> list[str]:
    return [line.plain for line in lines(preview(recipe), width=80, plain=True)]


def block(page: list[str], head: str) -> str:
    """The tokens under the line that begins with `head`."""
    start = next(place for place, line in enumerate(page) if line.startswith(f"  {head} ("))
    found = ""
    for line in page[start + 1 :]:
        if found and not line.startswith("    "):
            break
        if line.startswith("    "):
            found += line[4:]
    return found


def marked(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return "".join(f"[{visible(text)}]" for text in token_texts(tokenizer, ids))


def plain(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return "".join(visible(text) for text in token_texts(tokenizer, ids))


def of_batch(batch: dict[str, torch.Tensor], row: int, completion: int) -> tuple[list[int], list[int]]:
    """The tokens of a collated row that carry no loss, and those that do."""
    counting = batch["targets"][completion][batch["completion_mask"][completion]].tolist()
    whole = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
    assert whole[len(whole) - len(counting) :] == counting
    return whole[: len(whole) - len(counting)], counting


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": CHAT, "chosen": asked_chat("It is 4."), "rejected": asked_chat("It is five.")},
        {"prompt": "2+2? The", "chosen": " answer is 4.", "rejected": " answer is\n5, because é."},
        {"prompt": CHAT, "chosen": asked_chat("It is 4.<|im_end|>"), "rejected": asked_chat("5")},
    ],
    ids=["chat", "text", "with its end"],
)
def test_the_tokens_of_a_pair_are_those_of_the_trainers_batch(tmp_path: Path, row: dict[str, Any]) -> None:
    recipe = on_pairs(tmp_path, chat_model(tmp_path / "model"), row)
    page = shown(recipe)
    tokenizer = load_tokenizer(recipe.model)
    policy = tiny.model(vocab_size=len(tokenizer), max_position_embeddings=128)
    trainer = ImproveTrainer(
        policy,
        tiny.arguments(tmp_path / "out"),
        [row],
        tokenizer,
        mask=tiny.full_mask(policy),
        shared_prefix=False,
        max_length=recipe.max_length,
    )
    batch = trainer.data_collator([trainer.train_dataset[0]])
    for number, side in enumerate(("chosen", "rejected")):
        prompt, counting = of_batch(batch, number, number)
        assert block(page, "prompt") == plain(tokenizer, prompt)
        assert block(page, side) == marked(tokenizer, counting)


def test_the_tokens_of_a_solution_are_those_of_the_trainers_batch(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "runs")
    found = preview(recipe)
    page = [line.plain for line in lines(found, width=80, plain=True)]
    assert recipe.sft is not None
    from allo.tasks.sources import prompts_of

    rows = demonstrations(prompts_of(recipe, recipe.sft.sources[0]))
    policy = tiny.model(max_position_embeddings=128)
    trainer = SftTrainer(
        policy,
        tiny.arguments(tmp_path / "out"),
        rows,
        tiny.TOKENIZER,
        mask=tiny.full_mask(policy),
        records=True,
        max_length=recipe.max_length,
    )
    prompt, counting = of_batch(trainer.data_collator([trainer.train_dataset[0]]), 0, 0)
    assert block(page, "prompt") == plain(tiny.TOKENIZER, prompt)
    assert block(page, "solution") == marked(tiny.TOKENIZER, counting)
    assert len(found.found.trained[0].rows) == len(trainer.train_dataset)


def test_a_pair_of_the_run_is_shown_with_the_tokens_that_forgetting_weighs(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "runs", "sft=null")
    before = shown(recipe)
    assert any("Completions are sampled by the run; each ends with <eos>." in line for line in before)
    assert "it says which share of the tokens it marks" in " ".join(" ".join(before).split())
    assert not recipe.out.exists(), "it wrote something"
    run = run_all(recipe, until="score")
    (run.path / ".hashes.json").unlink()
    listing = {path: path.stat().st_mtime_ns for path in recipe.out.rglob("*")}
    found = preview(recipe)
    page = [line.plain for line in lines(found, width=80, plain=True)]
    assert {path: path.stat().st_mtime_ns for path in recipe.out.rglob("*")} == listing
    assert {name for name, done in found.stages.items() if done} == {
        "sft", "sample", "judge", "pair", "locate", "score"
    }  # fmt: skip
    rows = pq.read_table(run.path / "05-token-scores.parquet")["weights"].to_pylist()
    share = f"{sum(w > 0 for row in rows for w in row):,} of {sum(map(len, rows)):,} tokens of the answers to forget have weight"
    assert share in " ".join(" ".join(page).split())
    pair = found.pair
    assert pair is not None and pair.weights is not None and sum(map(bool, pair.weights)) > 0
    assert block(page, "prompt") == plain(tiny.TOKENIZER, pair.prompt_ids)
    assert block(page, "chosen") == marked(tiny.TOKENIZER, pair.chosen_ids)
    texts = token_texts(tiny.TOKENIZER, pair.rejected_ids)
    expected = [f"[{visible(t)}]" if w else visible(t) for t, w in zip(texts, pair.weights, strict=True)]
    assert block(page, "rejected") == "".join(expected)


def test_pairs_of_other_settings_are_not_shown(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "runs", "sft=null")
    run_all(recipe, until="pair")
    other = tiny_recipe(tmp_path / "runs", "sft=null", "sample.temperature=0.5")
    assert preview(recipe).pair is not None
    assert preview(other).pair is None


def test_rows_that_are_dropped_or_cut_are_counted(tmp_path: Path) -> None:
    model = chat_model(tmp_path / "model")
    good = {"prompt": "2+2?", "chosen": " 4.", "rejected": " 5."}
    recipe = on_pairs(
        tmp_path,
        model,
        good,
        {**good, "prompt": "because " * 60},
        {**good, "chosen": "because " * 100},
        good,
        {**good, "rejected": " 4."},
        more=["max_length=40"],
    )
    counts = preview(recipe).found.trained[0].counts
    assert (counts.long, counts.cut) == (1, 1)
    text = " ".join(shown(recipe))
    assert all(
        words in text
        for words in ("3 pairs trained on", "1 row dropped: 1 do not fit", "1 prompt cut", "the same as")
    ), text


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("improve.keep=0.25", "improve counts 25% of them, those of lowest log-ratio"),
        ("improve.keep=1.0", "improve counts all of them"),
        ("improve.filter=random", "those drawn at random"),
        ("forget=null", "rejected (5 tokens; improve counts"),
    ],
)
def test_the_share_of_a_rejected_answer_that_counts_is_said(tmp_path: Path, setting: str, words: str) -> None:
    row = {"prompt": "2+2?", "chosen": " 4.", "rejected": " Sky!"}
    page = " ".join(
        " ".join(shown(on_pairs(tmp_path, chat_model(tmp_path / "m"), row, more=[setting]))).split()
    )
    assert words in page or (setting == "forget=null" and "forget weighs" not in page), page
    assert "stages sft (nothing is fine-tuned), pair, " in page, page


@pytest.mark.parametrize(
    "tokenizer", [tiny.TOKENIZER, chat_tokenizer(), byte_fallback_tokenizer()], ids=["lab", "bytes", "pieces"]
)
@pytest.mark.parametrize("text", ["a tin is sad. Is it?", "tea\n\nis\tnice ", "é 数 🙂 a[b]", "2+2?  "])
def test_single_tokens_say_the_whole_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if tokenizer.unk_token_id in ids:
        assert num_unknown(tokenizer, [ids]) == (tokenizer.unk_token_id != tokenizer.pad_token_id)
        return
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    texts = token_texts(tokenizer, ids)
    if not any(text.startswith(("\\x", "<0x")) for text in texts):
        assert "".join(texts).strip(" ") == whole.strip(" ")


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\u200bb\u202e", "\x07", "tab\there", "x\ud800", "end\n"])
def test_nothing_that_a_terminal_obeys_is_shown(text: str) -> None:
    for is_plain in (True, False):
        (line,) = laid_out([Token(text, counts=True)], width=60, plain=is_plain)
        assert all(unicodedata.category(letter)[0] != "C" for letter in line.plain)
        assert line.plain == line.plain.encode().decode()


def test_long_texts_lose_their_middle_and_lines_keep_their_width() -> None:
    tokens = [Token(f"word{number} ", counts=number > 95) for number in range(100)]
    page = laid_out(tokens, width=30, plain=True)
    text = "".join(line.plain for line in page)
    assert f"... {100 - 2 * SHOWN_ENDS} tokens left out ..." in text
    assert f"word{SHOWN_ENDS - 1}·" in text and f"word{SHOWN_ENDS}·" not in text and "[word99·]" in text
    assert max(len(line.plain) for line in page) <= 30
    assert len(laid_out(tokens[: 2 * SHOWN_ENDS], width=10**6, plain=True)) == 1
    (first, *_) = laid_out([Token("x" * 100, counts=True)], width=30, plain=True)
    assert len(first.plain) == 30


def test_a_page_is_80_columns_wide_at_most(tmp_path: Path) -> None:
    assert max(map(len, shown(tiny_recipe(tmp_path / "runs")))) <= 80


def test_each_source_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    real = sys.modules["allo.tasks.sources"].prompts_and_reading
    monkeypatch.setattr(
        "allo.tasks.sources.prompts_and_reading", lambda source: read.append(source) or real(source)
    )
    checks.findings(tiny_recipe(tmp_path / "runs", "rounds=2", "improve.loss=sft", "improve.keep=1.0"))
    assert len(read) == len(set(read)) > 2


def test_bytes_of_a_character_are_escaped() -> None:
    tokenizer = chat_tokenizer()
    ids = tokenizer("é", add_special_tokens=False).input_ids
    assert token_texts(tokenizer, ids) in (["é"], ["\\xc3", "\\xa9"])


def test_label_smoothing_reaches_a_loss_that_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    pytest.importorskip("peft")
    from allo.baselines.arguments import trl_arguments

    adapter = ["forget=null", "score=null", "locate=null", "improve.trainer=lora"]
    smooth = ['improve.loss_settings={"label_smoothing": 0.1}', "improve.training.loss_type=robust"]
    recipe = tiny_recipe(tmp_path / "runs", *adapter, *smooth)
    found: Any = trl_arguments(recipe, folder=tmp_path, device=torch.device("cpu"))
    assert found.label_smoothing == 0.1 and "robust" in found.loss_type


def test_a_pair_that_does_not_fit_is_not_shown_nor_are_its_weights(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    run = RunFolder(recipe.run_folder)
    run.path.mkdir(parents=True)
    answers = {"long": "because " * 200, "short": " 4."}
    write_jsonl(run.pairs, [Pair(id, "2+2?", chosen, " 5.") for id, chosen in answers.items()])
    wrong = [Wrong(id, id, "2+2?", " 5.", finished=True, solution=None, right=[]) for id in answers]
    write_jsonl(run.wrong, wrong)
    num = len(TOKENIZER(" 5.", add_special_tokens=False).input_ids) + 1  # and its end
    weights = {"long": [1.0] * num, "short": [0.5] * num}
    pq.write_table(pa.table({"id": list(weights), "weights": list(weights.values())}), run.token_scores)
    found = sampled_pair(recipe, TOKENIZER, is_scored=True)
    assert found.weights == weights["short"] and len(found.rejected_ids) == num
