"""Measurement of one command's models; each result is written as soon as it exists."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from allo.console import say
from allo.errors import UserError
from allo.files import harness_results as harness_block
from allo.files.artifacts import RunFolder, held
from allo.files.evaluation import HarnessModel
from allo.harness.measure import HarnessSettings, load_tasks, measure
from allo.harness.subject import Source, load, of_model, of_run
from allo.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Job:
    """Models to measure, the settings, and the file for the results. `run` is the models' run, if any."""

    sources: list[Source]
    settings: HarnessSettings
    output: Path
    device: str = "auto"
    trust_remote_code: bool = False
    run: RunFolder | None = None

    def do(
        self, names: list[str], *, dtype: str | None, device: str | None, trust_remote_code: bool
    ) -> list[HarnessModel]:
        """Measure every task on every model, and return the file's resulting entries in the report's form."""
        harness_block.read_block(self.output)
        tasks = load_tasks(names, self.settings)
        measured = []
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with held(self.run.path) if self.run else nullcontext():  # another file needs no lock
            for source in self.sources:
                say(f"{source.label} ...")
                subject = load(
                    source,
                    dtype=dtype,
                    device=device or self.device,
                    trust_remote_code=trust_remote_code or self.trust_remote_code,
                )
                for results in measure(subject, tasks, self.settings):
                    with (
                        harness_block.amended(run, self.output) if (run := self._evaluated) else nullcontext()
                    ):
                        for result in results:
                            name = harness_block.add(
                                self.output,
                                source.name,
                                label=source.label,
                                fingerprint=subject.fingerprint,
                                result=result,
                                replaces=run is not None,
                            )
                            measured.append(name)
        block = harness_block.read_block(self.output)
        mine = [block[name] for name in dict.fromkeys(measured)]
        return TypeAdapter(list[HarnessModel]).validate_python(mine)

    @property
    def _evaluated(self) -> RunFolder | None:
        """Return the run whose evaluation receives the results; None if they go elsewhere."""
        run = self.run
        return run if run is not None and self.output.resolve() == run.evaluation.resolve() else None


def run_of(place: Path, overrides: list[str] | None) -> tuple[Recipe, RunFolder] | None:
    """Return the run of a folder or recipe; None if the place is neither."""
    if place.suffix in (".yaml", ".yml"):
        recipe = load_recipe(place, overrides)
        return recipe, RunFolder(recipe.run_folder)
    if (place / "recipe.yaml").is_file():
        return load_recipe(place / "recipe.yaml", overrides), RunFolder(place)
    return None


def run_job(
    recipe: Recipe,
    run: RunFolder,
    settings: HarnessSettings,
    *,
    start: bool,
    output: Path | None,
    chat: bool | None,
) -> Job:
    """Return the job for a run's result; the run's device, chat setting, local rows and lengths are the defaults."""
    settings = replace(
        settings,
        chat=recipe.chat if chat is None else chat,
        data_folder=settings.data_folder or recipe.data_folder,
        stop=tuple(recipe.sample.stop),
        own_max_new_tokens=recipe.evaluate.max_new_tokens,
    )
    return Job(
        of_run(recipe, run, start=start),
        settings,
        output or run.evaluation,
        device=recipe.device,
        trust_remote_code=recipe.trust_remote_code,
        run=run,
    )


def model_job(
    base: str,
    delta: str | None,
    settings: HarnessSettings,
    *,
    output: Path | None,
    chat: bool | None,
    pad_token: str | None,
) -> Job:
    """Return the job for a model, alone or with a delta. Raises `UserError` if no file for results is given."""
    if output is None:
        raise UserError(f"{base}: not a run's folder; name a file for the results with --output FILE.json.")
    source = of_model(base, delta, pad_token=pad_token)
    return Job([source], replace(settings, chat=bool(chat)), output)
