"""Checks of a whole run of a family: locating, training, its delta, and its result in other hands."""

import re
import shutil
from collections import Counter
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from allo import delta
from allo.models.load import linear_names, load_model
from allo.pipeline import run_all
from allo.stages.check import findings
from allo.training.result import DELTA, MASK
from allo.weights.checkpoints import Checkpoint
from allo.weights.fingerprints import as_bits
from allo.weights.importance_map import ImportanceMap
from allo.weights.param_mask import ParamMask
from allo.weights.selection import num_to_select
from benchmarks.families.checks import TOLERANCE, Case, plain_logps, random_ids
from benchmarks.families.folders import WEIGHTS, is_of_text, make, plain_class, plain_model, text_weights
from benchmarks.families.outcome import require
from benchmarks.families.tiny_recipe import DENSITY, recipe_of

RUN, HALF = "run", "run-bf16"  # names of the runs that later checks read
FORGET, IMPROVE = "06-forget", "07-improve"
RESULT = "model"
_EVERY = 16  # th weight of a Linear layer changes, for the adapter


def checked(case: Case) -> str:
    """Pass `allo check`, before anything runs."""
    found = findings(recipe_of(case.folder, case.work, RUN))
    return f"{found.num_weights} weights, {found.positions or 'any number of'} positions"


def located(case: Case, criterion: str) -> str:
    """Locate by a criterion; exactly as many weights are selected as asked for."""
    name = f"locate-{criterion}"
    folder = run_all(recipe_of(case.folder, case.work, name, criterion=criterion), until="locate")
    _exactly(case, ImportanceMap.load(folder.importance).mask_at(DENSITY["improve"]), DENSITY["improve"])
    return ""


def _exactly(case: Case, mask: ParamMask, density: float) -> None:
    """Require that a mask selects exactly the density's share of the weights of the text part."""
    own = sum(weight.numel() for weight in text_weights(case.plain).values())
    require(mask.num_weights == own, f"the mask is of {mask.num_weights} weights, the text part has {own}")
    k = num_to_select(density, own)
    require(mask.num_selected == k, f"{mask.num_selected} weights selected, not {k}")


def runs(case: Case) -> str:
    """Run every stage: locate, score, forget, improve, evaluate, report."""
    run_all(recipe_of(case.folder, case.work, RUN))
    return ""


def runs_in_bf16(case: Case) -> str:
    """Run every stage on the checkpoint in bf16, in which some weights stay in fp32, and check its result."""
    folder = make(case.family, case.work / "bf16", dtype=torch.bfloat16)
    run_all(recipe_of(folder, case.work, HALF, dtype="bfloat16"))
    dtypes = Counter(
        str(entry.dtype).removeprefix("torch.") for entry in Checkpoint.open(folder).stored.values()
    )
    _changed_within_masks(case, folder, case.work / HALF)
    _delta_gives_result(folder, case.work / HALF, case.work / "bf16-applied")
    _loads_whole(case, case.work / HALF / IMPROVE / RESULT)
    return ", ".join(f"{number} in {dtype}" for dtype, number in dtypes.items()) if len(dtypes) > 1 else ""


def selects_k(case: Case) -> str:
    """Select exactly k weights in each training, and change no others of the checkpoint."""
    run = case.work / RUN
    for stage, density in ((FORGET, DENSITY["forget"]), (IMPROVE, DENSITY["improve"])):
        _exactly(case, ParamMask.load(run / stage / MASK), density)
    return _changed_within_masks(case, case.folder, run)


def _changed_within_masks(case: Case, folder: Path, run: Path) -> str:
    """Require that the result differs from the user's folder at places of the masks, and nowhere else."""
    before, after = Checkpoint.open(folder), Checkpoint.open(run / IMPROVE / RESULT)
    require(before.stored.keys() == after.stored.keys(), _names(set(before.stored), set(after.stored)))
    masks = [ParamMask.load(run / stage / MASK).indices for stage in (FORGET, IMPROVE)]
    tied = _tied_copies(case)
    total = 0
    for name, entry in before.stored.items():
        require(
            entry.dtype == after.stored[name].dtype,
            f"{name} was {entry.dtype}, is {after.stored[name].dtype}",
        )
        differ = as_bits(before.read(name)).flatten() != as_bits(after.read(name)).flatten()
        allowed = torch.zeros_like(differ)
        for mask in masks:
            if (found := mask.get(name, mask.get(tied.get(name, "")))) is not None:
                allowed[found.long()] = True
        outside = int((differ & ~allowed).sum())
        require(outside == 0, f"{outside} weights of {name} changed that no mask selects")
        total += int(differ.sum())
    require(total > 0, "no weight changed")
    stated = delta.info(run / IMPROVE / DELTA).num_changed
    require(total == stated, f"{total} weights changed, the delta says {stated}")
    return f"{total} changed"


def _tied_copies(case: Case) -> dict[str, str]:
    """Return the stored copies of tied weights, each with the name under which the weight trains."""
    own = {name for name, _ in case.plain.named_parameters(remove_duplicate=False)}
    return {
        re.sub(pattern, copy, name): name
        for name in own
        for pattern, copy in case.family.copies
        if re.search(pattern, name) and re.sub(pattern, copy, name) in own
    }


def _names(before: set[str], after: set[str]) -> str:
    odd = sorted(before ^ after)
    return f"{len(odd)} tensors have other names than in the user's folder (first: {odd[0] if odd else '-'})"


def delta_applies(case: Case) -> str:
    """Apply the delta to the user's own folder; its tensors are the result's, bit for bit."""
    _delta_gives_result(case.folder, case.work / RUN, case.work / "applied")
    return ""


def _delta_gives_result(folder: Path, run: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    delta.apply(folder, run / IMPROVE / DELTA, out)
    applied, result = Checkpoint.open(out), Checkpoint.open(run / IMPROVE / RESULT)
    require(applied.stored.keys() == result.stored.keys(), _names(set(applied.stored), set(result.stored)))
    for name in applied.stored:
        same = applied.digest(name) == result.digest(name)
        require(same, f"{name} differs between the applied delta and the result")


def result_loads(case: Case) -> str:
    """Load the result in plain transformers, whole; its names on disk and its log-probs are as they must be."""
    result = case.work / RUN / IMPROVE / RESULT
    _loads_whole(case, result)
    own, theirs = set(Checkpoint.open(case.folder).stored), set(Checkpoint.open(result).stored)
    require(own == theirs, _names(own, theirs))
    prompt, completion = random_ids(9, 12)
    before, after = (
        plain_logps(plain_model(case.family, path), prompt, completion) for path in (case.folder, result)
    )
    require(
        bool((before - after).abs().max() > TOLERANCE), "the result has the log-probs of the starting model"
    )
    live = load_model(result, dtype=torch.float32, device="cpu")
    difference = float((plain_logps(live, prompt, completion) - after).abs().max())
    require(
        difference <= TOLERANCE,
        f"log-probs of the result in allo and in transformers differ by {difference:.2g}",
    )
    return ""


def _loads_whole(case: Case, folder: Path) -> None:
    """Require that transformers finds every weight in the folder, and nothing else that the user's folder lacks."""
    kind = plain_class(case.family)
    (_, own), (_, info) = (
        kind.from_pretrained(path, output_loading_info=True) for path in (case.folder, folder)
    )
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        new = sorted(map(str, set(info[key]) - set(own[key])))
        require(not new, f"plain transformers: {len(new)} {key.replace('_', ' ')} (first: {new[:1]})")


def adapts(case: Case) -> str:
    """Export a change of Linear weights as PEFT's adapter, which gives the tuned model's log-probs."""
    tuned, change, adapter = (case.work / name for name in ("tuned", "linear.safetensors", "adapter"))
    linear = linear_names(case.folder)
    shutil.copytree(case.folder, tuned, dirs_exist_ok=True)
    tensors = load_file(tuned / WEIGHTS)
    chosen = [name for name in tensors if name in linear and is_of_text(name)]
    if not chosen:
        has_any = any(isinstance(module, nn.Linear) for module in case.plain.base_model.modules())
        require(not has_any, "no weight of its Linear layers can be exported")
        return "no Linear layer to export"
    for name in chosen:
        tensors[name].view(-1)[::_EVERY] *= 1.25
    save_file(tensors, tuned / WEIGHTS, metadata={"format": "pt"})
    delta.extract(case.folder, tuned, change)
    found = delta.export_shira(case.folder, change, adapter, linear=linear)
    prompt, completion = random_ids(9, 12)
    wanted = plain_logps(plain_model(case.family, tuned), prompt, completion)
    # PEFT names modules: those of the class that allo loads, which need not be a wrapper's.
    base = type(case.model).from_pretrained(case.folder, attn_implementation=case.family.reference)
    ours = plain_logps(PeftModel.from_pretrained(base, adapter).eval(), prompt, completion)
    difference = float((ours - wanted).abs().max())
    require(difference <= TOLERANCE, f"log-probs with the adapter differ by {difference:.2g}")
    return f"{found.num_sparse} layers sparse, {found.num_whole} whole"
