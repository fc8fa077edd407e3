"""The instrument of `make families`: it sees faults, and a family that dies is a row and not the end."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from allo.errors import UserError
from allo.models.block_attention import BlockMask, mask_of
from benchmarks.families import checks, run, run_checks
from benchmarks.families.checks import Case
from benchmarks.families.families import BY_NAME, FAMILIES
from benchmarks.families.folders import build, make, text_weights
from benchmarks.families.outcome import Outcome, WrongError, outcome
from benchmarks.families.tables import write_tables

LLAMA = BY_NAME["Llama 2, 3"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("llama")
    with run.quiet():
        return Case(LLAMA, make(LLAMA, folder / "checkpoint"), folder / "work")


def raising(error: Exception) -> Callable[[], str]:
    def check() -> str:
        raise error

    return check


def test_a_check_holds_is_refused_is_wrong_or_crashes() -> None:
    assert outcome(lambda: "shared") == Outcome("ok", "shared")
    assert outcome(raising(UserError("no such family"))).kind == "refused"
    assert outcome(raising(WrongError("differs by 3"))) == Outcome("wrong", "differs by 3")
    crash = outcome(raising(KeyError("keys")))
    assert (crash.kind, crash.what) == ("crash", "KeyError: 'keys'")


def test_a_crash_names_the_place_in_allo(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("allo.models.policy.head_of", lambda model: None)
    found = outcome(checks.padded_logps, case)
    assert found.kind == "crash" and "losses/logps.py:" in found.place


def off_by(difference: float) -> Callable[..., torch.Tensor]:
    ours = checks.per_token_logps
    return lambda model, batch: ours(model, batch) + difference


@pytest.mark.parametrize("check", [checks.padded_logps, checks.shared_logps, checks.trained_logps])
def test_log_probs_may_differ_by_rounding_and_no_more(
    check: Callable[[Case], str], case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "per_token_logps", off_by(2e-5))
    assert outcome(check, case).holds
    monkeypatch.setattr(checks, "per_token_logps", off_by(5e-4))
    found = outcome(check, case)
    assert found.kind == "wrong" and found.what.startswith("log-probs differ by 0.0005")


def test_a_decoded_token_that_generate_does_not_choose_is_found(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outcome(checks.decodes, case).holds
    ours = checks.decode

    def spoiled(*args: Any, **settings: Any) -> list[list[int]]:
        rows = ours(*args, **settings)
        return [[*row[:-1], row[-1] - 1] for row in rows]

    monkeypatch.setattr(checks, "decode", spoiled)
    assert outcome(checks.decodes, case).kind == "wrong"


def test_copies_of_a_prompt_that_differ_are_found(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = checks.decode

    def one_shorter(*args: Any, **settings: Any) -> list[list[int]]:
        first, second, *others = ours(*args, **settings)
        return [first, second[:-1], *others]

    monkeypatch.setattr(checks, "decode", one_shorter)
    assert outcome(checks.decodes, case) == Outcome("wrong", "copies of prompt 0 differ")


def test_a_plan_that_is_off_by_a_fifth_is_found(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    # A plan counts attention by a mask, as on a GPU; a CPU takes less.
    monkeypatch.setattr(BlockMask, "of", mask_of)
    ours = checks.plan_stage

    class Off:
        def __init__(self, *given: Any) -> None:
            self.total = ours(*given).total * 1.2

    monkeypatch.setattr(checks, "plan_stage", Off)
    found = outcome(checks.plans, case)
    assert found.kind == "wrong" and found.what.endswith("1.20")


def test_faults_of_a_run_are_found(case: Case) -> None:
    with run.quiet():
        assert outcome(run_checks.runs, case).holds
        assert outcome(run_checks.selects_k, case).holds
        assert outcome(run_checks.delta_applies, case).holds
        assert outcome(run_checks.result_loads, case).holds
        result = case.work / run_checks.RUN / run_checks.IMPROVE / run_checks.RESULT
        other = build(LLAMA)
        with torch.no_grad():
            other.model.norm.weight += 1
        other.save_pretrained(result)
        assert "changed that no mask selects" in outcome(run_checks.selects_k, case).what
        assert (
            "differs between the applied delta and the result" in outcome(run_checks.delta_applies, case).what
        )
        del other.lm_head
        other.save_pretrained(result)
        assert outcome(run_checks.result_loads, case).kind == "wrong"


def test_a_process_that_dies_is_a_row_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(family: Any, **_: Any) -> dict[str, Outcome]:
        if family is LLAMA:
            os._exit(7)
        return dict.fromkeys(run.NAMES, Outcome("ok"))

    monkeypatch.setattr(run, "outcomes_of", dies)
    families = [LLAMA, BY_NAME["Qwen3"]]
    files = {family.name: tmp_path / f"{family.slug}.json" for family in families}
    assert {family.name for family in run.try_all(families, files, jobs=2)} == {"Llama 2, 3", "Qwen3"}
    died, fine = (json.loads(files[family.name].read_text()) for family in families)
    assert {check["kind"] for check in died["checks"].values()} == {"crash"}
    assert "ended with 7" in died["checks"]["run"]["what"]
    assert run.row(fine)["works"] == "everything"


def test_a_family_that_dies_keeps_what_it_was_found_to_be_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(family: Any, *, keep: Callable[[dict[str, Outcome]], None], **_: Any) -> dict[str, Outcome]:
        keep({"check": Outcome("ok"), "loads": Outcome("ok", "sdpa")})
        os._exit(7)

    monkeypatch.setattr(run, "outcomes_of", dies)
    monkeypatch.setattr(run, "commit_of", lambda *_, **__: {"commit": "a", "dirty": False})
    monkeypatch.setattr(run, "_later", lambda _: {"a"})
    list(run.try_all([LLAMA], {LLAMA.name: tmp_path / "x.json"}, jobs=1))
    found = json.loads((tmp_path / "x.json").read_text())["checks"]
    assert [name for name in run.NAMES if found[name]["kind"] == "crash"] == [*run.NAMES[2:]]


def test_a_run_goes_on_from_the_checks_that_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def check(name: str, after: str | None = None) -> run.Check:
        return run.Check(name, lambda case: tried.append(name) or "", after)

    checks = (check("loads"), check("run", "loads"), check("delta", "run"), check("plan", "loads"))
    monkeypatch.setattr(run, "CHECKS", checks)
    kept: list[list[str]] = []
    run.outcomes_of(LLAMA, only=("loads", "run"), keep=lambda found: kept.append([*found]))
    assert tried == ["loads", "run"] and kept == [["loads"], ["loads", "run"]]
    tried.clear()
    known = {"loads": Outcome("ok"), "run": Outcome("ok")}
    assert [*run.outcomes_of(LLAMA, only=("loads", "plan"), known=known)] == ["loads", "run", "plan"]
    assert tried == ["loads", "plan"]
    tried.clear()
    run.outcomes_of(LLAMA, only=("delta",), known=known)
    assert tried == ["run", "delta"]  # whose files the check reads
    tried.clear()
    failed = run.outcomes_of(LLAMA, only=("plan",), known={"loads": Outcome("crash")})
    assert failed["plan"].holds  # loading was tried again


def test_outcomes_of_another_commit_or_version_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"commit": "a", "dirty": False, "machine": "m"}
    monkeypatch.setattr(run, "_made", lambda: dict(made))
    monkeypatch.setattr(run, "_later", lambda since: {"a"} if since is None else {"a", "b"})
    file, found = tmp_path / "x.json", {"check": Outcome("ok")}
    assert run.Kept.read(file).checks == {}
    run.Kept(file).write(LLAMA, found, seconds=1.0)
    assert run.Kept.read(file).checks == found
    for other in ({"machine": "n"}, {"dirty": True}):
        monkeypatch.setattr(run, "_made", lambda other=other: made | other)
        assert run.Kept.read(file).checks == {}
    monkeypatch.setattr(run, "_made", lambda: made | {"commit": "b"})
    monkeypatch.setattr(run, "_later", lambda since: {"b"} if since is None else {"a", "b"})
    assert run.Kept.read(file).checks == {}
    run.Kept.read(file, "a").write(LLAMA, found, seconds=1.5)
    stored = json.loads(file.read_text())
    assert (stored["made"]["commit"], stored["seconds"]) == ("a b", 2.5)


def found_with(**kinds: Outcome) -> dict[str, Any]:
    checked = dict.fromkeys(run.NAMES, Outcome("ok")) | {"loads": Outcome("ok", "LlamaForCausalLM, sdpa")}
    checked |= {name.replace("_", " "): each for name, each in kinds.items()}
    return {"family": "F", "type": "f", "checks": {name: each.as_json() for name, each in checked.items()}}


def test_a_row_says_what_works_and_how() -> None:
    shared = Outcome("ok", "shared")
    row = run.row(found_with(shared_prefix=shared, decoding=shared))
    assert row["works"] == "everything"
    assert row["how"] == "sdpa, pairs share their prompt, samples share their prompt"
    row = run.row(found_with(decoding=Outcome("crash", "KeyError"), PEFT=Outcome("refused", "no")))
    assert (row["works"], row["how"]) == ("everything but decoding, PEFT", "sdpa")
    early = Outcome("refused", "no attention; use Llama")
    row = run.row(found_with(check=early, run=Outcome("crash", "KeyError")))
    assert row["works"] == "no: no attention; use Llama"
    located = {f"locate {name}": Outcome("crash") for name in run.CRITERIA}
    assert run.row(found_with(**located))["works"] == "everything but locating"
    short = found_with()
    short["checks"] = {name: short["checks"][name] for name in run.SHORT}
    assert run.row(short)["works"] == "every short check"


def test_the_table_names_each_failing_check_with_its_place(tmp_path: Path) -> None:
    write_tables([found_with(plan=Outcome("crash", "KeyError: 'x'", "plan/memory.py:3"))], tmp_path / "t.md")
    text = (tmp_path / "t.md").read_text()
    assert "CRASH" in text and "- F x plan: crash: KeyError: 'x' [plan/memory.py:3]" in text


def test_families_have_names_and_folders_of_their_own() -> None:
    assert len(BY_NAME) == len({family.slug for family in FAMILIES}) == len(FAMILIES)
    smoke = {family.model_type for family in FAMILIES if family.smoke}
    assert smoke == {"llama", "qwen3_moe", "qwen3_5_text", "gemma4_text", "gpt_oss", "deepseek_v3", "gemma3"}


def test_a_checkpoint_is_the_same_each_time_and_no_two_families_have_the_same_weights() -> None:
    first, second = (dict(build(LLAMA).named_parameters()) for _ in range(2))
    other = dict(build(BY_NAME["Mistral"]).named_parameters())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_text_part_of_a_wrapper_leaves_its_tower_out() -> None:
    wrapper = build(BY_NAME["Gemma 3 (wrapper)"])
    names = set(text_weights(wrapper))
    assert names and not any("vision" in name or "projector" in name for name in names)
    assert len(names) < len(list(wrapper.parameters()))
