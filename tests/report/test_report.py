"""The report: one page per set of runs, whatever the models wrote and whichever stages were skipped."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from allo.errors import UserError
from allo.report import figures
from allo.report.page import render
from allo.report.read import view
from allo.stages.report import write_report
from allo.weights.param_mask import MaskRow, ParamMask
from report_setup import Page

HOSTILE = (
    "<script>alert(1)</script> </style><img src=x onerror=alert(2)> \"double\" 'single' {{ 7 * 7 }} & &amp; "
    "\u202eright-to-left \u05e9\u05dc\u05d5\u05dd \U0001f600 nul\x00 escape\x1b[31m half\ud83d ]]> <!-- | `code`"
    "\u2028next " + "x" * 5000
)


def accuracy(share: float, num: int) -> dict[str, Any]:
    return {"accuracy": share, "low": share - 0.031, "high": share + 0.029, "num": num}


def model(label: str, shares: dict[str, float], **trained: Any) -> dict[str, Any]:
    sets = {
        name: {
            "num_prompts": 20,
            "greedy": accuracy(share + 0.05, 20),
            "sampled": accuracy(share, 160),
            "pass_at": {"1": share, "8": share + 0.2},
            "mean_tokens": 31.27 + share,
        }
        for name, share in shares.items()
    }
    nothing = dict.fromkeys(("kl", "trained_weights", "density", "seconds", "training_state_bytes"))
    return {"label": label, "sets": sets, **nothing, **trained}


def evaluated(text: str, correct: bool) -> list[dict[str, Any]]:
    prompt = [{"role": "user", "content": f"problem {HOSTILE}"}]
    sampled = [{"text": text, "correct": correct}]
    return [{"prompt_id": "p0", "prompt": prompt, "answer": "4", "greedy": sampled[0], "sampled": sampled}]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run in which every model text is hostile."""
    folder = tmp_path / "runs" / "planted"
    kl = {"set": "plain", "value": 0.01234, "low": 0.011, "high": 0.0142, "num_tokens": 900}
    trained = {"trained_weights": 32768, "density": 0.0523, "seconds": 75.4, "training_state_bytes": 655_360}
    shares = {"near": 0.431, "far": 0.3125}
    models = {
        "start": model("SFT", shares),
        "aligned": model(f"ALLO {HOSTILE}", {k: v + 0.15 for k, v in shares.items()}, kl=kl, **trained),
    }
    completions = {
        "start": {"near": evaluated(HOSTILE, False)},
        "aligned": {"near": evaluated(HOSTILE, True)},
    }
    write(folder / "08-eval.json", {"schema": 1, "models": models, "completions": completions})
    stage = {
        "hash": "0", "config": {}, "inputs": {}, "outputs": {}, "commit": "0123456789abcdef", "dirty": True,
        "versions": {"torch": "2.13.0"}, "device": "cpu", "hardware": HOSTILE, "seed": 7, "seconds": 83.2,
        "peak_memory_bytes": 123_456_789, "counts": {"num_pairs": 1234},
    }  # fmt: skip
    write(
        folder / "manifest.json",
        {"schema": 1, "name": "planted", "allo": "0.1.0", "stages": {"improve": stage}},
    )
    write(folder / "recipe.yaml", "name: planted\nmodel: lab # <script>\n")
    steps = [
        {"step": i, "loss": 0.7 - i / 100, "rewards/chosen": i / 9, "rewards/rejected": -i / 9}
        for i in range(5)
    ]
    for place in (
        "00-sft/metrics.jsonl",
        "04-warmup/metrics.jsonl",
        "06-forget/metrics.jsonl",
        "07-improve/metrics.jsonl",
    ):
        write_lines(folder / place, steps)
    write_lines(folder / "06-forget/checkpoint-2/metrics.jsonl", steps)
    shapes = {
        "layers.0.q_proj.weight": (4, 4),
        "layers.1.q_proj.weight": (4, 4),
        "embed_tokens.weight": (8, 4),
    }
    mask = ParamMask({"layers.1.q_proj.weight": torch.tensor([0, 5, 7, 9], dtype=torch.int32)}, shapes=shapes)
    mask.save(folder / "06-forget/mask.safetensors")
    tokens = {
        "id": "w0", "token_ids": [1, 2], "tokens": ["<script>alert(1)</script>", "\x00\n"],
        "scores": [0.125, 0.875], "weights": [1.0, 0.0],
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([tokens]), folder / "05-token-scores.parquet")
    write_lines(folder / "03-wrong.jsonl", [{"id": "w0", "prompt_id": "p0", "prompt": HOSTILE}])
    return folder


def leaves(value: Any) -> list[float]:
    """Return every number of a model's record that the tables show, without pass@1's interval and counts."""
    found = []
    for result in value["sets"].values():
        found += [
            result["greedy"]["accuracy"],
            result["sampled"]["accuracy"],
            result["pass_at"]["8"],
            result["mean_tokens"],
        ]
    found += [value["kl"]["value"]] if value["kl"] else []
    return found + [
        value[k] for k in ("trained_weights", "density", "seconds", "training_state_bytes") if value[k]
    ]


@pytest.mark.invariant("Model text reaches the report escaped.")
def test_page_is_well_formed_and_runs_nothing_of_the_models(run: Path) -> None:
    html, _ = render([view(run)])
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "base", "form"}
    for tag, attributes in page.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("style", "src")}, tag
        # A link leads to a place of this page, and nowhere else.
        assert tag == "a" or "href" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "<script>alert(1)</script>" in "".join(page.text)  # shown, as text
    assert "{{ 7 * 7 }}" in "".join(page.text)
    assert not re.search("[\x00\x1b\u202e\ud83d]", html)
    assert html.encode("utf-8").decode("utf-8") == html


def test_style_digest_is_the_style_sheets_own(run: Path) -> None:
    html, _ = render([view(run)])
    style = html.split("<style>")[1].split("</style>")[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in html


def test_tables_show_the_records_own_numbers(run: Path) -> None:
    html, markdown = render([view(run)])
    shown = Page(html).values
    models = json.loads((run / "08-eval.json").read_text())["models"]
    for number in (number for record in models.values() for number in leaves(record)):
        texts = [text for value, text in shown if value == number]
        assert texts, f"{number} is missing from the page"
        assert all(figures_in(text) in figures_in(markdown) for text in texts)
    for record in models.values():
        for result in record["sets"].values():
            interval = figures.percent_interval(result["sampled"]["low"], result["sampled"]["high"])
            assert interval in html
            assert figures_in(interval) in markdown


def test_the_report_says_how_many_prompts_training_has_seen(run: Path) -> None:
    path = run / "08-eval.json"
    assert "also training problems" not in render([view(run)])[1]  # a run from before this was counted
    record = json.loads(path.read_text())
    for model in record["models"].values():
        model["sets"]["near"]["overlap"] = {"num": 1200, "exact": 12, "near": 13}
    path.write_text(json.dumps(record))
    html, markdown = render([view(run)])
    said = "1,200 prompts are also training problems, 13 nearly so"
    assert figures_in(html).count(said) == figures_in(markdown).count(said) == 1


def figures_in(text: str) -> str:
    return text.replace(figures.TIED, " ")


def test_markdown_rows_have_their_headers_cells_and_no_html(run: Path) -> None:
    _, markdown = render([view(run)])
    width = 0
    for line in markdown.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line))
        width = width or cells
        assert cells == width if line.startswith("|") else not cells
        width = width if line.startswith("|") else 0
    assert "<" not in markdown


def test_headline_reads_from_the_record(run: Path) -> None:
    html, _ = render([view(run)])
    text = figures_in("".join(Page(html).text))
    assert "On near, sampled accuracy went from 43.1% [40.0, 46.0] (SFT) to 58.1% [55.0, 61.0]" in text
    assert "+15.0 points; the intervals do not overlap. 5.23% of the weights were trained." in text


@pytest.mark.parametrize("name", ["00-sft", "04-warmup", "05-token-scores.parquet", "03-wrong.jsonl",
                                  "06-forget", "07-improve", "manifest.json", "recipe.yaml"])  # fmt: skip
def test_any_skipped_stage_leaves_a_report(run: Path, name: str) -> None:
    (run / name).rename(run.parent / "elsewhere")
    Page(render([view(run)])[0])


def test_run_with_an_evaluation_only(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    models = {"start": model("base", {"near": 0.5})}
    models["start"]["sets"]["near"] |= {"sampled": None, "greedy": None, "pass_at": {}, "mean_tokens": None}
    write(bare / "08-eval.json", {"schema": 1, "models": models})
    html, markdown = render([view(bare)])
    Page(html)
    assert "bare" in markdown and "no measured accuracy" in markdown


def test_curves_come_from_stages_not_from_their_checkpoints(run: Path) -> None:
    write_lines(
        run / "07-improve/metrics.jsonl",
        [{"step": 2, "loss": 1.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}],
    )
    curves = view(run).curves
    assert list(curves) == ["sft", "warmup", "forget", "improve"]
    assert curves["improve"] == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]


def test_mask_reaches_the_density_map(run: Path) -> None:
    seen = view(run)
    assert set(seen.masks["forget"]) == {
        MaskRow("0", "q_proj", 0, 16), MaskRow("1", "q_proj", 4, 16), MaskRow("-", "embed_tokens", 0, 32),
    }  # fmt: skip
    assert "layer 1, q_proj: 25% (4 of 16)" in render([seen])[0]


def test_the_cost_of_a_warm_up_is_said(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    note = "Training state of ALLO planted includes the warm-up, which trains all weights once"
    evaluation = json.loads((run / "08-eval.json").read_text())
    evaluation["models"]["aligned"]["label"] = "ALLO planted"
    write(run / "08-eval.json", evaluation)
    for counts, said in (({"training_state_bytes": 655_360}, True), ({"weights": 3}, False)):
        manifest["stages"]["locate"] = {"counts": counts}
        write(run / "manifest.json", manifest)
        html, markdown = render([view(run)])
        assert (note in html, note in markdown) == (said, said)


def test_shared_start_is_shown_once_and_equal_labels_name_their_run(run: Path) -> None:
    other = run.parent / "other"
    evaluation = json.loads((run / "08-eval.json").read_text())
    write(other / "08-eval.json", evaluation)
    _, markdown = render([view(run), view(other)])
    near = markdown.split("### near")[1].split("###")[0]
    assert near.count("| SFT |") == 1
    assert near.count("(planted)") == near.count("(other)") == 1
    evaluation["models"]["start"]["sets"]["near"]["sampled"]["accuracy"] += 0.01
    write(other / "08-eval.json", evaluation)
    near = render([view(run), view(other)])[1].split("### near")[1].split("###")[0]
    assert near.count("| SFT (") == 2


def test_run_without_a_start_is_compared_with_the_same_start_of_another(run: Path) -> None:
    evaluation = json.loads((run / "08-eval.json").read_text())
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"]["sft"] = {"outputs": {"00-sft": "same"}}
    write(run / "manifest.json", manifest)
    other = run.parent / "other"
    del evaluation["models"]["start"]
    write(other / "08-eval.json", evaluation)
    for outputs, changes in (({"00-sft": "same"}, 2), ({"00-sft": "another"}, 1), ({}, 1)):
        write(other / "manifest.json", manifest | {"name": "other", "stages": {"sft": {"outputs": outputs}}})
        near = render([view(other), view(run)])[1].split("### near")[1].split("###")[0]
        assert near.count("| +15.0 |") == changes
        assert near.splitlines()[4].startswith("| SFT |")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "08-eval.json: not found.*start it again"),
        ("{", "08-eval.json: not JSON"),
        ('{"schema": 2}', "`schema` is 2"),
        ('{"schema": 1, "models": {}}', "`models` is empty"),
        ('{"schema": 1, "models": {"start": {"label": "x"}}}', r"`models\.start\.sets`"),
    ],
)
def test_unusable_evaluation_is_a_users_error(run: Path, content: str | None, message: str) -> None:
    path = run / "08-eval.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        view(run)


def test_torn_metrics_line_is_named(run: Path) -> None:
    (run / "07-improve/metrics.jsonl").write_text('{"step": 1, "loss": 1}\n{"step": 2, "lo')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not JSON"):
        view(run)


def test_write_report_is_deterministic_and_leaves_no_parts(run: Path, tmp_path: Path) -> None:
    html, markdown = write_report([run], tmp_path / "out")
    first = html.read_bytes(), markdown.read_bytes()
    write_report([run], tmp_path / "out")
    assert (html.read_bytes(), markdown.read_bytes()) == first
    assert sorted(path.name for path in html.parent.iterdir()) == ["report.html", "report.md"]
