"""The speed benchmark gives every system the same work, and its record says all that it should."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from allo.tasks import planted_flaws
from tiny import LABORATORY, TOKENIZER

pytest.importorskip("trl", reason="TRL is what is compared with; install the extra `trl`")
pytest.importorskip("peft", reason="PEFT is what is compared with; install the extra `peft`")

DENSITY = 0.05
# fp32: the same loss by another order of sums.
TOLERANCE = 1e-5
# A random mask's share, in standard deviations of a binomial.
SIGMAS = 6
STEPS = 2
# Warnings that TRL 1.16, PEFT and torch give by themselves.
pytestmark = [
    pytest.mark.slow,
    # TRL reads and calls names that transformers 5.23 has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_(en|dis)able` is deprecated:FutureWarning"),
    # PEFT's SHiRA makes a sparse tensor each time.
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
]


@pytest.fixture(scope="module")
def benchmark() -> Iterator[SimpleNamespace]:
    """The benchmark's modules, imported without progress bars."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        from benchmarks.speed import baselines, driver, gpu_7b, growth, one, ours, work

        yield SimpleNamespace(
            baselines=baselines, driver=driver, gpu_7b=gpu_7b, growth=growth, one=one, ours=ours, work=work
        )


@dataclass(frozen=True)
class Outcome:
    """The figures that a run of the driver measured, by system, and the record that it wrote."""

    figures: dict[str, Any]
    record: dict[str, Any]
    work: Any


@pytest.fixture(scope="module")
def outcome(benchmark: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """All systems on the laboratory's model, in this process."""
    folder = tmp_path_factory.mktemp("speed")
    problems(folder / "gsm8k")
    figures, seen = {}, []

    def measure(system: str, work: Any) -> Any:
        figures[system] = benchmark.one.measure(system, work)
        seen.append(work)
        return figures[system]

    arguments = {
        "--model": LABORATORY,
        "--data-folder": folder,
        "--dtype": "float32",
        "--rounds": 1,
        "--steps": STEPS,
        "--density": DENSITY,
        "--output": folder / "record.json",
    }
    benchmark.driver.main([str(part) for pair in arguments.items() for part in pair], measure=measure)
    assert all(work == seen[0] for work in seen), "every system has the same work"
    return Outcome(figures, json.loads((folder / "record.json").read_text()), seen[0])


def problems(folder: Path) -> None:
    """Rows as GSM8K's, in the laboratory's words."""
    folder.mkdir()
    rows = [
        {"id": prompt.id, "question": prompt.prompt, "answer": prompt.answer, "solution": prompt.solution}
        for prompt in islice(planted_flaws.load("train"), 400)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_system_trains_the_same_pairs(outcome: Outcome, benchmark: SimpleNamespace) -> None:
    assert set(outcome.figures) == set(benchmark.one.SYSTEMS)
    assert len({figures.num_tokens for figures in outcome.figures.values()}) == 1
    for system, figures in outcome.figures.items():
        assert figures.num_tokens > STEPS * outcome.work.pairs_a_step, system
        assert len(figures.losses) == STEPS + 1, system
        assert len(figures.seconds) == len(figures.optimizer_seconds) == STEPS, system


def test_systems_of_one_arithmetic_report_one_loss(outcome: Outcome, benchmark: SimpleNamespace) -> None:
    losses = {system: figures.losses for system, figures in outcome.figures.items()}
    same = {
        "TRL": [benchmark.ours.FULL, "TRL, precomputed reference"],
        "allo": [
            "allo, precomputed reference",
            "allo, two rows a pair",
            "allo, whole logits",
            "allo, not grouped by length",
            "allo, token budget",
            "allo, activation checkpointing",
            "allo, prompts",
            "allo, prompts, precomputed reference",
        ],
    }
    for one, others in same.items():
        for other in others:
            assert losses[other] == pytest.approx(losses[one], abs=TOLERANCE), (one, other)
    # They learnt, and not the same: else equal losses would say nothing.
    assert abs(losses["TRL"][-1] - losses["TRL"][0]) > 10 * TOLERANCE
    assert abs(losses["TRL"][-1] - losses["allo"][-1]) > 10 * TOLERANCE


def test_each_system_trains_as_many_weights_as_it_says(outcome: Outcome, benchmark: SimpleNamespace) -> None:
    policy = outcome.work.load_policy()
    sizes = [param.numel() for param in policy.parameters()]
    head = policy.get_output_embeddings()
    adapted = sum(
        sum(module.weight.shape)
        for module in policy.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    trained = {system: figures.num_trained for system, figures in outcome.figures.items()}
    assert (
        trained["TRL"] == trained["TRL, precomputed reference"] == trained[benchmark.ours.FULL] == sum(sizes)
    )
    assert trained["TRL + LoRA"] == benchmark.baselines.LORA_RANK * adapted
    assert trained["allo"] == trained["allo, lean"] == sum(round(DENSITY * size) for size in sizes)
    deviation = (DENSITY * (1 - DENSITY) * sum(sizes)) ** 0.5
    assert abs(trained["released arithmetic"] - DENSITY * sum(sizes)) < SIGMAS * deviation
    # SHiRA's number comes in multiples of r * (rows + columns); rows in whole rows.
    assert abs(trained["TRL + SHiRA"] - DENSITY * sum(sizes)) <= adapted / 2
    matrices = [param.shape for param in policy.parameters() if param.ndim == 2]
    assert trained["allo, rows"] == sum(round(DENSITY * rows) * columns for rows, columns in matrices)


def test_what_trains_few_weights_stores_less_than_the_model(outcome: Outcome) -> None:
    stored = {system: figures.stored_bytes for system, figures in outcome.figures.items()}
    assert stored["TRL"] >= 4 * outcome.figures["TRL"].num_weights
    for system in ("allo", "allo, rows", "TRL + SHiRA"):
        assert 0 < stored[system] < stored["TRL"] / 2, system
    assert stored["released arithmetic"] == stored["TRL"]


def test_the_record_is_whole(outcome: Outcome, benchmark: SimpleNamespace) -> None:
    columns = outcome.record["columns"]
    assert columns == ["system", *benchmark.driver.COLUMNS, *benchmark.driver.COMPARED]
    assert [row[0] for row in outcome.record["rows"]] == list(benchmark.one.SYSTEMS)
    assert all(cell is not None for row in outcome.record["rows"] for cell in row)
    reference = dict(
        zip(columns, outcome.record["rows"][list(benchmark.one.SYSTEMS).index("TRL")], strict=True)
    )
    assert reference["time, of TRL's"] == reference["memory, of TRL's"] == 1
    for package in ("torch", "transformers", "trl", "peft"):
        assert re.search(rf"\b{package} \d", outcome.record["machine"])
    assert str(LABORATORY) not in outcome.record["command"]


def test_ratios_are_medians_of_a_rounds_ratios(benchmark: SimpleNamespace) -> None:
    """Round by round 2/4, 9/3 and 4/8: the median is 1/2, though the medians' ratio is 1."""
    found = {"TRL": [seconds(benchmark, 4), seconds(benchmark, 3), seconds(benchmark, 8)]}
    found["allo"] = [seconds(benchmark, 2), seconds(benchmark, 9), seconds(benchmark, 4)]
    _, row = benchmark.driver.table(found)
    assert row["time, of TRL's"] == 0.5
    assert row["seconds a step"] == {"value": 4, "low": 2, "high": 9}
    assert row["time, of precomputed TRL's"] is None


def seconds(benchmark: SimpleNamespace, value: float) -> Any:
    return benchmark.one.Figures(
        system="any",
        seconds=[value],
        optimizer_seconds=[0.1],
        losses=[0.7, 0.6],
        setup_seconds=1.0,
        peak_bytes=10**9,
        stored_bytes=10**6,
        num_tokens=100,
        num_weights=1000,
        num_trained=50,
    )


def test_a_process_of_its_own_measures_the_same_training(
    outcome: Outcome, benchmark: SimpleNamespace, tmp_path: Path
) -> None:
    pairs = benchmark.work.random_pairs(number=16, prompt=5, completion=7)
    benchmark.work.write_pairs(tmp_path / "pairs.jsonl", pairs)
    work = benchmark.work.Work(
        model=str(LABORATORY), tokenizer=str(LABORATORY), pairs=str(tmp_path / "pairs.jsonl"), dtype="float32"
    )
    apart = benchmark.driver.in_own_process("allo", work)
    here = benchmark.one.measure("allo", work)
    assert apart.losses == pytest.approx(here.losses, abs=TOLERANCE)
    assert apart.num_tokens == here.num_tokens == 8 * (2 * 5 + 7 + 7)


def test_7b_runs_on_toys_and_records_what_did_not_fit(benchmark: SimpleNamespace, tmp_path: Path) -> None:
    def measure(system: str, work: Any) -> Any:
        return None if system == "TRL" else benchmark.one.measure(system, work)

    output = tmp_path / "record.json"
    arguments = ["--tiny", "--device", "cpu", "--rounds", "2", "--steps", "1", "--output", str(output)]
    benchmark.gpu_7b.main(arguments, measure=measure)
    record = json.loads(output.read_text())
    rows = [dict(zip(record["columns"], row, strict=True)) for row in record["rows"]]
    asked = [(name, system) for name in benchmark.gpu_7b.SHAPES for system in benchmark.gpu_7b.SYSTEMS]
    assert [(row["model"], row["system"]) for row in rows] == asked
    for row in rows:
        assert (row["seconds a step"] == "out of memory") == (row["system"] == "TRL")
        assert (row["total peak, GB"] is None) == (row["system"] == "TRL")


@pytest.mark.parametrize(
    ("name", "published"), [("Llama-2-7B", 6_738_415_616), ("Llama-3-8B", 8_030_261_248)]
)
def test_the_shapes_have_the_published_number_of_weights(
    benchmark: SimpleNamespace, name: str, published: int
) -> None:
    policy = benchmark.work.random_llama(
        benchmark.gpu_7b.SHAPES[name], dtype=torch.bfloat16, device=torch.device("meta")
    )
    assert sum(param.numel() for param in policy.parameters()) == published
    assert {param.dtype for param in policy.parameters()} == {torch.bfloat16}


def test_growth_draws_what_it_recorded(benchmark: SimpleNamespace, tmp_path: Path) -> None:
    output, plots = tmp_path / "record.json", tmp_path / "plots"
    arguments = ["--tiny", "--steps", "1", "--output", str(output), "--plots", str(plots)]
    benchmark.growth.main(arguments, measure=benchmark.one.measure)
    drawn = {path.name: path.read_text() for path in plots.iterdir()}
    assert sorted(drawn) == [
        "growth-density.svg",
        "growth-million-weights.svg",
        "growth-pairs-a-prompt.svg",
        "growth-pairs-a-step.svg",
        "growth-prompts-share.svg",
        "growth-tokens-a-row.svg",
    ]
    for name, text in drawn.items():
        root = ET.fromstring(text)
        lines = root.findall(".//{http://www.w3.org/2000/svg}polyline")
        num_lines = 6 if "prompt" in name else 4  # with and without groups, and dense; seconds and memory
        assert [len(line.attrib["points"].split()) for line in lines] == [2] * num_lines
    again = tmp_path / "again"
    benchmark.growth.main(["--draw", str(output), "--plots", str(again)])
    assert {path.name: path.read_text() for path in again.iterdir()} == drawn


def test_the_released_optimizer_is_adamw_under_a_mask(benchmark: SimpleNamespace) -> None:
    """Selected entries move as AdamW moves them; the others decay, the released code's fault, and no more."""
    torch.manual_seed(0)
    start, mask = torch.randn(6, 5), (torch.rand(6, 5) < 0.5).float()
    masked, dense = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.1, "weight_decay": 0.3}
    optimizers = [
        benchmark.baselines.MaskedAdamW({masked: mask}, **settings),
        torch.optim.AdamW([dense], **settings),
    ]
    for _ in range(3):
        gradient = torch.randn(6, 5)
        for param, optimizer in zip((masked, dense), optimizers, strict=True):
            param.grad = gradient.clone()
            optimizer.step()
    selected = mask.bool()
    torch.testing.assert_close(masked[selected], dense[selected])
    torch.testing.assert_close(masked[~selected], start[~selected] * (1 - 0.1 * 0.3) ** 3)


@pytest.mark.parametrize(("size", "number"), [(10, 10), (10, 3), (1000, 999), (7, 0)])
def test_a_mask_has_exactly_the_wanted_number(benchmark: SimpleNamespace, size: int, number: int) -> None:
    found = benchmark.ours.spread(size, number).tolist()
    assert len(set(found)) == number
    assert found == sorted(found)
    assert all(0 <= index < size for index in found)


def test_a_corrupted_solution_differs_in_its_numbers_alone(benchmark: SimpleNamespace) -> None:
    text = "Ann has 12 + 3 = 15 pens."
    wrong = benchmark.work.other_numbers(text)
    assert re.sub(r"\d+", "", wrong) == re.sub(r"\d+", "", text)
    numbers = zip(re.findall(r"\d+", text), re.findall(r"\d+", wrong), strict=True)
    assert all(right != other for right, other in numbers)
    assert benchmark.work.other_numbers(text) == wrong


def test_the_warm_up_takes_the_shortest_of_the_pairs_that_are_not_measured(
    benchmark: SimpleNamespace, tmp_path: Path
) -> None:
    problems(tmp_path / "gsm8k")
    pairs = benchmark.work.gsm8k_pairs(tmp_path, TOKENIZER, steps=2, pairs_a_step=4, max_length=512)
    more = benchmark.work.gsm8k_pairs(tmp_path, TOKENIZER, steps=10, pairs_a_step=4, max_length=512)[4:]
    warm_up, measured = pairs[:4], pairs[4:]
    assert measured == more[:8]
    longest = max(benchmark.work.longest(TOKENIZER, pair) for pair in warm_up)
    assert not any(pair in measured for pair in warm_up)
    assert all(benchmark.work.longest(TOKENIZER, pair) >= longest for pair in more[8:] if pair not in warm_up)
