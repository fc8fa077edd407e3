"""A finished stage's counts in words."""

from collections.abc import Iterable, Mapping
from typing import Any

from allo.files.sizes import size

_PHRASES = {
    "dropped": "{} dropped",
    "prompts_cut": "{} prompts without their beginning",
    "samples_cut": "{} samples cut for the reward model",
    "cut": "{} cut for the reward model",
    "finished": "{} ended by themselves",
    "unfinished": "{} cut before their end",
    "correct": "{} correct",
    "no_answer": "{} without a final answer",
    "no_verdict": "{} without a verdict",
    "wrong": "{} wrong completions",
    "rejected": "{} rejected completions",
    "lower_reward": "{} lower-reward completions",
    "distinct_bad": "{} distinct bad ones",
    "good": "{} good",
    "bad": "{} bad",
    "held_out": "{} held out",
    "weighted": "{} of them with weight",
    "weights": "{} weights selected",
    "trained_weights": "{} weights trained",
    "changed_weights": "{} changed",
    "density": "{} of all weights",
    "mean_reward": "mean reward {}",
    "training_state_bytes": "training state {}",
    "host_state_bytes": "of which in host memory {}",
    "delta_bytes": "delta {}",
}
_ONLY_IF_ANY = {
    "dropped",
    "prompts_cut",
    "samples_cut",
    "cut",
    "unfinished",
    "no_answer",
    "no_verdict",
    "sets",
}


def result_in_words(counts: Mapping[str, Any], files: Iterable[str]) -> str:
    """Return what a stage did and which files or folders of the run hold it."""
    places = ", ".join(files)
    return (f": {in_words(counts)}" if counts else "") + (f"; in {places}" if places else "")


def in_words(counts: Mapping[str, Any]) -> str:
    """Return a stage's counts in words and with units, in their order; unknown ones by their names."""
    return ", ".join(_words(key, value) for key, value in counts.items() if value or key not in _ONLY_IF_ANY)


def _words(key: str, value: Any) -> str:
    number, name = _number(key, value), key.replace("_", " ")
    if key in _PHRASES:
        return _PHRASES[key].format(number)
    return f"{number} {name.removesuffix('s') if value == 1 else name}"


def _number(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if key.endswith("_bytes"):
        return size(value)
    if key == "density":
        return f"{100 * value:.3g}%"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
