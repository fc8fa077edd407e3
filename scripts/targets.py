"""The targets beside the recorded figures: the first table of benchmarks/RESULTS.md."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Tables = dict[str, list[dict[str, Any]]]
Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A target. `measure` takes the rows of `table` that `of` chooses; `at_most` or `at_least` must hold."""

    name: str
    table: str
    of: Callable[[Row], bool]
    measure: Callable[[list[Row]], float]
    at_most: float | None = None
    at_least: float | None = None

    def row(self, tables: Tables) -> list[Any]:
        limit = f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"
        rows = [
            row
            for record in tables.get(self.table, [])
            for cells in record["rows"]
            if self.of(row := dict(zip(record["columns"], cells, strict=True)))
        ]
        if not rows:
            return [self.name, limit, None, "unmeasured"]
        found = self.measure(rows)
        met = found <= self.at_most if self.at_most is not None else found >= (self.at_least or 0)
        return [self.name, limit, found, "yes" if met else "**no**"]


def only(column: str) -> Callable[[list[Row]], float]:
    return lambda rows: rows[0][column]


def is_system(name: str) -> Callable[[Row], bool]:
    return lambda row: row["system"] == name


def largest_error(rows: list[Row]) -> float:
    return max(abs(row["planned / measured"] - 1) for row in rows)


def spread(column: str, choose: Callable[[list[float]], float]) -> Callable[[list[Row]], float]:
    return lambda rows: choose([row[column] for row in rows])


TIME, MEMORY, PRECOMPUTED = "time, of TRL's", "memory, of TRL's", "time, of precomputed TRL's"
BUDGET = "allo, token budget"
OWN = ("start", "allo", "own_samples", "allo_fifth", "allo_random_mask")  # ours and its controls


def is_other(row: Row) -> bool:
    """Return True for a method that ALLO should beat."""
    return row["method"] not in OWN


def largest_p(problems: str) -> Callable[[list[Row]], float]:
    """Return the largest p of the methods' differences to the reference; a method above the reference counts as 1."""

    def measure(rows: list[Row]) -> float:
        (difference,) = (name for name in rows[0] if name.startswith(f"{problems}, less "))
        return max(row[f"{problems}, p"] if row[difference]["value"] < 0 else 1.0 for row in rows)

    return measure


def range_of_rates(rows: list[Row]) -> float:
    return float(max(row["range of rates within 2 points"]["value"] for row in rows))


def least_auc(scorers: list[Row]) -> float:
    """Return the lowest AUC, over difficulties and families, of the scorer for which it is highest."""
    families = [name for name in scorers[0] if name.startswith(("told", "reworded"))]
    return max(min(float(row[family]["value"]) for family in families) for row in scorers)


STATE, SLOT = "state, B/weight", "slot, B/weight"
PEAK = "measured peak over the weights, B/weight"
TARGETS = (
    Target("step time over TRL's, bf16", "speed-bfloat16", is_system(BUDGET), only(TIME), at_most=0.25),
    Target("step memory over TRL's, bf16", "speed-bfloat16", is_system(BUDGET), only(MEMORY), at_most=0.2),
    Target(
        "step time over TRL's, both with a precomputed reference, bf16",
        "speed-bfloat16",
        is_system(f"{BUDGET}, precomputed reference"),
        only(PRECOMPUTED),
        at_most=0.3,
    ),
    Target(
        "state of 5% with a slot, bytes a weight beside its own 2",
        "selected-step",
        lambda row: row["device"] == "cpu",
        lambda rows: rows[0][STATE] + rows[0][SLOT],
        at_most=1.1,
    ),
    Target(
        "lean state of 5%, slots on the host, bytes a weight beside its own 2",
        "selected-step",
        lambda row: row["device"] == "cpu, lean",
        only(STATE),
        at_most=0.45,
    ),
    Target(
        "peak of a step on 5%, bytes a weight",
        "selected-step",
        lambda row: row["device"] == "cpu",
        only(PEAK),
        at_most=1.5,
    ),
    Target(
        "backward pass with 10% of rows, over that with single entries, bf16",
        "rows-backward",
        lambda row: row["trained"] == "rows" and row["dtype"] == "bfloat16",
        only("of single entries"),
        at_most=0.75,
    ),
    Target(
        "plan's largest error, stages that train or score",
        "plan",
        lambda row: row["stage"] != "sample",
        largest_error,
        at_most=0.15,
    ),
    Target(
        "plan's largest error, sampling",
        "plan",
        lambda row: row["stage"] == "sample",
        largest_error,
        at_most=0.15,
    ),
    Target(
        "selection's time over reading and subtracting once by one thread, from disk",
        "files-selection",
        lambda row: row["read from"] == "disk",
        only("select / plain"),
        at_most=3,
    ),
    Target(
        "the same from the page cache, by one thread",
        "files-selection",
        lambda row: row["read from"] == "page cache",
        only("select / plain"),
        at_most=3,
    ),
    Target(
        "selection's time over reading and subtracting once by a thread a core, from disk",
        "files-selection",
        lambda row: row["read from"] == "disk",
        only("select / threads"),
        at_most=3,
    ),
    Target(
        "the same from the page cache, by a thread a core",
        "files-selection",
        lambda row: row["read from"] == "page cache",
        only("select / threads"),
        at_most=3,
    ),
    Target(
        "selection's memory beside the mask, of that allowed",
        "files-selection",
        lambda row: True,
        lambda rows: max(row["memory beside the mask, MiB"] / row["allowed, MiB"] for row in rows),
        at_most=1,
    ),
    Target(
        "bytes an index at 5%",
        "files-gap-code",
        lambda row: row["density"] == 0.05,
        only("bytes an entry"),
        at_most=0.75,
    ),
    Target(
        "bytes an index at 10%",
        "files-gap-code",
        lambda row: row["density"] == 0.1,
        only("bytes an entry"),
        at_most=0.61,
    ),
    Target(
        "delta of 5% over its bf16 checkpoint",
        "files-gap-code",
        lambda row: row["density"] == 0.05,
        only("delta / bf16 checkpoint"),
        at_most=0.075,
    ),
    Target(
        "encoding, MB/s",
        "files-gap-code",
        lambda row: row["density"] >= 0.05,
        spread("encode, MB/s", min),
        at_least=300,
    ),
    Target(
        "decoding, MB/s",
        "files-gap-code",
        lambda row: row["density"] >= 0.05,
        spread("decode, MB/s", min),
        at_least=300,
    ),
    Target(
        "sampling's speed over `generate`'s, GSM8K",
        "sampling",
        lambda row: "gsm8k" in row["prompts"],
        only("ratio"),
        at_least=1.8,
    ),
    Target(
        "AUC at every difficulty of both families, best scorer that sees no solution",
        "lab-scorers",
        lambda row: row["sees solutions"] == "no",
        least_auc,
        at_least=0.98,
    ),
    *(
        Target(
            f"laboratory in many passes, ALLO against every other method, {problems}: largest p",
            "lab-passes",
            is_other,
            largest_p(problems),
            at_most=0.01,
        )
        for problems in ("test", "reworded", "unseen")
    ),
    Target(
        "laboratory, many passes: range of learning rates within 2 points of ALLO's best",
        "lab-passes-rates",
        lambda row: row["method"] == "allo",
        range_of_rates,
        at_least=10,
    ),
    Target(
        "peak of a 7B step on 5%, GB",
        "speed-7b",
        lambda row: row["system"].startswith("allo") and row["total peak, GB"] is not None,
        spread("total peak, GB", max),
        at_most=24,
    ),
)


def rows(tables: Tables) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of the table."""
    return ["what", "target", "measured", "met"], [target.row(tables) for target in TARGETS]
