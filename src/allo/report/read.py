"""A run folder, read into a RunView; the report's only reading, and its only source of user errors."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from allo.errors import UserError
from allo.files.artifacts import RunFolder, sha256_answers
from allo.files.evaluation import SCHEMA, Evaluation, read_of_schema
from allo.files.json_forms import checked
from allo.files.json_text import parse_json
from allo.files.result_link import result_of, uses
from allo.files.rounds import rounds_there
from allo.report.credit import token_credit
from allo.report.diagnosis import EVALUATED, Reading, read_run, read_stage
from allo.report.run_view import Judged, Manifest, RunView, Side, TokenCredit


def view(folder: Path) -> RunView:
    """Return the report's view of one run; skipped stages are absent.

    Raises `UserError` if the folder or its evaluation is missing, or a file is malformed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder. Give the folder of a finished run.")
    path = folder / "08-eval.json"
    if not path.is_file():
        present = ", ".join(sorted(entry.name for entry in folder.glob("[!.]*"))) or "nothing"
        raise UserError(
            f"{path}: not found, so there is nothing to report. The run is not finished (the folder holds "
            f"{present}): start it again, it goes on where it stopped."
        )
    evaluation = read_of_schema(path, Evaluation)
    if not evaluation.models:
        raise UserError(f"{path}: `models` is empty. Evaluate at least one model.")
    manifest = _manifest(folder)
    judged = {path.name: read_of_schema(path, Judged) for path in sorted(folder.glob("judged-*.json"))}
    before = [name for name, record in judged.items() if not _of_these_answers(record, evaluation)]
    recipe, settings = _recipe(folder / "recipe.yaml")
    return RunView(
        name=manifest.name,
        evaluation=evaluation,
        manifest=manifest,
        curves=_curves(folder, manifest),
        **_masks(folder, manifest),
        credit=_credit([folder, *rounds_there(folder).values()][-1]),
        recipe=recipe,
        settings=settings,
        base=_base(settings),
        judged=tuple(record for name, record in judged.items() if name not in before),
        judged_before=tuple(before),
        uses=_uses(RunFolder(folder), settings),
    )


def reading_of(folder: Path, stage: str) -> Reading | None:
    """Return the diagnosis of a stage of a run that may still be going on; None for a stage that has none."""
    manifest = _manifest(folder)
    curves = _curves(folder, manifest)
    if stage not in (EVALUATED, *curves):
        return None
    _, settings = _recipe(folder / "recipe.yaml")
    if stage in curves:
        return read_stage(stage, curves[stage], settings, manifest)
    evaluation = read_of_schema(folder / "08-eval.json", Evaluation)
    readings = read_run(RunView(manifest.name, evaluation, manifest, settings=settings, curves=curves))
    return next((each for each in readings if each.stage == EVALUATED), None)


def _uses(run: RunFolder, settings: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what can be done with the last training stage's model; nothing if the folder has none."""
    base = _delta_base(run, settings)
    for stage in (run.improve, run.forget):
        if (stage / "model").is_dir():
            model = result_of(run, stage / "model").relative_to(run.path)
            known = uses(f"./{model}", f"{stage.name}/delta.safetensors", run=".", base=base)
            return (("the model", f"./{model}"), *known)
    return ()


def _delta_base(run: RunFolder, settings: dict[str, Any]) -> str:
    """Return the model that the delta belongs to: the recipe's, or what the run made of it, in the run's folder.

    Of a local file or folder it is the name: others have it elsewhere. A GGUF file is converted again.
    """
    named, start = _base(settings) or "BASE", run.start / "start.json"
    if named.endswith(".gguf") and not settings.get("sft"):
        return Path(named).name
    made = parse_json(start.read_bytes(), place=str(start), lenient=True) if start.is_file() else {}
    place = str(made.get("model", "")) if isinstance(made, dict) else ""
    return named if not place or Path(place).is_absolute() else place


def _of_these_answers(record: Judged, evaluation: Evaluation) -> bool:
    """Return True if the judged answers of the run's models are the evaluation's; answers from a file pass."""
    sides = [side for side in (record.model, record.baseline) if side.model is not None]
    return all(side.answers_sha256 == _answers_sha256(side, record.set, evaluation) for side in sides)


def _answers_sha256(side: Side, set: str, evaluation: Evaluation) -> str | None:
    """Return the hash of the side's current answers; None if the evaluation lacks any."""
    answers = []
    for row in evaluation.completions.get(side.model or "", {}).get(set, []):
        answer = row.greedy if side.answers == "greedy" else next(iter(row.sampled), None)
        if answer is None:
            return None
        answers.append((row.prompt_id, answer.text))
    return sha256_answers(answers)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    advice = "Run the stage that writes it again."
    return [
        checked(
            parse_json(line, place=place, advice=advice, lenient=True),
            dict[str, Any],
            place=place,
            advice=advice,
        )
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1)
        if line.strip()
        for place in [f"{path}:{number}"]
    ]


def _manifest(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    return (
        read_of_schema(path, Manifest)
        if path.is_file()
        else Manifest(schema=SCHEMA, name=folder.resolve().name)
    )


def _recipe(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Return the resolved recipe's text and its keys."""
    if not path.is_file():
        return None, {}
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({error}). Start the run again to rewrite it.") from error
    return text, content if isinstance(content, dict) else {}


def _base(settings: dict[str, Any]) -> str:
    """Return the name of a recipe's model: a local folder's last part, or a whole hub id."""
    base = str(settings.get("model", ""))
    return Path(base).name if Path(base).is_absolute() else base


def _in_order(folders: Iterable[Path], run: Path, manifest: Manifest) -> list[Path]:
    """Sort stages' folders by the order of the stages, then by name."""
    made = [name for stage in manifest.stages.values() for name in stage.outputs]
    place = {run / name: number for number, name in enumerate(made)}
    return sorted(sorted(folders), key=lambda folder: place.get(folder, len(made)))


def _curves(folder: Path, manifest: Manifest) -> dict[str, list[dict[str, float]]]:
    """Return stage -> logged steps, in stage order; a step logged twice (a resumed run) counts once."""
    curves: dict[str, list[dict[str, float]]] = {}
    for place in (folder, *rounds_there(folder).values()):
        within = "" if place == folder else f"{place.name}/"
        for left in _in_order(place.glob("[0-9][0-9]-*"), folder, manifest):
            for path in sorted(left.glob("**/metrics.jsonl")):
                stage = path.parent.relative_to(place).as_posix()
                if "checkpoint-" not in stage:
                    curves[within + re.sub(r"^\d\d-", "", stage)] = _steps(path)
    return curves


def _steps(path: Path) -> list[dict[str, float]]:
    steps: dict[float, dict[str, float]] = {}
    for row in _read_lines(path):
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float)}
        if "step" in numbers:
            steps.setdefault(numbers["step"], {}).update(numbers)
    return [steps[step] for step in sorted(steps)]


def _masks(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the view's fields that stages' masks fill, each by stage."""
    left = _in_order(folder.glob("[0-9][0-9]-*"), folder, manifest)
    paths = [path / "mask.safetensors" for path in left if (path / "mask.safetensors").is_file()]
    if not paths:
        return {}
    # Imported here, as only masks need torch: a report without masks starts at once.
    from allo.weights.experts import expert_rows
    from allo.weights.param_mask import ParamMask

    found: dict[str, Any] = {"masks": {}, "experts": {}, "among": {}}
    for path in paths:
        stage, mask = path.parent.name[3:], ParamMask.load(path)
        found["masks"][stage] = tuple(mask.statistics())
        found["experts"][stage] = tuple(expert_rows(mask.shapes, mask.indices))
        known = mask.metadata
        found["among"][stage] = {
            key: known[key] for key in ("num_allowed", "include", "exclude") if key in known
        }
    return found


def _credit(folder: Path) -> TokenCredit | None:
    """Return the token scores if the run has any."""
    path = folder / "05-token-scores.parquet"
    wrong = folder / "03-wrong.jsonl"
    return token_credit(path, _read_lines(wrong) if wrong.is_file() else []) if path.is_file() else None
