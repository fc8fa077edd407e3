"""The README's Python and the guides of GUIDES are executed, in one folder with two tiny checkpoints: base, tuned.

Their commands on schemas, masks and deltas run in document order with the Python, in one namespace. `test_first_pages.py`
runs the README's other commands.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from commands import run_allo
from pages import ROOT, blocks

# Executed in this order: what a page makes, the next may use.
GUIDES = ("docs/masks-and-deltas.md", "README.md", "docs/library.md", "docs/runs.md")
BLOCKS = [block for page in GUIDES for block in blocks(page) if block.is_run]

# Cheap enough to be run here.
EXECUTED = {"schema", "mask", "delta"}


def test_recipes_shown_are_valid(tmp_path: Path) -> None:
    from allo.recipe import load_recipe

    shown = [block.text for block in BLOCKS if block.language == "yaml"]
    assert shown
    for text in shown:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        load_recipe(path)


def save_tiny_models(folder: Path) -> None:
    """`base`, and `tuned`, which differs from it in every weight; with the laboratory's tokenizer. A run's importance."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from allo.weights.importance_map import ImportanceMap

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "src/allo/lab")

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **shape))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param), alpha=0.01)
    model.save_pretrained(folder / "tuned")
    weights = model.state_dict()
    importance = ImportanceMap.top(
        lambda: ((name, tensor.abs()) for name, tensor in weights.items()),
        density=0.1,
        shapes={name: tuple(tensor.shape) for name, tensor in weights.items()},
        metadata={"criterion": "magnitude"},
    )
    (folder / "runs" / "mine").mkdir(parents=True)
    importance.save(folder / "runs" / "mine" / "04-importance.safetensors")


def write_recipe(folder: Path) -> None:
    """`recipe.yaml`: one step on a few pairs, nothing located by them or forgotten."""
    rows = [
        {"prompt": f"Tom has {n} pens.\n", "chosen": "The answer is 12.", "rejected": "The answer is 2."}
        for n in range(8)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    blocks = {
        "name": "few",
        "model": "base",
        "dtype": "float32",
        "data": {"pairs": "pairs.jsonl", "held_out": 2},
        "locate": {"criterion": "magnitude"},
        "score": None,
        "forget": None,
        "improve": {"training": {"max_steps": 2}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(blocks), encoding="utf-8")


def provided() -> dict[str, Any]:
    """The names that the guides' Python leaves to the reader."""
    import torch

    def my_loss(logits: torch.Tensor, ref_logits: torch.Tensor) -> torch.Tensor:
        return (logits - ref_logits).square().mean() - logits.log_softmax(-1)[..., 7].mean()

    ids = torch.tensor([[1, 2, 3, 4]])
    right, wrong = "First 7 + 5 = 12. The answer is 12.", "First 7 - 5 = 2. The answer is 2."
    pairs = [{"prompt": "Problem: Tom has 7 pens.\n", "chosen": right, "rejected": wrong}]
    wrong_rows = [{"prompt": pairs[0]["prompt"], "completion": wrong}]
    batches = [{"input_ids": ids}, {"input_ids": ids}]
    return {"batches": batches, "my_loss": my_loss, "pairs": pairs, "wrong_rows": wrong_rows}


def run_document(namespace: dict[str, Any]) -> None:
    """Execute everything that is cheap, in the order of the document."""
    for block in BLOCKS:
        if block.language == "python":
            source = "\n" * block.line + block.text  # a traceback's line numbers are those of the page
            exec(compile(source, str(ROOT / block.page), "exec"), namespace)
        elif block.language == "bash" and block.file is None:  # a script has a test of its own
            for words in block.commands:
                if words[0] == "allo" and words[1] in EXECUTED:
                    assert run_allo(*words[1:]) == 0, words


# The Trainer pins memory by default, and torch says so where there is no GPU to pin it for.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_document_runs_and_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM

    save_tiny_models(tmp_path)
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    namespace = provided()
    run_document(namespace)

    tuned, again = (load_file(tmp_path / name / "model.safetensors") for name in ("tuned", "again"))
    assert tuned.keys() == again.keys()
    assert all(torch.equal(tuned[name], again[name]) for name in tuned), "`delta apply` is bit-exact"

    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        logits = base(**namespace["batches"][0]).logits
    assert torch.equal(namespace["ref_logits"], logits), "the reference is the base model, after a step too"
    changed = {
        name: (param != dict(base.named_parameters())[name]).flatten().nonzero().flatten()
        for name, param in namespace["model"].named_parameters()
    }
    assert sum(map(len, changed.values())) > 0
    for name, indices in changed.items():
        assert torch.isin(
            indices, namespace["mask"].indices.get(name, torch.tensor([], dtype=torch.int32))
        ).all()
    assert namespace["trainer"].state.global_step == 2
