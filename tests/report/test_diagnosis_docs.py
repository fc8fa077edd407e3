"""The page on diagnoses: written from the table in the code."""

import ast
import inspect
import json
import re
import string
from itertools import pairwise
from pathlib import Path

import pytest

import render_diagnoses
from allo.recipe import load_recipe
from allo.report import evidence, faults
from allo.report.diagnosis import DIAGNOSES, EVALUATED, TRAINED, Diagnosis, Evidence, _advice

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "benchmarks" / "runs" / "published.yaml"
DPO = ROOT / "src" / "allo" / "demo" / "dpo.yaml"


def test_the_page_has_every_sentence_and_bound_of_the_code() -> None:
    text = render_diagnoses.PAGE.read_text(encoding="utf-8")
    assert render_diagnoses.page(text) == text, "run scripts/render_diagnoses.py"
    for each in DIAGNOSES:
        assert f"| {each.name} |" in text and each.meaning in text


def test_every_bound_has_its_reason() -> None:
    for module in (evidence, faults):
        body = ast.parse(inspect.getsource(module)).body
        for one, after in pairwise(body):
            if isinstance(one, ast.Assign) and isinstance(one.value, ast.Constant):
                assert isinstance(after, ast.Expr) and ast.literal_eval(after.value), ast.unparse(one)


@pytest.mark.parametrize("diagnosis", DIAGNOSES, ids=lambda each: each.name)
def test_a_diagnosis_has_a_name_of_its_own_numbers_and_advice(diagnosis: Diagnosis) -> None:
    assert [each.name for each in DIAGNOSES].count(diagnosis.name) == 1
    assert set(diagnosis.stages) <= {*TRAINED, EVALUATED} and diagnosis.changes
    assert any(name for _, name, _, _ in string.Formatter().parse(diagnosis.happened))
    assert diagnosis.find.__doc__ and diagnosis.find.__doc__.startswith("Find ")
    assert all(change.split()[0] in ("raise", "lower", "set") for change in diagnosis.changes)


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        (PUBLISHED, ()),
        (PUBLISHED, ("improve.training.max_steps=8", "forget.training.max_steps=8")),
        (PUBLISHED, ("improve.loss=simpo", "improve.keep=1.0", "improve.beta=2.0")),
        (PUBLISHED, ("improve.loss=rft", "improve.keep=1.0", "forget.loss=unlikelihood", "forget.until=0.1")),
        (DPO, ("improve.loss=ipo", "improve.anchor=0.5")),
        (DPO, ("improve.trainer=lora", "improve.keep=0.5")),
        (DPO, ("data.pairs=null", "data.feedback=rows.jsonl", "improve.loss=bco")),
    ],
)
def test_a_recipe_takes_every_change_that_it_is_advised(form: Path, settings: tuple[str, ...]) -> None:
    resolved = json.loads(load_recipe(form, [*settings]).model_dump_json())
    found = set()
    for diagnosis in DIAGNOSES:
        for stage in diagnosis.stages:
            text = _advice(diagnosis.changes, Evidence(stage, (), resolved), {"bound": "0.1"})
            found |= set(re.findall(r"(raise|lower) ([\w.]+) \(now ([^)]+)\)", text.lower()))
            for key, value in re.findall(r"set ([\w.]+) to (\d+\.\d+)", text.lower()):
                load_recipe(form, [*settings, f"{key}={value}"])
    assert len(found) > 4
    for verb, key, now in found:
        changed = float(now) / 2 if verb == "lower" else 2 * float(now) or 1.0
        load_recipe(
            form,
            [
                *settings,
                f"{key}={int(changed) if key.endswith(('max_steps', 'accumulation_steps')) else changed}",
            ],
        )
