"""Runs of lm-eval's tasks on a model, with the results as records."""

import difflib
import importlib.metadata
import io
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

import torch

from allo.errors import UserError
from allo.files.provenance import provenance
from allo.harness import own_tasks
from allo.harness.subject import Subject
from allo.models.load import quiet

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.manager import TaskDict

HARNESS = "lm_eval"
GENERATES = "generate_until"  # lm-eval's name for tasks on completions
SEED = 1234  # lm-eval's own seed, for the examples shown and for tasks that sample
_REFUSE = ("lm_eval.evaluator", "lm_eval.models")
SHOWN = 5  # similar names in an error


@dataclass(frozen=True)
class HarnessSettings:
    """Settings for running tasks; None keeps the task's own value.

    `limit` takes the first problems of each task. `data_folder`, `stop` and `own_max_new_tokens` apply to our tasks
    only: local rows, strings that end a completion besides EOS, and its length if `max_new_tokens` is None.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 1
    max_new_tokens: int | None = None
    chat: bool = False
    include_path: Path | None = None
    data_folder: Path | None = None
    stop: tuple[str, ...] = ()
    own_max_new_tokens: int | None = None


@dataclass(frozen=True)
class Tasks:
    """Tasks with their problems in lm-eval's form, by the names requested."""

    by_name: dict[str, "TaskDict"]

    @property
    def leaves(self) -> list["Task"]:
        return [task for loaded in self.by_name.values() for task in loaded["tasks"].values()]


def load_tasks(names: list[str], settings: HarnessSettings) -> Tasks:
    """Read the tasks and their problems.

    Raises `UserError` without lm-eval, for a name of no task, group or tag, and for a task that cannot be loaded.
    """
    manager = _manager(names, settings)
    by_name: dict[str, TaskDict] = {}
    for name in dict.fromkeys(names):
        if name not in manager.all_tasks:
            raise UserError(_unknown(name, manager.all_tasks))
        with _loading(name):
            by_name[name] = manager.load([name])
        for task in by_name[name]["tasks"].values():
            _fit(task, settings)
    return Tasks(by_name)


def measure(subject: Subject, tasks: Tasks, settings: HarnessSettings) -> Iterator[list[dict[str, Any]]]:
    """Yield the records of each requested name: one per task, and one for a group.

    lm-eval's cache is off, because it would be pickled.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    if settings.chat and not getattr(subject.tokenizer, "chat_template", None):
        raise UserError("the model's tokenizer has no chat template; measure it with --no-chat-template.")
    with _hushed():
        lm = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=settings.batch_size)
    _check_lengths(tasks, lm)
    for loaded in tasks.by_name.values():
        begun = time.monotonic()
        with _hushed(), _running():
            random.seed(SEED)
            torch.manual_seed(SEED)
            found = evaluate(
                lm,
                loaded,
                limit=settings.limit,
                apply_chat_template=settings.chat,
                fewshot_as_multiturn=settings.chat,
                log_samples=False,
                cache_requests=False,
            )
        assert found is not None  # None is returned only on later processes of several
        yield records(found, subject, settings, seconds=time.monotonic() - begun)


def records(
    found: Mapping[str, Any], subject: Subject, settings: HarnessSettings, *, seconds: float
) -> list[dict[str, Any]]:
    """Return lm-eval's results as records of the `harness` block, with their provenance."""
    made = provenance()
    made["versions"][HARNESS] = importlib.metadata.version(HARNESS)
    shared = {
        "limit": settings.limit,
        "chat_template": settings.chat,
        "batch_size": settings.batch_size,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "device": str(subject.model.device),
        "seed": SEED,
        "seconds": round(seconds, 3),
        **made,
    }
    result = []
    for task, values in found["results"].items():
        counts = found["n-samples"].get(task, {})
        result.append(
            {
                "harness": HARNESS,
                "harness_version": made["versions"][HARNESS],
                "task": task,
                "version": found["versions"].get(task),
                "num_fewshot": found["n-shot"].get(task),
                "generation": found["configs"].get(task, {}).get("generation_kwargs"),
                "num_problems": counts.get("effective"),
                "num_all": counts.get("original"),
                "metrics": _metrics(values, found["higher_is_better"].get(task, {})),
                **shared,
            }
        )
    return result


def _metrics(values: Mapping[str, Any], higher: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one record for each of lm-eval's `metric,filter` values that is a number."""
    found = []
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or _number(value) is None:
            continue
        found.append(
            {
                "metric": metric,
                "filter": filtered,
                "value": _number(value),
                "stderr": _number(values.get(f"{metric}_stderr,{filtered}")),
                "higher_is_better": higher.get(metric),
            }
        )
    return found


def _number(value: Any) -> float | None:
    """Return a finite number that JSON can hold, otherwise None; lm-eval writes "N/A" for a missing one."""
    if isinstance(value, str) or value is None:
        return None
    return float(value) if math.isfinite(value) else None


def _manager(names: list[str], settings: HarnessSettings) -> "TaskManager":
    """Return lm-eval's index of tasks, including ours; its own 14,000 are read only if a name may need them."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"--harness {HARNESS} needs lm-eval ({error}); install it with `pip install allo-align[eval]`."
        ) from error
    if settings.include_path is not None and not settings.include_path.is_dir():
        raise UserError(f"--include-path {settings.include_path}: there is no such folder of task files.")
    include = [own_tasks.FOLDER, *filter(None, [settings.include_path])]
    metadata: dict[str, Any] = {"chat": settings.chat, "examples": bool(settings.num_fewshot)}
    if settings.data_folder is not None:
        metadata["data_folder"] = str(settings.data_folder)
    with _hushed():
        near = TaskManager(include_path=[*include], include_defaults=False, metadata=metadata)
        if set(names) <= set(near.all_subtasks):
            return near
        return TaskManager(include_path=[*include], metadata=metadata)


def _fit(task: "Task", settings: HarnessSettings) -> None:
    """Replace the task's own settings with those requested; a task that deliberately shows no examples keeps none."""
    generation: dict[str, Any] = {}
    if own_tasks.is_own(task.task_name):
        generation = {"until": list(settings.stop), "max_gen_toks": settings.own_max_new_tokens}
    generation["max_gen_toks"] = settings.max_new_tokens or generation.get("max_gen_toks")
    given = {key: value for key, value in generation.items() if value is not None}
    if given and task.get_config("output_type") == GENERATES:
        task.set_config(key="generation_kwargs", value=given, update=True)
    own = task.get_config("num_fewshot")
    if own is None or (own != 0 and settings.num_fewshot is not None):
        task.set_config(key="num_fewshot", value=settings.num_fewshot or 0)
    task.set_fewshot_seed(seed=SEED)


def _unknown(name: str, known: list[str]) -> str:
    short = name.removeprefix(own_tasks.PREFIX)
    near = [other for other in own_tasks.names() if short == other.removeprefix(own_tasks.PREFIX)]
    near += difflib.get_close_matches(name, known, n=SHOWN)
    hint = (
        f"near it: {', '.join(list(dict.fromkeys(near))[:SHOWN])}"
        if near
        else "`lm_eval ls tasks` lists them"
    )
    return f"--tasks {name}: neither {HARNESS} nor allo has a task of that name; {hint}."


def _check_lengths(tasks: Tasks, lm: Any) -> None:
    """Raise `UserError` if a completion would leave no position for its prompt."""
    for task in tasks.leaves:
        if task.get_config("output_type") != GENERATES:
            continue
        longest = (task.get_config("generation_kwargs") or {}).get("max_gen_toks", lm.max_gen_toks)
        if longest >= lm.max_length:
            raise UserError(
                f"{task.task_name}: completions of up to {longest} tokens leave no room for a prompt in the model's "
                f"{lm.max_length} positions; lower it with --max-new-tokens."
            )


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turn errors that lm-eval or `datasets` raises for a task into `UserError`."""
    try:
        with _hushed():
            yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"--tasks {name}: lm-eval needs another package for it ({error}); install that package."
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"--tasks {name}: lm-eval cannot load it ({type(error).__name__}: {error}). "
            "Check the network and the task's data set, or give a task file of your own with --include-path."
        ) from error


@contextmanager
def _running() -> Iterator[None]:
    """Turn refusals into `UserError`: lm-eval refuses tasks that run model-written code or show images.

    Missing word lists of nltk are reported, too. A `ValueError` from elsewhere is raised unchanged.
    """
    try:
        yield
    except ValueError as error:
        raised_by = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)][-1]
        if not raised_by.startswith(_REFUSE):
            raise
        raise UserError(f"lm-eval refuses: {error}") from error
    except LookupError as error:
        if type(error) is not LookupError:  # a KeyError is a programming mistake
            raise
        raise UserError(f"the task needs data of nltk that is not here: {error}") from error


@contextmanager
def _hushed() -> Iterator[None]:
    """Suppress lm-eval's output and warnings, and its progress bars off a terminal."""
    logger = logging.getLogger(HARNESS)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet(), redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
