"""The benchmark of groups gives all systems the same pairs of prompts, and its record says what is compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from tiny import LABORATORY

pytest.importorskip("trl", reason="TRL is what is compared with; install the extra `trl`")
pytest.importorskip("peft", reason="PEFT is what is compared with; install the extra `peft`")
pytestmark = pytest.mark.slow

SYSTEMS = ("allo", "allo, prompts", "forget", "forget, prompts", "likelihood", "likelihood, prompts")


def test_groups_and_single_rows_take_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    from benchmarks.speed import groups, one, sampled
    from benchmarks.speed.work import random_pairs

    def drawn(*_: Any, num_prompts: int, pairs_a_prompt: int, **__: Any) -> Any:
        return random_pairs(
            number=num_prompts * pairs_a_prompt, prompt=6, completion=5, a_prompt=pairs_a_prompt
        )

    monkeypatch.setattr(sampled, "sampled_pairs", drawn)
    figures: dict[str, Any] = {}

    def measure(system: str, work: Any) -> Any:
        figures[system] = one.measure(system, work)
        return figures[system]

    given = {
        "--model": LABORATORY,
        "--data-folder": tmp_path,
        "--dtype": "float32",
        "--rounds": 1,
        "--steps": 1,
    }
    given |= {"--systems": ";".join(SYSTEMS), "--output": tmp_path / "record.json"}
    groups.main([str(part) for pair in given.items() for part in pair], measure=measure)
    record = json.loads((tmp_path / "record.json").read_text())
    rows = {row[0]: dict(zip(record["columns"], row, strict=True)) for row in record["rows"]}
    assert tuple(rows) == SYSTEMS
    for system in ("allo", "forget", "likelihood"):
        alone, together = figures[system], figures[f"{system}, prompts"]
        assert together.losses == pytest.approx(alone.losses, abs=1e-5)
        assert together.num_rows == alone.num_rows == 10
        assert together.num_tokens == alone.num_tokens
        assert rows[f"{system}, prompts"]["the floor's share"] > 0
    assert rows["forget, prompts"]["time, of its"] is not None
    assert rows["allo, prompts"]["time, of its"] is None, "TRL was not measured"
