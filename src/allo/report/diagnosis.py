"""The diagnoses of a run's curves and its evaluation, in plain sentences with the keys to change."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from allo.recipe.losses import PAIR_LOSSES
from allo.recipe.trainers import TRAINERS
from allo.report import faults, figures
from allo.report.evidence import FEWEST, Evidence, Steps, at_end, at_start, span
from allo.report.faults import Numbers
from allo.report.run_view import Manifest, RunView
from allo.report.tables import escaped


@dataclass(frozen=True)
class Finding:
    """One diagnosis of a stage: the sentence that names it, and all of its sentences."""

    diagnosis: str
    happened: str
    text: str
    explains: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """A fault that curves show. `find` returns the numbers that `happened` names, or None.

    `stages` have it. `changes` are verbs with the keys that help: one to set has no value yet, and any other that the
    recipe lacks is left out. A fault that it `explains` is named after it, and not told.
    """

    name: str
    stages: tuple[str, ...]
    find: Callable[[Evidence], Numbers | None]
    happened: str
    meaning: str
    changes: tuple[str, ...]
    explains: tuple[str, ...] = ()

    def finding(self, evidence: Evidence) -> Finding | None:
        """Return the fault in words, with the current values of the keys to change; None if it is not there."""
        numbers = self.find(evidence) if evidence.stage in self.stages else None
        if numbers is None:
            return None
        happened = self.happened.format(**numbers)
        text = f"{happened} {self.meaning} {_advice(self.changes, evidence, numbers)}"
        return Finding(self.name, happened, text.strip(), self.explains)


def _advice(changes: Sequence[str], evidence: Evidence, numbers: Numbers) -> str:
    """Return the changes that the recipe allows as one sentence."""
    said = []
    for change in changes:
        verb, key, *rest = change.format(stage=evidence.stage, **numbers).split()
        block, training, _ = key.partition(".training.")
        if evidence.stage in TRAINED and block in TRAINED and block != evidence.stage:
            continue  # what another stage did is seen in the evaluation
        if key.endswith(".num_train_epochs") and evidence.most_steps(block):
            key = f"{block}{training}max_steps"
        value = evidence.setting(key)
        if (value is None) is (verb == "set") and _has(key, evidence):
            now = f"{value:g}" if isinstance(value, float) else str(value)
            said.append(" ".join([verb, key, *(rest or [f"(now {now})"])]))
    if not said:
        return ""
    text = ", or ".join(filter(None, [", ".join(said[:-1]), said[-1]]))
    return f"{text[0].upper()}{text[1:]}."


def _has(key: str, evidence: Evidence) -> bool:
    """Return whether the recipe may change a key that it shows."""
    block, _, name = key.partition(".")
    trainer, loss = evidence.setting(f"{block}.trainer"), str(evidence.setting(f"{block}.loss"))
    selects = trainer is None or (trainer in TRAINERS and TRAINERS[trainer].selects)
    match name:
        case "until":
            return evidence.setting(block) is not None
        case "density":
            return selects and evidence.setting("locate") is not None
        case "anchor" | "loss":
            of_pairs = (loss in PAIR_LOSSES or ":" in loss) and evidence.setting("data.feedback") is None
            return selects and of_pairs
        case "beta":
            return loss not in ("sft", "rft", "unlikelihood")
    return True


RATE = "{stage}.training.learning_rate"
EPOCHS = "{stage}.training.num_train_epochs"
TRAINED = ("sft", "forget", "improve")
EVALUATED = "evaluate"

# Causes before what follows from them: a stage tells its first fault in full, and at most one more.
DIAGNOSES = (
    Diagnosis(
        "loss jumped",
        TRAINED,
        faults.spiked,
        "At step {step} the loss jumped to {loss}, from {before} in the steps before.",
        "Either the step's rows are unusual (garbled, cut or with the wrong label) or the steps are too large.",
        (
            f"lower {RATE}",
            "raise {stage}.training.warmup_steps",
            "raise {stage}.training.gradient_accumulation_steps",
        ),
    ),
    Diagnosis(
        "loss rose",
        TRAINED,
        faults.rose,
        "The loss rose from {start} to {end}: training ended worse than it began.",
        "The steps are too large.",
        (f"lower {RATE}", "raise {stage}.training.warmup_steps"),
        explains=("forgot too much", "forgetting spread", "chosen answers fell", "rejected answers fell far"),
    ),
    Diagnosis(
        "nothing moved",
        ("improve",),
        faults.still,
        "Training changed next to nothing: after {steps}, the margin between chosen and rejected answers moved by {margin} "
        "nats, {odds} in their odds.",
        "The steps are too small or too few.",
        (f"raise {RATE}", f"raise {EPOCHS}"),
    ),
    Diagnosis(
        "forgot too little",
        ("forget",),
        faults.forgot_little,
        "The model believes the tokens marked as wrong as it did at the start: a change of {change} nats, below {bound}, is "
        "next to nothing.",
        "The steps are too small or too few.",
        (f"raise {RATE}", f"raise {EPOCHS}"),
        explains=("until not reached",),
    ),
    Diagnosis(
        "until not reached",
        ("forget",),
        faults.until_missed,
        "After {steps}, the tokens marked as wrong have a mean probability of {share}, above forget.until {until}.",
        "Training ended before they were forgotten.",
        (f"raise {EPOCHS}", f"raise {RATE}", "raise forget.until"),
    ),
    Diagnosis(
        "forgot too much",
        ("forget",),
        faults.forgot_much,
        "The tokens marked as wrong lost {fall} nats each and are {share} as likely as at the start.",
        "Right answers need some of these tokens too, so the model may answer worse. A bound ends forgetting in time.",
        ("set forget.until to {bound}", f"lower {RATE}", "lower forget.density", f"lower {EPOCHS}"),
    ),
    Diagnosis(
        "forgetting spread",
        ("forget",),
        faults.spread,
        "The tokens marked as wrong lost {marked} nats each, and the other tokens of these answers {fall}.",
        "Forgetting reached tokens that the scores take to be right, so right answers lose them too.",
        (f"lower {RATE}", "lower forget.density", f"lower {EPOCHS}"),
    ),
    Diagnosis(
        "chosen answers fell",
        ("improve", EVALUATED),
        faults.displaced,
        "Chosen answers{where} became less likely: on average each lost {fall} nats of log-likelihood (from {start}; up to {usual} "
        "is usual) and is {share} as likely as before; a rejected one {rejected} nats.",
        "The loss only asks for a wider margin, so it also takes down what both answers share (likelihood displacement). "
        "Their probability goes to answers that are in no pair: read some samples.",
        (
            "raise improve.anchor",
            "lower improve.training.learning_rate",
            "lower forget.training.learning_rate",
            "lower improve.density",
        ),
    ),
    Diagnosis(
        "accuracy saturated",
        ("improve",),
        faults.saturated,
        "Reward accuracy was {share} from a tenth of the {steps} on.",
        "Nearly every pair was in the right order by then, so the rest of training only moved the model further from its "
        "start. The pairs are easy, or the steps are large.",
        (f"lower {EPOCHS}", f"lower {RATE}"),
        explains=("rejected answers fell far",),
    ),
    Diagnosis(
        "rejected answers fell far",
        ("improve",),
        faults.rejected_far,
        "Rejected answers lost {fall} nats each, which at beta {beta} is a reward of {reward}.",
        "The loss is flat there, so the pairs no longer ask for a fall: training goes on too long or in too large steps, "
        "and other answers change with it.",
        ("raise improve.beta", f"lower {RATE}", f"lower {EPOCHS}"),
    ),
    Diagnosis(
        "far from the start",
        (EVALUATED,),
        faults.far,
        "The KL to the start is {kl} nats a token on {set}; tuned runs stay below {bound}.",
        "The model also changed on prompts that it was not trained on, so other abilities may have suffered: test them.",
        (
            "lower improve.training.learning_rate",
            "lower forget.training.learning_rate",
            "lower improve.training.num_train_epochs",
            "raise improve.beta",
        ),
    ),
    Diagnosis(
        "length changed",
        ("improve", EVALUATED),
        faults.lengthened,
        "Answers {where} became {longer}: {after} tokens on average, {before} at the start ({change}).",
        "The model may have learned a length instead of what makes an answer good. Compare the lengths of good and bad "
        "answers in your data.",
        ("lower improve.training.learning_rate", "lower forget.training.learning_rate", "raise improve.beta"),
    ),
)


@dataclass(frozen=True)
class Reading:
    """A stage read: what its curves did, the sentences to show, and all faults, causes first."""

    stage: str
    sentences: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def told(self) -> tuple[Finding, ...]:
        """The faults with a sentence: the main one, and the first that it does not explain."""
        return _told(self.findings)


def read_stage(
    stage: str, steps: Steps, recipe: Mapping[str, Any], manifest: Manifest | None = None
) -> Reading | None:
    """Read a training stage's curves; None for one that is not diagnosed. A round's stage is `round-1/improve`."""
    place, slash, name = stage.rpartition("/")
    if name not in TRAINED:
        return None
    scored = manifest.stages.get(f"{place}{slash}score") if manifest else None
    return _read(stage, Evidence(name, steps, recipe, scored.counts if scored else {}))


def read_run(run: RunView) -> list[Reading]:
    """Read all of a run's stages and its evaluation, if that shows a fault."""
    read = (read_stage(stage, steps, run.settings, run.manifest) for stage, steps in run.curves.items())
    stages = [reading for reading in read if reading]
    evaluated = read_evaluation(run, stages)
    return [*stages, evaluated] if evaluated else stages


def read_evaluation(run: RunView, stages: Sequence[Reading]) -> Reading | None:
    """Read a run's evaluation; None if it shows no fault. What a stage has explained already is only named."""
    told = {each.diagnosis for stage in stages for each in stage.told}
    found = _found(Evidence(EVALUATED, (), run.settings, before=run.before, after=run.after))
    found = tuple(replace(each, text=each.happened) if each.diagnosis in told else each for each in found)
    return Reading(EVALUATED, _sentences(found), found) if found else None  # its headline says the rest


def diagnosis_lines(runs: Sequence[RunView]) -> list[str]:
    """Return the runs' diagnoses as Markdown: one item a stage, under a title each if there are several runs."""
    lines = []
    for run in runs:
        title = f"Diagnosis of {figures.name(run.name)}" if len(runs) > 1 else "Diagnosis"
        items = [
            f"- {escaped(figures.name(each.stage))}: {escaped(' '.join(each.sentences))}"
            for each in read_run(run)
        ]
        lines += [f"### {escaped(title)}", "", *items, ""] if items else []
    return lines


def _found(evidence: Evidence) -> tuple[Finding, ...]:
    return tuple(filter(None, (diagnosis.finding(evidence) for diagnosis in DIAGNOSES)))


def _read(stage: str, evidence: Evidence) -> Reading:
    found, num_logged = _found(evidence), len(evidence.values("loss"))
    texts = _sentences(found)
    if num_logged < FEWEST:
        few = f"A diagnosis needs {FEWEST} logged steps; there are {num_logged}."
        if (evidence.number(f"{evidence.stage}.training.logging_steps") or 1) > 1:
            few = f"{few} {_advice(['lower {stage}.training.logging_steps'], evidence, {})}"
        return Reading(stage, (few, *texts), found)
    return Reading(stage, (_summary(evidence), *(texts or ("Nothing in the curves is unusual.",))), found)


def _told(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the first fault and the next one that no fault before it explains."""
    explained = {name for each in found for name in each.explains}
    return tuple(each for each in found if each.diagnosis not in explained)[:2]


def _sentences(found: Sequence[Finding]) -> tuple[str, ...]:
    """Return the main fault in full, a second one in a sentence, and the names of the others."""
    told = _told(found)
    texts = [each.text if each is told[0] else f"Also: {each.happened}" for each in told]
    others = [each.diagnosis for each in found if each not in told]
    if others:
        texts.append(f"Also seen, perhaps from the same cause: {', '.join(others)}.")
    return tuple(texts)


def _summary(evidence: Evidence) -> str:
    """Return what the curves did, in one sentence."""
    chosen, rejected = evidence.changes("rewards/chosen"), evidence.changes("rewards/rejected")
    forgotten, losses = evidence.values("logratios/forgotten"), evidence.values("loss")
    if chosen and rejected:
        text = f"In {evidence.num_steps}, chosen answers {_moved(chosen)} each and rejected ones {_moved(rejected)}"
        told = evidence.values("rewards/accuracies")
        text += f"; reward accuracy {figures.percent(at_end(told))}" if told else ""
        return f"{text} ({_last(chosen)})."
    if len(forgotten) >= FEWEST:
        return f"In {evidence.num_steps}, the tokens marked as wrong {_moved(forgotten)} each ({_last(forgotten)})."
    believed = evidence.values("probabilities/forgotten")
    if len(believed) >= FEWEST:
        ends = [figures.decimal(end(believed), digits=2) for end in (at_start, at_end)]
        return f"In {evidence.num_steps}, the mean probability of tokens marked as wrong went from {ends[0]} to {ends[1]}."
    first, last = figures.significant(at_start(losses)), figures.significant(at_end(losses))
    return f"In {evidence.num_steps}, the loss went from {first} to {last}."


def _last(values: Sequence[float]) -> str:
    """Return which steps' median a sentence has: the curve's last point alone may be another."""
    return f"median of the last {span(values)} logged"


def _moved(changes: Sequence[float]) -> str:
    change = at_end(changes)
    return f"{'gained' if change > 0 else 'lost'} {faults.nats(change)} nats"
