"""The growth of a step's time and memory with the model, the density, the length and the number of pairs.

    python -m benchmarks.speed.growth
    python -m benchmarks.speed.growth --draw benchmarks/results/growth-cpu.json

Random bf16 Llamas train on pairs of random words. One quantity varies, the others stay at the base: 12 million
weights, 5% selected, 128 tokens, 8 pairs per step, each with a prompt of its own of a third of the tokens. If several
pairs have a prompt, allo is also measured with `group: prompt`. Dense is TRL's DPO with AdamW on every weight. The plots are drawn
from the record alone.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from allo.files.artifacts import write_atomic
from benchmarks.plot import Mark, Panel, figure
from benchmarks.record import RESULTS, ROOT, Record, Row, read
from benchmarks.speed.driver import MB, TRL, Measure, in_own_process
from benchmarks.speed.one import Figures
from benchmarks.speed.work import LABORATORY, Work, random_pairs, write_pairs

PLOTS = ROOT / "docs" / "plots"
OURS = "allo"
PROMPTS = "allo, prompts"
LABELS = {OURS: "allo, 5% of the weights", PROMPTS: "allo, group: prompt", TRL: "dense (TRL, AdamW)"}
BATCH_SIZE = 2
COLUMNS = ("seconds a step", "peak over the policy, MB")


@dataclass(frozen=True)
class Point:
    """The settings of one measurement: the model's hidden size and layers, and the rest."""

    hidden: int = 384
    layers: int = 6
    density: float = 0.05
    length: int = 128
    pairs: int = 8
    a_prompt: int = 1
    prompt_share: float = 1 / 3

    @property
    def shape(self) -> dict[str, object]:
        return {
            "vocab_size": 4096,
            "hidden_size": self.hidden,
            "intermediate_size": 8 * self.hidden // 3,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 32,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        }


BASE = Point()
# The varied quantities, as the axes name them, and the points of each.
VARIED = {
    "million weights": [replace(BASE, hidden=192, layers=4), BASE, replace(BASE, hidden=640, layers=8)],
    "density, %": [replace(BASE, density=density) for density in (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)],
    "tokens a row": [replace(BASE, length=length) for length in (64, 128, 256, 512)],
    "pairs a step": [replace(BASE, pairs=pairs) for pairs in (4, 8, 16, 32)],
    "pairs a prompt": [replace(BASE, pairs=10, a_prompt=number) for number in (1, 2, 5, 10)],
    "prompt's share, %": [
        replace(BASE, pairs=10, a_prompt=5, prompt_share=share) for share in (0.2, 0.4, 0.6, 0.8)
    ],
}
TOY = Point(hidden=32, layers=1, length=16, pairs=2)
TOY_VARIED = {
    "million weights": [TOY, replace(TOY, hidden=64)],
    "density, %": [TOY, replace(TOY, density=1.0)],
    "tokens a row": [TOY, replace(TOY, length=32)],
    "pairs a step": [TOY, replace(TOY, pairs=4)],
    "pairs a prompt": [TOY, replace(TOY, a_prompt=2)],
    "prompt's share, %": [replace(TOY, a_prompt=2, prompt_share=share) for share in (0.25, 0.75)],
}


def measure_all(varied: dict[str, list[Point]], *, steps: int, measure: Measure) -> Iterator[Row]:
    """Yield a row for each varied quantity, point and system. Each point is measured once; dense, at one density."""
    known: dict[tuple[str, Point], Figures] = {}
    for quantity, points in varied.items():
        for point in points:
            with_prompts = (PROMPTS,) if quantity in ("pairs a prompt", "prompt's share, %") else ()
            for system in (OURS, *with_prompts, TRL):
                asked = replace(point, density=1.0) if system == TRL else point
                if (system, asked) not in known:
                    known[system, asked] = one_point(system, asked, steps=steps, measure=measure)
                figures = known[system, asked]
                yield {
                    "varied": quantity,
                    "at": value(quantity, point, figures),
                    "system": LABELS[system] if quantity != "density, %" or system == TRL else OURS,
                    COLUMNS[0]: figures.seconds_a_step,
                    COLUMNS[1]: figures.peak_bytes / MB,
                }


def one_point(system: str, point: Point, *, steps: int, measure: Measure) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        prompt = round(point.prompt_share * point.length)
        drawn = random_pairs(
            number=(steps + 1) * point.pairs,
            prompt=prompt,
            completion=point.length - prompt,
            a_prompt=point.a_prompt,
        )
        write_pairs(pairs, drawn)
        work = Work(
            model=point.shape,
            tokenizer=str(LABORATORY),
            pairs=str(pairs),
            batch_size=BATCH_SIZE,
            accumulation=point.pairs // BATCH_SIZE,
            max_length=point.length,
            density=point.density,
        )
        figures = measure(system, work)
    assert figures is not None  # a CPU's memory sufficed
    return figures


def value(quantity: str, point: Point, figures: Figures) -> float:
    """Return the point's value on the quantity's axis."""
    return {
        "million weights": figures.num_weights / 1e6,
        "density, %": 100 * point.density,
        "tokens a row": point.length,
        "pairs a step": point.pairs,
        "pairs a prompt": point.a_prompt,
        "prompt's share, %": 100 * point.prompt_share,
    }[quantity]


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Draw one file per varied quantity: seconds beside memory."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for quantity in dict.fromkeys(row["varied"] for row in rows):
        own = [row for row in rows if row["varied"] == quantity]
        systems = dict.fromkeys(row["system"] for row in own)
        panels = [
            Panel(
                title=column,
                x_label=quantity,
                lines={
                    system: [Mark(row["at"], row[column]) for row in own if row["system"] == system]
                    for system in systems
                },
            )
            for column in COLUMNS
        ]
        name = quantity.removesuffix(", %").replace(" ", "-").replace("'", "")
        paths.append(folder / f"growth-{name}.svg")
        write_atomic(paths[-1], figure(panels))
    return paths


def main(arguments: list[str] | None = None, *, measure: Measure = in_own_process) -> None:
    parser = argparse.ArgumentParser(description="Measure and draw how a DPO step grows.")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the code")
    parser.add_argument("--output", type=Path, default=RESULTS / "growth-cpu.json")
    parser.add_argument("--plots", type=Path, default=PLOTS)
    parser.add_argument("--draw", type=Path, metavar="RECORD", help="measure nothing: draw this record")
    options = parser.parse_args(arguments)
    if options.draw is not None:
        rows = read(options.draw)
    else:
        record, rows = Record(options.output, "growth", device="cpu"), []
        varied = TOY_VARIED if options.tiny else VARIED
        for row in measure_all(varied, steps=options.steps, measure=measure):
            print(", ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()))
            rows.append(row)
            record.write(rows)
    for path in draw(rows, options.plots):
        print(f"drawn: {path}")


if __name__ == "__main__":
    main()
