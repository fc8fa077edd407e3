"""The faults that curves and an evaluation show: one function each, from `Evidence` to the numbers of a sentence, or None.

The sentences are in `diagnosis.py`.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import fmean, median

from allo.recipe.trainers import TRAINERS
from allo.report import figures
from allo.report.evidence import FEWEST, SHARE, Evidence, at_end, at_start, span

Numbers = dict[str, str]

STILL = 0.1
"""Nats per answer. A margin below it changes the odds of the two answers by less than a tenth."""
FORGOTTEN_LITTLE = 0.05
"""Nats per token: 5% less likely. The laboratory's best rate takes 0.17; 0.013 was hardly anything (docs/experiments.md)."""
FORGOTTEN_MUCH = 4.0
"""Nats per token: 98% of a token's probability is gone. The laboratory's good NPO runs end at 0.2 to 0.4."""
SPREAD = 0.1
"""Nats per token: 10% less likely. At the laboratory's best rate and at twice it, unmarked tokens gain 0.02; at eight
times they lose 2.4."""
USUAL_FALL = 0.5
"""Nats per answer: 40% less likely. The laboratory's tuned methods end between a gain of 0.6 and a loss of 0.5 (25 tokens
times "drop of chosen" in benchmarks/RESULTS.md); five times the best rate loses 0.75."""
USUAL_SHARE = 0.1
"""The share of an answer's log-likelihood at the start. Long answers lose more nats at the same harm."""
FLAT = 5.0
"""The reward at which a sigmoid loss has 1.3% of its first slope left, so that the data no longer asks for the fall."""
SATURATED = 0.99
"""The share of pairs told apart. Above it, more steps change margins, not the order of answers."""
FEWEST_SATURATED = 20
"""Logged steps of which a tenth is more than the first two, which the learning rate's warm-up takes."""
LENGTHENED = 1.25
"""The ratio of mean lengths, either way. The largest mean drift of a compared method is 1.23 (benchmarks/RESULTS.md)."""
FAR = 0.1
"""Nats per token to the start. Tuned methods end below it (0.098 at most in benchmarks/RESULTS.md); of six at five times the
recipe's rate (lab-passes), three end above it, with less accuracy than at their best."""
SPIKE = 2.0
"""The ratio of a step's loss to the median of the ten before it."""
BEFORE = 10
"""Steps before a spike that it is compared with; at least half of them must be there."""
DEVIATIONS = 6.0
"""The number of standard deviations, in logarithms of the loss, below which a jump passes for noise."""
TO_DEVIATION = 1.4826
"""The standard deviation of normal noise over its median absolute deviation."""
ROSE = 1.1
"""The ratio of the loss at the end to the loss at the start. Good runs end below 1."""


def nats(value: float) -> str:
    """Return the size of a change in log-likelihood, rounded alike in every sentence."""
    size = abs(value)
    return figures.decimal(size, digits=0 if size >= 10 else 2 if size >= 0.1 else 3)


def _as_likely(change: float) -> str:
    """Return how likely something is after a change in nats, beside the start."""
    share = math.exp(min(change, 0.0))
    return figures.percent(share) if share >= 0.001 else f"less than {figures.percent(0.001)}"


def still(evidence: Evidence) -> Numbers | None:
    """Find a margin between chosen and rejected answers that is as good as none."""
    margins = evidence.changes("rewards/margins")
    if not margins or abs(at_end(margins)) >= STILL:
        return None
    margin = abs(at_end(margins))
    return {
        "margin": nats(margin),
        "odds": figures.percent(math.exp(margin) - 1),
        "steps": evidence.num_steps,
    }


def displaced(evidence: Evidence) -> Numbers | None:
    """Find a fall of the chosen answers beyond what DPO usually takes, in training or on held-out pairs."""
    if evidence.after:
        return _displaced_held_out(evidence)
    chosen, rejected = evidence.changes("rewards/chosen"), evidence.changes("rewards/rejected")
    logps = evidence.values("logps/chosen")
    if not chosen or not rejected or len(logps) != len(chosen):
        return None
    likelihood = -fmean(logp - change for logp, change in zip(logps, chosen, strict=True))
    return _displaced("", likelihood, at_end(chosen), at_end(rejected))


def _displaced_held_out(evidence: Evidence) -> Numbers | None:
    """Find a fall on held-out pairs; one whose interval holds no change may be chance."""
    before = evidence.before.held_out if evidence.before else None
    after = evidence.after.held_out if evidence.after else None
    if not (before and before.chosen_logp and after and after.chosen and after.rejected):
        return None
    if after.chosen.answer.high >= 0:
        return None
    changes = after.chosen.answer.value, after.rejected.answer.value
    return _displaced(" on held-out rows", -before.chosen_logp.value, *changes)


def _displaced(where: str, likelihood: float, chosen: float, rejected: float) -> Numbers | None:
    """Describe a change of chosen answers, if it is a fall beyond the usual."""
    fall, usual = -chosen, max(USUAL_FALL, USUAL_SHARE * likelihood)
    if fall <= usual:
        return None
    return {
        "where": where,
        "fall": nats(fall),
        "usual": nats(usual),
        "start": figures.decimal(-likelihood, digits=1),
        "share": _as_likely(-fall),
        "rejected": f"{'lost' if rejected < 0 else 'gained'} {nats(rejected)}",
    }


def rejected_far(evidence: Evidence) -> Numbers | None:
    """Find rejected answers that fell on where the loss is flat, in their reward and in the margin."""
    rejected, margins = evidence.changes("rewards/rejected"), evidence.changes("rewards/margins")
    beta = evidence.number(f"{evidence.stage}.beta")
    # IPO's loss is a square, which is never flat.
    is_square = "ipo" in (evidence.setting("improve.loss"), evidence.setting("improve.training.loss_type"))
    if not rejected or not margins or beta is None or is_square:
        return None
    fall = -at_end(rejected)
    if beta * min(fall, at_end(margins)) < FLAT:
        return None
    return {"fall": nats(fall), "reward": figures.decimal(-beta * fall, digits=1), "beta": f"{beta:g}"}


def saturated(evidence: Evidence) -> Numbers | None:
    """Find pairs that are told apart from the first tenth of the steps on."""
    told = evidence.values("rewards/accuracies")
    first = int(len(told) * SHARE)
    if len(told) < FEWEST_SATURATED or fmean(told[first : 2 * first]) < SATURATED:
        return None
    if fmean(told[first:]) < SATURATED:
        return None
    return {"share": figures.percent(fmean(told[first:])), "steps": evidence.num_steps}


def lengthened(evidence: Evidence) -> Numbers | None:
    """Find answers that became longer or shorter: those of the evaluation, or those sampled in training."""
    found = [
        (abs(math.log(after / before)), where, before, after)
        for where, before, after in _lengths(evidence)
        if before > 0 and after > 0
    ]
    apart, where, before, after = max(found, default=(0.0, "", 1.0, 1.0))
    if apart <= math.log(LENGTHENED):
        return None
    return {
        "where": where,
        "longer": "longer" if after > before else "shorter",
        "before": figures.decimal(before, digits=1),
        "after": figures.decimal(after, digits=1),
        "change": f"{figures.points(after / before - 1)}%",
    }


def _lengths(evidence: Evidence) -> Iterator[tuple[str, float, float]]:
    """Yield mean lengths before and after in tokens, with a place."""
    if evidence.before is not None and evidence.after is not None:
        for name, result in evidence.after.sets.items():
            start = evidence.before.sets.get(name)
            if start and start.mean_tokens and result.mean_tokens:
                yield f"on {figures.name(name)}", start.mean_tokens, result.mean_tokens
    sampled = evidence.values("completions/mean_length")
    if len(sampled) >= FEWEST:
        yield "sampled in training", at_start(sampled), at_end(sampled)


def far(evidence: Evidence) -> Numbers | None:
    """Find a KL to the start that good runs do not have."""
    kl = evidence.after.kl if evidence.after else None
    if kl is None or kl.value <= FAR:
        return None
    return {"kl": figures.decimal(kl.value, digits=2), "set": figures.name(kl.set), "bound": f"{FAR:g}"}


def _forgotten(evidence: Evidence) -> float | None:
    """Return the marked tokens' change in nats; without a reference, that of their mean probability's logarithm."""
    ratios = evidence.values("logratios/forgotten")
    if len(ratios) >= FEWEST:
        return at_end(ratios)
    believed = evidence.values("probabilities/forgotten")
    if len(believed) < FEWEST or min(believed) <= 0:
        return None
    return math.log(at_end(believed) / at_start(believed))


def forgot_much(evidence: Evidence) -> Numbers | None:
    """Find marked tokens that are all but impossible, unless the recipe says how far to go.

    Without a reference, as in unlikelihood, that is the loss's aim: its slope fades with their probability.
    """
    ratios = evidence.values("logratios/forgotten")
    if (
        len(ratios) < FEWEST
        or at_end(ratios) >= -FORGOTTEN_MUCH
        or evidence.number("forget.until") is not None
    ):
        return None
    believed = evidence.values("probabilities/forgotten")
    bound = f"{believed[0] / 2:.1g}" if believed else "0.1"  # the first is the start's
    return {"fall": nats(at_end(ratios)), "share": _as_likely(at_end(ratios)), "bound": bound}


def spread(evidence: Evidence) -> Numbers | None:
    """Find a loss of unmarked tokens: what whole answers lost, less the loss of their marked tokens."""
    sums = [evidence.scored.get(name) for name in ("completions", "tokens", "weighted")]
    answers, tokens, marked = (float(each) if isinstance(each, int | float) else 0.0 for each in sums)
    ratios, whole = evidence.values("logratios/forgotten"), evidence.changes("rewards/rejected")
    if not answers or tokens <= marked or len(ratios) < FEWEST or not whole:
        return None
    change = (answers * at_end(whole) - marked * at_end(ratios)) / (tokens - marked)
    return {"fall": nats(change), "marked": nats(at_end(ratios))} if change < -SPREAD else None


def forgot_little(evidence: Evidence) -> Numbers | None:
    """Find marked tokens that are about as likely as before, unless that was enough for the recipe's bound."""
    change = _forgotten(evidence)
    if change is None or change < -FORGOTTEN_LITTLE or _reached(evidence):
        return None
    return {"change": nats(change), "bound": nats(FORGOTTEN_LITTLE)}


def until_missed(evidence: Evidence) -> Numbers | None:
    """Find a `forget.until` that the last step had not reached."""
    until, believed = evidence.number("forget.until"), evidence.values("probabilities/forgotten")
    if until is None or not believed or _reached(evidence):
        return None
    return {
        "share": figures.decimal(believed[-1], digits=2),
        "until": f"{until:g}",
        "steps": evidence.num_steps,
    }


def _reached(evidence: Evidence) -> bool:
    """Return whether the recipe's bound ended forgetting, which a logged mean of several steps may not show."""
    until, believed = evidence.number("forget.until"), evidence.values("probabilities/forgotten")
    return until is not None and bool(believed) and (believed[-1] < until or _stopped(evidence))


def _stopped(evidence: Evidence) -> bool:
    """Return whether training ended before its data."""
    most = evidence.most_steps("forget")
    end = most or evidence.number("forget.training.num_train_epochs")
    last = evidence.steps[-1].get("step" if most else "epoch")
    return bool(end and last and last < end - 1e-6)


def spiked(evidence: Evidence) -> Numbers | None:
    """Find the largest jump of the loss that its noise does not explain."""
    losses, first = _losses(evidence), BEFORE // 2
    logs = [math.log(loss) for loss in losses]
    levels = [median(logs[max(0, at - BEFORE) : at]) for at in range(first, len(logs))]
    jumps = [log - level for log, level in zip(logs[first:], levels, strict=True)]
    if not jumps:
        return None
    middle = median(jumps)
    deviation = TO_DEVIATION * median(abs(jump - middle) for jump in jumps)
    at = jumps.index(max(jumps))
    if jumps[at] < max(math.log(SPIKE), DEVIATIONS * deviation):
        return None
    step = evidence.logged("loss")[at + first]
    return {
        "before": figures.significant(math.exp(levels[at])),
        "loss": figures.significant(step["loss"]),
        "step": figures.count(step.get("step", at + first + 1)),
    }


def rose(evidence: Evidence) -> Numbers | None:
    """Find a loss that ends higher than it began, beyond its noise."""
    losses = _losses(evidence)
    if len(losses) < FEWEST:
        return None
    before, after = at_start(losses), at_end(losses)
    apart = [(b - a) ** 2 / 2 for a, b in pairwise(losses)]
    error = math.sqrt(2 * median(apart) / span(losses))
    if after < ROSE * before or after - before < 3 * error:
        return None
    return {"start": figures.significant(before), "end": figures.significant(after)}


def _losses(evidence: Evidence) -> list[float]:
    """Return the losses if they measure progress: positive ones of rows that stay the same."""
    trainer = evidence.setting(f"{evidence.stage}.trainer")
    losses = evidence.values("loss")
    samples = trainer in TRAINERS and TRAINERS[trainer].samples
    return [] if samples or min(losses, default=0.0) <= 0 else losses
