"""Write the examples of docs/scaling.md: each `allo plan` command, and the table of what it finds.

python scripts/render_scaling.py            # write the page
python scripts/render_scaling.py --check    # exit with 1 if the page is out of date
"""

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from allo.cli import app
from generated import write_or_check

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
PLACE = re.compile(
    r"(?P<open><!-- plan:(?P<name>[\w-]+) -->\n).*?(?P<close><!-- /plan:(?P=name) -->)", re.DOTALL
)
NAMES = {
    "selected, copies": "selected weights, copies",
    "selected, shards": "selected weights, shards",
    "all, copies": "all weights, DDP",
    "all, shards": "all weights, FSDP2",
    "LoRA, copies": "LoRA, DDP",
    "LoRA, shards": "LoRA, FSDP2",
}
ALONE = {"selected, copies": "selected weights", "all, copies": "all weights", "LoRA, copies": "LoRA"}
PAIRS_ALONE = ("score=null", "forget=null")
PAIRS = 64  # of a step


@dataclass(frozen=True)
class Example:
    """A model on GPUs, with the settings of the recipe and the speed that is assumed."""

    size: str
    gpus: int
    memory: str
    tflops: int
    link: int
    nodes: int = 1
    pairs: int = 1  # of a micro-batch
    settings: Sequence[str] = ()

    @property
    def arguments(self) -> list[str]:
        machine = [
            "--gpu",
            self.memory,
            "--gpus",
            str(self.gpus),
            "--tflops",
            str(self.tflops),
            "--link",
            str(self.link),
        ]
        nodes = ["--nodes", str(self.nodes)] if self.nodes > 1 else []
        training = {
            "per_device_train_batch_size": self.pairs,
            "gradient_accumulation_steps": PAIRS // self.pairs,
            "activation_checkpointing": "true",
        }
        steps = [f"improve.training.{key}={value}" for key, value in training.items()]
        settings = [word for each in (*PAIRS_ALONE, *steps, *self.settings) for word in ("--set", each)]
        return ["plan", "--size", self.size, *machine, *nodes, *settings]


SMALL, LARGE = {"memory": "24GB", "tflops": 80, "link": 20}, {"memory": "80GB", "tflops": 400, "link": 300}
EXAMPLES = {
    "8b-1": Example(
        "8B",
        1,
        **SMALL,
        settings=("improve.density=0.05", "improve.lean=true", "improve.reference=precomputed"),
    ),
    "8b-4": Example("8B", 4, **SMALL, pairs=4),
    "70b-8": Example("70B", 8, **LARGE, pairs=8, settings=("improve.density=0.05",)),
    "405b-64": Example("405B", 64, **LARGE, nodes=8, settings=("improve.density=0.05",)),
}


def planned(example: Example) -> dict[str, Any]:
    """Run an example's command, and return what it finds."""
    result = CliRunner().invoke(app, [*example.arguments, "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def shown(example: Example, found: dict[str, Any]) -> str:
    """Return an example's command, and its table: the steps of `improve`."""
    names = NAMES if example.gpus > 1 else ALONE
    rows = [
        f"| {names[step['name']]} | {_gigabytes(step['memory'])}{'' if step['memory'] <= found['limit'] else ', too much'} "
        f"| {_gigabytes(step['sent'])} | {step['compute']:.3g} | {step['wire']:.3g} |"
        for step in found["steps"]
        if step["stage"] == "improve" and step["name"] in names
    ]
    head = [
        "| trained | GB a GPU | GB sent a step | computing, s | sending, s |",
        "| :-- | --: | --: | --: | --: |",
    ]
    words = shlex.join(["allo", *example.arguments])
    command = ["```bash", words.replace(" --set", " \\\n  --set"), "```"]
    return "\n".join([*command, "", *head, *rows, "", ""])


def _gigabytes(number: int) -> str:
    return "0" if not number else f"{number / 1e9:,.1f}" if number >= 1e8 else f"{number / 1e9:.2g}"


def page(text: str, names: Sequence[str] | None = None) -> str:
    """Return the page with its examples, or with those of `names`, written anew."""

    def written(match: re.Match[str]) -> str:
        name = match["name"]
        if names is not None and name not in names:
            return match[0]
        return match["open"] + shown(EXAMPLES[name], planned(EXAMPLES[name])) + match["close"]

    return PLACE.sub(written, text)


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(PAGE.read_text(encoding="utf-8")), script="render_scaling.py"))
