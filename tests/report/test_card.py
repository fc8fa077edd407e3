"""The model card: what it says of a run, that texts of files stay texts, and where the licence comes from."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from allo.files.evaluation import Accuracy, Change, Evaluation, HeldOut, ModelResult, Rate, SetResult
from allo.models.licence import licence_of
from allo.report.card import Facts, card
from allo.report.run_view import Manifest, RunView, StageRecord

RIGHT = Accuracy(0.75, 0.61, 0.86, 40)
HELD_OUT = HeldOut(
    40, 38, Rate(0.7, 0.55, 0.82), 2, 0.1, Rate(0.85, 0.71, 0.93), Rate(0.4, 0.2, 0.6),
    Change(Rate(1.5, 1.0, 2.0), Rate(0.1, 0.05, 0.15)), Change(Rate(-2.5, -3.0, -2.0), Rate(-0.2, -0.3, -0.1)),
)  # fmt: skip
FACTS = Facts(
    base="someone/base-7B",
    licence="apache-2.0",
    data=["preference pairs of the file pairs.jsonl"],
    method=["improve: dpo, beta 0.1"],
    changed=1234,
    num_weights=100_000,
    base_fingerprint="ab12:cd",
    delta_digest="f" * 64,
    starts_at_base=True,
)


def run(label: str = "aligned", set: str = "test") -> RunView:
    sets = {set: SetResult(40, sampled=RIGHT)}
    models = {
        "start": ModelResult("SFT", sets, held_out=HeldOut(40, 38, Rate(0.5, 0.35, 0.65))),
        "aligned": ModelResult(label, sets, held_out=HELD_OUT),
    }
    stages = {"improve": StageRecord(commit="0123456789abcdef", dirty=True)}
    return RunView("mine", Evaluation(1, models), Manifest(1, "mine", "0.9", stages))


def metadata(text: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_a_card_says_what_the_model_is_and_how_good_with_intervals() -> None:
    text = card(run(), FACTS)
    assert metadata(text)["base_model"] == "someone/base-7B"
    assert metadata(text)["license"] == "apache-2.0"
    plain = text.replace("\u00a0", " ")
    for part in (
        "1.23% of its weights (1,234 of 100,000)",
        "- Data: preference pairs of the file pairs.jsonl",
        "- Method: improve: dpo, beta 0.1",
        "75.0% [61.0, 86.0]",
        "85.0% [71.0, 93.0]",
        "0.400 [0.200, 0.600]",
        "`ab12:cd`",
        f"`{'f' * 64}`",
        "`allo run recipe.yaml` (allo 0.9, commit 0123456789, with uncommitted changes)",
    ):
        assert part in plain, part


@pytest.mark.parametrize(
    "hostile",
    [
        "a`b`<script>x</script>",
        "x\n---\nlicense: mit\n---\n",
        "[link](http://x) | **b**",
        "\u202eevil\x1b[31m",
        "```\n# h",
    ],
)
def test_texts_of_files_stay_texts(hostile: str) -> None:
    facts = replace(
        FACTS, base=hostile, licence=hostile, data=[hostile], method=[hostile], base_fingerprint=hostile
    )
    text = card(run(label=hostile, set=hostile), facts)
    fields = metadata(text)
    assert fields.keys() == {"library_name", "pipeline_tag", "tags"}
    assert text.count("\n---\n") == 1  # the metadata's own end
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body and "**b**" not in body and "[link](" not in body
    assert not any(sign in body for sign in "\x1b\u202e")
    assert not any(line.startswith(("```", "# h", "license:")) for line in body.splitlines())


def test_a_local_base_and_an_unknown_licence_are_no_metadata() -> None:
    text = card(run(), replace(FACTS, base="mymodel", licence="unknown"))
    assert not metadata(text).keys() & {"base_model", "license"}
    assert "- Licence of the base: unknown" in text


def test_a_run_without_results_of_sets_has_a_card() -> None:
    text = card(RunView("mine", Evaluation(1, {"aligned": ModelResult("a", {})}), Manifest(1, "mine")), FACTS)
    assert "## Results" not in text and "## How it was made" in text


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({}, "unknown"),
        ({"README.md": "---\nlicense: mit\n---\n# A"}, "mit"),
        ({"README.md": "\ufeff---\r\nlicense: mit\r\n---\r\n"}, "mit"),
        ({"README.md": "---\nlicense: other\nlicense_name: llama3\n---\n"}, "llama3"),
        ({"README.md": "license: mit"}, "unknown"),
        ({"README.md": "---\nlicense: mit\n"}, "unknown"),  # never closed
        ({"README.md": "---\n{[\n---\n"}, "unknown"),
        ({"README.md": "---\n- license\n---\n"}, "unknown"),
        ({"README.md": "---\nlicense: [mit]\n---\n", "config.json": '{"license": "bsd"}'}, "bsd"),
        ({"README.md": "# A\n---\nlicense: mit\n---\n", "config.json": "{"}, "unknown"),
        ({"config.json": '["license"]'}, "unknown"),
        ({"README.md": b"---\nlicense: \xff\xfe\n---\n"}, "\ufffd\ufffd"),
    ],
)
def test_the_licence_is_that_of_the_bases_own_files(
    tmp_path: Path, files: dict[str, str | bytes], licence: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert licence_of(str(tmp_path)) == licence


def test_a_licence_is_not_looked_for_on_the_net(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert licence_of("someone/never-downloaded") == "unknown"
    assert licence_of("no id at all/../x") == "unknown"
