"""Reward functions of the user's own: called as TRL calls them, in a process that can be stopped."""

import json
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from allo.errors import UserError
from allo.files.records import Prompt
from allo.recipe.judge import Judge
from allo.tasks.own_rewards import OwnRewards, Sample, own_rewards
from allo.tasks.prompts import PromptSource, read_prompts
from tiny_run import LAB

needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="calls TRL; install the extra")

# As a user writes them for TRL: named columns, **kwargs, None, and one that returns something else than a list.
REWARDS = '''
import asyncio

def matches(completions, ground_truth, **kwargs):
    """Conversations or texts, as TRL's own examples tell them apart."""
    texts = [one[0]["content"] if isinstance(one, list) else one for one in completions]
    return [truth in text if truth else None for text, truth in zip(texts, ground_truth, strict=True)]

def length(prompts, completions, completion_ids, trainer_state, log_metric, **kwargs):
    log_metric("longest", max(map(len, completion_ids)))
    return (len(ids) / 4 + trainer_state.global_step for ids in completion_ids)

async def late(completions, level, **kwargs):
    await asyncio.sleep(0)
    return [None if one is None else float(one) for one in level]

def only_two(prompts, completions):
    print("said by the function")
    return [str(one).count("4") for one in prompts]
'''
ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "2+2?", "ground_truth": "4", "level": 3},
    {"id": "b", "prompt": "3+4?", "ground_truth": "7"},
    {"id": "c", "prompt": "4-4?", "level": 1},
]
TEXTS = ["It is 4.", "It is 8.", "It is 0."]
IDS = [[3, 4, 5], [6, 7], [8, 9, 10, 2]]


def samples(*, chat: bool = False) -> list[Sample]:
    found = []
    for row, text, ids in zip(ROWS, TEXTS, IDS, strict=True):
        prompt: Any = [{"role": "user", "content": row["prompt"]}] if chat else row["prompt"]
        columns = {key: value for key, value in row.items() if key != "prompt"}
        found.append(Sample(Prompt(row["id"], prompt, columns=columns), text, ids))
    return found


def judge(folder: Path, source: str, *names: str, **more: Any) -> Judge:
    (folder / "rewards.py").write_text(source)
    return Judge(function=[f"{folder / 'rewards.py'}:{name}" for name in names], **more)


def rewarded(own: Judge, given: list[Sample]) -> list[float | None]:
    with own_rewards(own, [one.prompt for one in given]) as functions:
        return functions.combined(given)


@needs_trl
@pytest.mark.invariant(
    "A reward function written for TRL's GRPO gives the rewards that TRL's own call gives."
)
@pytest.mark.parametrize("chat", [False, True])
def test_a_function_gives_the_rewards_that_trls_own_call_gives(tmp_path: Path, chat: bool) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from allo.baselines.arguments import without_known_warnings

    weights, names = [1.0, 0.5, -2.0], ["matches", "length", "late"]
    own = judge(tmp_path, REWARDS, *names, weights=weights)
    scope: dict[str, Any] = {}
    exec(REWARDS, scope)
    given = samples(chat=chat)
    rows = [{**ROWS[n], "prompt": one.prompt.prompt} for n, one in enumerate(given)]
    dataset = Dataset.from_list([{key: row.get(key) for key in ROWS[0]} for row in rows])
    plain = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": []}
    with without_known_warnings():
        trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(LAB),
            reward_funcs=[scope[name] for name in names],
            args=GRPOConfig(output_dir=str(tmp_path / "trl"), reward_weights=weights, **plain),
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(LAB),
        )
    completions = [[{"role": "assistant", "content": one}] if chat else one for one in TEXTS]
    theirs = trainer._calculate_rewards(list(dataset), dataset["prompt"][:], completions, IDS)
    expected = (theirs * torch.tensor(weights)).nansum(dim=1).tolist()
    assert rewarded(own, given) == pytest.approx(expected, abs=1e-6)
    assert torch.isnan(theirs).sum() == 2, "a row without a verdict of one function counts by the others"


def test_a_row_of_text_is_passed_as_text_though_chat_makes_a_message_of_it(tmp_path: Path) -> None:
    """TRL passes what the rows hold, and a function that was written for it works unchanged."""
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "2+2?"}\n{"prompt": [{"role": "user", "content": "5+3?"}]}\n'
    )
    source = PromptSource(file=tmp_path / "rows.jsonl", chat=True, for_function=True)
    prompts = read_prompts(source)
    assert all(isinstance(prompt.prompt, list) for prompt in prompts), "the model sees messages"
    kinds = "def kinds(prompts, completions, **_):\n    return [isinstance(p, str) + 2 * isinstance(c, str) for p, c in zip(prompts, completions)]\n"
    given = [Sample(prompt, "It is 4.", [3]) for prompt in prompts]
    assert rewarded(judge(tmp_path, kinds, "kinds"), given) == [3, 0]


def test_columns_are_passed_by_name_and_an_absent_one_is_none(tmp_path: Path) -> None:
    source = "def f(completions, **columns):\n    assert sorted(columns) == NAMES, sorted(columns)\n    return columns['level']\n"
    names = [
        *("completion_ids", "ground_truth", "id", "level", "log_extra", "log_metric"),
        *("prompts", "trainer_state"),
    ]
    assert rewarded(judge(tmp_path, f"NAMES = {names}\n{source}", "f"), samples()) == [3.0, None, 1.0]


def test_a_benchmarks_own_fields_are_its_columns(tmp_path: Path) -> None:
    prompt = Prompt("one", "2+2?", answer="4", solution="The answer is 4.", task="gsm8k")
    source = "def f(completions, answer, solution, task, id):\n    return [answer == ['4'] and task == ['gsm8k']]\n"
    assert rewarded(judge(tmp_path, source, "f"), [Sample(prompt, "x", [1])]) == [1.0]


def test_without_kwargs_a_function_gets_the_arguments_that_it_names_and_its_prints_go_to_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert rewarded(judge(tmp_path, REWARDS, "only_two"), samples()) == [0.0, 1.0, 2.0]
    said = capfd.readouterr()
    assert "said by the function" in said.err and said.out == ""


def test_what_a_function_logs_comes_back_with_its_rewards(tmp_path: Path) -> None:
    given = samples()
    with own_rewards(judge(tmp_path, REWARDS, "length"), [one.prompt for one in given]) as functions:
        reply = functions.by(0, given, {"global_step": 2})
    assert reply["rewards"] == [2.75, 2.5, 3.0] and reply["log_metric"] == [["longest", 4.0]]


def test_numbers_of_other_libraries_are_rewards(tmp_path: Path) -> None:
    values = {
        "[1, 2.5, None]": [1.0, 2.5, None],
        "(True, False, None)": [1.0, 0.0, None],
        "numpy.array([1, 2, 3])": [1.0, 2.0, 3.0],
        "[torch.tensor(1.5), numpy.float32(2), True]": [1.5, 2.0, 1.0],
        "iter([0, 1, 2])": [0.0, 1.0, 2.0],
    }
    source = "import numpy, torch\n" + "".join(
        f"def f{n}(completions, **_):\n    return {value}\n" for n, value in enumerate(values)
    )
    own = judge(tmp_path, source, *(f"f{n}" for n in range(len(values))))
    with own_rewards(own, []) as functions:
        for number, expected in enumerate(values.values()):
            assert functions.by(number, samples())["rewards"] == expected


FAULTS = {
    "return [1 / (text != 'It is 8.') for text in completions]": ["ZeroDivisionError", "for prompt 'b' ("],
    "raise SystemExit(3)": ["SystemExit", "prompt 'a'"],
    "return [1, 2]": ["returned 2 rewards for 3 completions", ") to 'c' ("],
    "return [1, float('nan'), 0]": ["returned nan", "prompt 'b'", "None for no verdict"],
    "return [1, 1, float('inf')]": ["returned inf", "prompt 'c'"],
    "return [1, 'good', 0]": ["returned 'good'", "prompt 'b'"],
    "return [1, [1, 2], 0]": ["returned [1, 2]", "prompt 'b'"],
    "return 1.0": ["returned a float; return a list"],
    "return None": ["returned a NoneType; return a list"],
    "return 'abc'": ["returned a str; return a list"],
    "return {'a': 1}": ["returned a dict; return a list"],
    "assert len(completions) < 2; return [1]": ["AssertionError", "for prompts 'a' ("],
    "import os; os._exit(7)": ["ended its process (exit status 7)"],
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRewards]:
    source = "".join(f"def bad{n}(completions, **_):\n    {body}\n" for n, body in enumerate(FAULTS))
    names = [f"bad{n}" for n in range(len(FAULTS))]
    with own_rewards(judge(tmp_path_factory.mktemp("faulty"), source, *names), []) as functions:
        yield functions


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a_fault_is_named_with_function_line_and_row(faulty: OwnRewards, number: int) -> None:
    words = [*FAULTS.values()][number]
    with pytest.raises(UserError) as refusal:
        faulty.by(number, samples())
    line = f"in line {2 * number + 2}: " if "Error" in words[0] or "Exit" in words[0] else ""
    assert all(
        word in str(refusal.value) for word in ["judge.function", f"rewards.py:bad{number}", line, *words]
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "def f(completions, truth, **_): return []",
            ["missing a required argument: 'truth'", "ground_truth, id, level"],
        ),
        ("def f(", ["fails to load", "SyntaxError"]),
        ("def g(completions): return []", ["has no function 'f'; it has g"]),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(tmp_path: Path, source: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        rewarded(judge(tmp_path, source + "\n", "f"), samples())
    assert all(word in str(refusal.value) for word in ["judge.function", *words])


@pytest.mark.parametrize("where", ["called", "loaded"])
def test_a_function_that_hangs_is_stopped_with_what_it_started(tmp_path: Path, where: str) -> None:
    hang = (
        "import os, subprocess, time\n"
        f"def hang():\n    one = subprocess.Popen(['sleep', '60'])\n"
        f"    open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{one.pid}}')\n    time.sleep(60)\n"
    )
    source = hang + ("hang()\n" if where == "loaded" else "") + "def f(completions, **_):\n    hang()\n"
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"rewards\.py:f took longer than judge\.timeout, 3 seconds, and was stopped"
    ):
        rewarded(judge(tmp_path, source, "f", timeout=3.0), samples())
    assert time.monotonic() - began < 30
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert is_gone(pid)


def is_gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # ended; who reaps it is the machine's business
        time.sleep(0.1)
    return False


def test_a_column_that_no_json_has_is_refused(tmp_path: Path) -> None:
    from datetime import date

    prompt = Prompt("one", "2+2?", columns={"when": date(2026, 1, 1)})
    with pytest.raises(UserError, match=r"a column holds a date"):
        rewarded(
            judge(tmp_path, "def f(completions, **_):\n    return [1]\n", "f"), [Sample(prompt, "x", [1])]
        )


def test_a_module_beside_the_file_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("ONE = 1\n")
    source = "from beside_it import ONE\ndef f(completions, **_):\n    return [ONE for _ in completions]\n"
    assert rewarded(judge(tmp_path, source, "f"), samples()) == [1.0, 1.0, 1.0]


def test_a_sum_has_the_weights_and_none_counts_for_nothing() -> None:
    class Replies:
        names = ("one", "two")

        def ask(self, number: int, request: dict[str, Any]) -> dict[str, Any]:
            json.dumps(request)
            return {"rewards": [[1.0, 2.0, None], [None, 1.0, None]][number]}

    own = OwnRewards(Replies(), [2.0, -1.0], [])  # type: ignore[arg-type]
    assert own.combined(samples()) == [2.0, 3.0, None]
