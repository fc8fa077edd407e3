"""A model card: the result of a run as the README of its repository. It is pure: equal runs give equal bytes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from allo.report import figures, tables
from allo.report.diagnosis import diagnosis_lines
from allo.report.likelihood import likelihood_tables
from allo.report.pairs import held_out_tables
from allo.report.run_view import RunView

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")  # an id that the hub may know
_CODE = re.compile(r"[\w.+:/' -]+")


@dataclass(frozen=True)
class Facts:
    """The facts of a card that are in no results: origins, settings in words, digests.

    `base_fingerprint` is that of the model that the delta belongs to: the base, or what the run made of it first.
    `command` made the model.
    """

    base: str
    licence: str
    data: Sequence[str]
    method: Sequence[str]
    changed: int
    num_weights: int
    base_fingerprint: str
    delta_digest: str
    starts_at_base: bool
    command: str = "allo run recipe.yaml"


def card(run: RunView, facts: Facts) -> str:
    """Return the model card as Markdown, beginning with the hub's metadata."""
    return "\n".join(
        [
            _metadata(run, facts),
            *_origin(run, facts),
            *_results(run),
            *diagnosis_lines([run]),
            *_provenance(run, facts),
        ]
    )


def _metadata(run: RunView, facts: Facts) -> str:
    fields: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["allo"],
    }
    if _HUB_ID.fullmatch(facts.base):
        fields["base_model"] = facts.base
    if _LICENCE.fullmatch(facts.licence) and facts.licence != "unknown":
        fields["license"] = facts.licence
    return f"---\n{yaml.safe_dump(fields, sort_keys=True)}---\n"


def _origin(run: RunView, facts: Facts) -> list[str]:
    share = figures.density(facts.changed / max(1, facts.num_weights))
    return [
        f"# {tables.escaped(figures.name(run.name))}",
        "",
        f"{tables.escaped(figures.name(facts.base))}, aligned with allo: {share} of its weights "
        f"({figures.count(facts.changed)} of {figures.count(facts.num_weights)}) differ from the starting model.",
        "",
        *(f"- {name}: {tables.escaped(text)}" for name, text in _lines(facts)),
        "",
    ]


def _lines(facts: Facts) -> list[tuple[str, str]]:
    return [
        ("Base", facts.base),
        ("Licence of the base", facts.licence),
        *(("Data", text) for text in facts.data),
        *(("Method", text) for text in facts.method),
    ]


def _results(run: RunView) -> list[str]:
    rows = tables.models([run])
    found = [*tables.result_tables(rows), *held_out_tables(rows), *likelihood_tables([run], training=False)]
    return ["## Results", "", "Intervals are at 95%.", "", *map(tables.to_markdown, found)] if found else []


def _provenance(run: RunView, facts: Facts) -> list[str]:
    stages = [stage for stage in run.manifest.stages.values() if stage.commit]
    commit = stages[-1].commit if stages else None
    made = f"allo {run.manifest.allo}" if run.manifest.allo else "allo"
    if commit:
        made += f", commit {commit[:10]}" + (", with uncommitted changes" if stages[-1].dirty else "")
    start = "the base" if facts.starts_at_base else "the starting model that the run made of the base"
    return [
        "## How it was made",
        "",
        f"- {_code(facts.command)} ({tables.escaped(made)}), with the resolved recipe in the run's `recipe.yaml`",
        f"- Fingerprint of {start}: {_code(facts.base_fingerprint)}",
        f"- SHA-256 of the delta, which makes this model from it: {_code(facts.delta_digest)}",
        "",
    ]


def _code(text: str) -> str:
    return f"`{text}`" if _CODE.fullmatch(text) else tables.escaped(text)
