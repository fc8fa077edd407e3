"""The diagnosis of a stage that has just ended."""

from pathlib import Path

from allo.report.read import reading_of


def sentences_of(run: Path, stage: str) -> tuple[str, ...]:
    """Return the sentences on a stage's curves, or on faults of the evaluation; none for other stages."""
    reading = reading_of(run, stage)
    return reading.sentences if reading else ()
