"""Show that two checkouts make the same files, byte for byte: the demo, a run of each trainer, a comparison of two methods.

    git worktree add ../before COMMIT
    python scripts/same_artifacts.py ../before . --work FOLDER

Every file counts but those that hold times, versions and paths (`OWN`). Of masks, importances and deltas, whose code for
indices may change, the indices and values count, as the checkout that wrote them reads them; of evaluations and trials, those fields are left out.
Exits with 1 if a file differs or is missing. Each checkout runs its own code, in turns, with one thread.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

OWN = {"manifest.json", "report.html", "report.md", "recipe.yaml", ".hashes.json", ".lock", "comparison.md"}
TIMES = {
    "seconds",
    "commit",
    "dirty",
    "versions",
    "hardware",
    "made_with",
    "peak_memory_bytes",
    "cost",
    "delta_bytes",
    "training_state_bytes",
}
SMALL = (
    "data.limit=60",
    "evaluate.sets={test: {task: planted_flaws, split: test, limit: 40}}",
    "evaluate.kl.limit=40",
)
DECODE = """
import hashlib, importlib.util, json, sys
from pathlib import Path
import torch
from safetensors import safe_open
room = "weights" if importlib.util.find_spec("allo.weights") else "core"
sparse_file = importlib.import_module(f"allo.{room}.sparse_file")
found = {}
for path in sorted(Path(sys.argv[1]).rglob("*.safetensors")):
    with safe_open(path, "pt") as file:
        header = json.loads((file.metadata() or {}).get("allo", "null"))
    if header is not None:
        kind = header["kind"]
        read = sparse_file.read(path, kind, column={"delta": "values", "importance": "scores"}.get(kind, ""))
        digest = hashlib.sha256(kind.encode())
        for part in (read.indices, read.column):
            for name in sorted(part):
                digest.update(name.encode() + bytes(part[name].contiguous().view(torch.uint8).numpy()))
        found[path.relative_to(sys.argv[1]).as_posix()] = digest.hexdigest()
print(json.dumps(found))
"""
PLAIN = ("locate=null", "score=null", "forget=null", "improve.density=1.0", "improve.keep=1.0")
RUNS = {
    "allo": ("improve.loss=rft", "improve.keep=1.0"),
    "allo_paper": ("score={scorer: implicit, marked: all}", "forget.loss=token", "forget.beta=0.1"),
    "npo": ("locate=null", "score={scorer: uniform}", "forget.loss=sequence", "forget.density=1.0", "improve=null"),
    **{loss: (*PLAIN, f"improve.loss={loss}") for loss in ("dpo", "ipo", "bco", "apo_zero", "simpo", "sft", "rft")},
    **{name: (*PLAIN, f"improve.trainer={name}") for name in ("rloo", "grpo")},
    **{name: (*PLAIN, f"improve.trainer={name}", "improve.density=0.1") for name in ("lora", "shira")},
}  # fmt: skip


def run(checkout: Path, out: Path) -> None:
    """Run everything with the code of a checkout, below `out`."""
    python = Path(sys.executable)
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}

    def allo(*words: str) -> None:
        print(f"{checkout.name}: allo {' '.join(words[:4])} ...", flush=True)
        subprocess.run(
            [python, "-m", "allo", *words],
            cwd=checkout,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    allo("demo", "--out", str(out / "demo"))
    for name, changes in RUNS.items():
        settings = [
            word for change in (f"out={out}", f"name={name}", *SMALL, *changes) for word in ("--set", change)
        ]
        allo("run", "recipes/lab.yaml", *settings)
    small = [word for change in (f"out={out}", "name=compared", *SMALL) for word in ("--set", change)]
    small += ["--set", "compare.validation.limit=40", "--set", "compare.rates=[1.0, 2.0]"]
    small += ["--set", "compare.extra_trials=0", "--set", "compare.tuning_seeds=[1000]"]
    allo("compare", "recipes/lab.yaml", *small, "--methods", "allo,dpo", "--seeds", "0,1")


def sparse(checkout: Path, folder: Path) -> dict[str, bytes]:
    """Return a digest of what each mask, importance and delta below a folder holds, as the checkout reads it."""
    read = subprocess.run(
        [sys.executable, "-c", DECODE, str(folder)],
        env={**os.environ, "PYTHONPATH": str(checkout / "src")},
        check=True,
        capture_output=True,
        text=True,
    )
    return {name: digest.encode() for name, digest in json.loads(read.stdout).items()}


def contents(checkout: Path, folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its name, without what two equal runs differ in."""
    found = sparse(checkout, folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name in OWN or name in found:
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps(_without_times(json.loads(content)), sort_keys=True).encode()
        found[name] = content.replace(str(folder).encode(), b"OUT").replace(
            str(checkout).encode(), b"CHECKOUT"
        )
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(each) for key, each in value.items() if key not in TIMES | {"sha256"}}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    options = parser.parse_args(arguments)
    made = {}
    for name, checkout in (("before", options.before), ("after", options.after)):
        run(checkout.resolve(), (options.work / name).resolve())
        made[name] = contents(checkout.resolve(), (options.work / name).resolve())
    before, after = made["before"], made["after"]
    different = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    print(f"{len(before)} files before, {len(after)} after; {len(different)} differ")
    print("\n".join(different))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
