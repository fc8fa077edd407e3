"""A recipe whose samples a function of the user's own judges."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from allo import tasks
from allo.files.artifacts import write_jsonl
from allo.recipe import Recipe
from tiny_run import tiny as tiny_recipe

NUM_PROMPTS = 12
QUICK = (
    "sft=null",
    "data.limit=null",
    "evaluate.kl=null",
    "score.scorer=edit",
    "score.beside=[]",
    "sample.max_new_tokens=40",
)
RIGHT = '''
import re

def right(completions, truth, **kwargs):
    """1.0 if the last number of the text is the row's."""
    found = [re.findall(r"\\d+", text) for text in completions]
    return [float(bool(numbers) and numbers[-1] == want["number"]) for numbers, want in zip(found, truth, strict=True)]
'''
LENGTH = """
def length(completion_ids, **kwargs):
    return [-len(ids) / 10 for ids in completion_ids]
"""


def rows() -> list[dict[str, Any]]:
    """Rows as for TRL: no `answer`, and columns of the user's own."""
    found = islice(tasks.load("planted_flaws", "train"), NUM_PROMPTS)
    return [{"id": one.id, "prompt": one.prompt, "truth": {"number": one.answer}} for one in found]


def write_inputs(folder: Path, source: str = RIGHT + LENGTH) -> Path:
    """Write the rows and the functions, and return the folder."""
    write_jsonl(folder / "rows.jsonl", rows())
    (folder / "rewards.py").write_text(source)
    return folder


def own_recipe(inputs: Path, out: Path, function: str | list[str], *more: str) -> Recipe:
    """The tiny run on rows that only the function can judge, measured on them."""
    names = [function] if isinstance(function, str) else function
    judge = {"function": [f"{inputs / 'rewards.py'}:{name}" for name in names]}
    return tiny_recipe(
        out,
        f"data={{file: {inputs / 'rows.jsonl'}}}",
        f"judge={json.dumps(judge)}",
        f"evaluate.sets={{own: {{file: {inputs / 'rows.jsonl'}, limit: 6}}}}",
        *QUICK,
        *more,
    )
