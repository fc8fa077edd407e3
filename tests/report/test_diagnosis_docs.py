"""The page on diagnoses: written from the table in the code."""

import ast
import inspect
import string
from itertools import pairwise

import pytest

import render_diagnoses
from allo.report import evidence, faults
from allo.report.diagnosis import DIAGNOSES, EVALUATED, TRAINED, Diagnosis


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
    assert all(change.split()[0] in ("raise", "lower") for change in diagnosis.changes)
