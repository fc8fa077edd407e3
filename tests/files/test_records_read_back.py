"""Records of earlier versions, which had no token ids, and pairs as TRL reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from allo.errors import UserError
from allo.files.artifacts import read_jsonl, write_jsonl
from allo.files.records import Completion, Pair, Prompt, Verdict, Wrong
from allo.models.load import load_model, load_tokenizer
from allo.sampling.completions import ResumableLines, read_completed
from allo.tasks.pairing import distinct, make_pairs, rejected_completions, wrong_completions
from allo.tasks.pairs import completions_of_rows, pairs_of_rows
from tiny_chat import chat_tokenizer, save_chat_model

EARLIER: list[tuple[type, dict[str, Any]]] = [
    (Completion, {"prompt_id": "p", "index": 0, "text": "a", "finished": True, "num_tokens": 2}),
    (
        Verdict,
        {
            "prompt_id": "p",
            "index": 0,
            "text": "a",
            "finished": True,
            "correct": True,
            "reward": 1.0,
            "extracted": None,
            "verifier": "choice",
        },
    ),
    (Pair, {"prompt_id": "p", "prompt": "q", "chosen": "a", "rejected": "b"}),
    (
        Wrong,
        {
            "id": "p-0",
            "prompt_id": "p",
            "prompt": "q",
            "completion": "a",
            "finished": True,
            "solution": None,
            "right": [],
        },
    ),
]


@pytest.mark.parametrize(("record", "row"), EARLIER)
def test_a_file_without_ids_reads(record: type, row: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (found,) = read_jsonl(file, record)
    ids = [value for name, value in vars(found).items() if name.endswith("token_ids")]
    assert ids and set(ids) == {None}
    write_jsonl(file, [found])
    assert read_jsonl(file, record) == [found]


def test_a_servers_part_file_without_ids_goes_on(tmp_path: Path) -> None:
    ResumableLines(tmp_path / "c.jsonl").append([EARLIER[0][1] | {"prompt_tokens": 7}])
    lines = ResumableLines(tmp_path / "c.jsonl")
    completed = read_completed([Prompt("p", "q")], lines, num_cut=0)
    assert completed.completions == [Completion("p", 0, "a", True, 2, None)]


def verdict(index: int, text: str, ids: list[int] | None, *, correct: bool, finished: bool = True) -> Verdict:
    return Verdict("p", index, text, finished, correct, float(correct), "4", "final_answer", ids)


def test_the_first_of_equal_texts_is_kept_with_its_ids() -> None:
    """The same text with other ids is the same sample: people and verifiers see no difference."""
    same = [
        verdict(2, "so 4", [7, 9], correct=True),
        verdict(0, "so 4", [7, 8, 2], correct=True),
        verdict(1, " so 4 ", [5, 7, 8, 2], correct=True),
        verdict(3, "so 5", [7, 4, 2], correct=False),
    ]
    assert [one.token_ids for one in distinct(same)] == [[7, 8, 2], [7, 4, 2]]
    (pair,) = make_pairs([Prompt("p", "q")], same, max_pairs_per_prompt=5, seed=0)
    assert (pair.chosen_token_ids, pair.rejected_token_ids) == ([7, 8, 2], [7, 4, 2])
    (wrong,) = wrong_completions([Prompt("p", "q")], same)
    assert wrong.token_ids == [7, 4, 2]


def test_rejected_completions_keep_the_ids_of_the_first_pair() -> None:
    pairs = [
        Pair("p", "q", "so 4", "so 5", True, True, [1, 2], [3, 2]),
        Pair("p", "q", "We 4", "so 5", True, True, [4, 2], [3, 2]),
        Pair("p", "r", "so 4", "so 5"),
    ]
    assert [one.token_ids for one in rejected_completions(pairs, solutions={})] == [[3, 2], None]


@pytest.mark.parametrize("thoughts", [{}, {"reasoning_content": "2 + 2"}])
def test_a_message_whose_text_differs_from_its_answer_is_refused(thoughts: dict[str, str]) -> None:
    message = {"role": "assistant", "content": "so 3", **thoughts}
    with pytest.raises(UserError, match="row 0: an answer and the message beside it have different texts"):
        pairs_of_rows([{"prompt": "q", "chosen": "so 4", "rejected": "so 5", "chosen_message": message}])
    with pytest.raises(UserError, match="row 0: an answer and the message beside it have different texts"):
        completions_of_rows([{"prompt": "q", "completion": "so 4", "message": message}])


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_ids_and_a_message_of_one_answer_are_refused(side: str) -> None:
    """Only one of the two could be trained on."""
    row: dict[str, Any] = {"prompt": "q", "chosen": "so 4", "rejected": "so 5"}
    row[f"{side}_message"] = {"role": "assistant", "content": row[side], "reasoning_content": "2 + 2"}
    assert pairs_of_rows([row])[0]
    with pytest.raises(UserError, match="row 0: token ids and a message are given for one answer"):
        pairs_of_rows([row | {f"{side}_token_ids": [1, 2]}])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("ids", [([5, 6, 2], [9, 9, 9, 2]), (None, None)])
def test_pairs_load_as_they_are_in_trl(ids: Any, tmp_path: Path) -> None:
    """TRL reads prompt, chosen and rejected; the ids beside them do not change its batches."""
    pytest.importorskip("trl", reason="held against TRL; install the extra")
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    folder = save_chat_model(tmp_path / "model", chat_tokenizer(), ends=[2])
    tokenizer = load_tokenizer(folder)
    pairs = [Pair(f"p{n}", "What colour?", f" blue {n}", f" green {n}", True, True, *ids) for n in range(4)]

    def batches(place: Path, records: list[Any]) -> list[dict[str, Any]]:
        write_jsonl(place, records)
        trainer = DPOTrainer(
            load_model(folder, dtype=torch.float32, device="cpu"),
            args=DPOConfig(
                output_dir=str(tmp_path / "out"),
                per_device_train_batch_size=2,
                use_cpu=True,
                bf16=False,
                activation_checkpointing=False,
                report_to="none",
                max_steps=1,
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=load_dataset(
                "json", data_files=str(place), split="train", cache_dir=str(tmp_path / "cache")
            ),
            processing_class=tokenizer,
        )
        found = [dict(batch.items()) for batch in trainer.get_train_dataloader()]
        trainer.train()
        return found

    plain = [{"prompt": one.prompt, "chosen": one.chosen, "rejected": one.rejected} for one in pairs]
    ours, without = (
        batches(tmp_path / "ours.jsonl", pairs),
        batches(tmp_path / "plain.jsonl", plain),
    )
    assert len(ours) == len(without) == 2
    for one, other in zip(ours, without, strict=True):
        assert one.keys() == other.keys()
        assert all(
            (value == other[name]).all() if hasattr(value, "all") else value == other[name]
            for name, value in one.items()
        )
