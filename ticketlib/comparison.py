"""Whether one model routes better than another, or the test tickets are too few to say.

`truth` and `queues` are those of `metrics`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import binomtest, norm

from ticketlib.intervals import (
    draw_groups,
    encode_groups,
    format_share,
    middle_95,
    resample_scores,
)
from ticketlib.predictions import encode_both

# A difference of so many standard errors is seen (at 5 %) in four of five test splits.
STANDARD_ERRORS = norm.ppf(0.975) + norm.ppf(0.8)
# With fewer tickets on which the models differ, McNemar's test is never below 5 %.
FEWEST = 6


def mcnemar(
    truth: Sequence[str],
    a: Sequence[str],
    b: Sequence[str],
    *,
    groups: Sequence[int] | None = None,
) -> dict[str, float]:
    """Compare two models on the same tickets with McNemar's exact test.

    It takes tickets as independent; paraphrase groups make it a little too sure. With `groups`,
    each of them counts once, for the model that is right more often in it.

    Args:
        truth: True queues, [n].
        a: Queues that the first model predicts, [n].
        b: Queues that the second model predicts, [n].
        groups: Paraphrase group of every row, [n].

    Returns:
        `only_a_right`, `only_b_right` (tickets, or groups) and `p_value` (two-sided: how probable a
        difference this large is when both are equally good).

    Raises:
        ValueError: If the lengths differ, or a row has no group.
    """
    truth, a, b = (np.asarray(column, dtype=object) for column in (truth, a, b))
    if not len(truth) == len(a) == len(b):
        raise ValueError(
            f"{len(truth)} true queues, but {len(a)} and {len(b)} predicted. Give as many."
        )
    lead = (a == truth).astype(int) - (b == truth)
    if groups is not None:
        lead = np.bincount(encode_groups(groups, len(truth)), weights=lead)
    only_a, only_b = int((lead > 0).sum()), int((lead < 0).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"only_a_right": only_a, "only_b_right": only_b, "p_value": float(p_value)}


def compare_models(
    truth: Sequence[str],
    a: np.ndarray,
    b: np.ndarray,
    queues: Sequence[str],
    *,
    groups: Sequence[int],
    seed: int,
    n_resamples: int = 1000,
) -> dict[str, float | str | None]:
    """How much better the first of two models routes the same tickets, and whether that is chance.

    Both are scored on the same draws of paraphrase groups, so that what is hard for both cancels.

    Args:
        truth: True queues, [n].
        a: Probabilities of the first model, [n, q].
        b: Probabilities of the second model, [n, q].
        queues: All queues, in the order of the columns.
        groups: Paraphrase group of every row, [n].
        seed: Seed of the bootstrap.
        n_resamples: Bootstrap samples.

    Returns:
        `accuracy_a`, `accuracy_b`, `accuracy_difference` (of a to b) with its 95 % interval,
        `accuracy_difference_low` and `_high`; the same for `macro_f1`; `only_a_right`,
        `only_b_right` and `p_value` of `mcnemar` with groups; `n`.

        `outcome` for the accuracy: `better` or `worse` if the interval leaves out 0 and McNemar's
        test, at 5 %, says the same, else `unclear`. Where the models differ on a handful of
        tickets, the interval alone is too sure; where groups differ in size, the test alone.

        `smallest_difference`: the true difference in accuracy that nearly four of five such test
        splits would show. `tickets_needed`: the test tickets with which that is the difference
        observed; None if there is none.

    Raises:
        ValueError: If lengths differ, there are no tickets, a true queue is not in `queues`, a
            probability is NaN, or a row has no group.
    """
    true, predicted_a = encode_both(truth, a, queues)
    predicted_b = encode_both(truth, b, queues)[1]
    n = len(true)
    weights = draw_groups(groups, n, seed=seed, n_resamples=n_resamples)
    once = np.ones((1, n))  # Every row as it is
    (scores_a, samples_a), (scores_b, samples_b) = (
        [resample_scores(true, predicted, drawn, len(queues)) for drawn in (once, weights)]
        for predicted in (predicted_a, predicted_b)
    )
    result = {}
    for name in ("accuracy", "macro_f1"):
        of_a, of_b = scores_a[name].item(), scores_b[name].item()
        low, high = middle_95(samples_a[name] - samples_b[name])
        result |= {f"{name}_a": of_a, f"{name}_b": of_b, f"{name}_difference": of_a - of_b}
        result |= {f"{name}_difference_low": low, f"{name}_difference_high": high}
    result |= mcnemar(true, predicted_a, predicted_b, groups=groups)
    difference = result["accuracy_difference"]
    chance = STANDARD_ERRORS * (samples_a["accuracy"] - samples_b["accuracy"]).std()
    least = FEWEST / (encode_groups(groups, n).max() + 1)
    needed = n * max((chance / difference) ** 2, least / abs(difference)) if difference else None
    agree = (result["only_a_right"] > result["only_b_right"]) == (difference > 0)
    sure = result["p_value"] < 0.05 and agree
    return result | {
        "outcome": _judge(result, "accuracy") if sure else "unclear",
        "smallest_difference": float(max(chance, least)),
        "tickets_needed": needed and int(np.ceil(needed)),
        "n": n,
    }


def state_verdict(
    comparison: Mapping[str, float | str | None], *, model: str, baseline: str
) -> str:
    """What `compare_models` found, in two or three sentences for a reader without statistics.

    Args:
        comparison: What it gives for the model (a) and the baseline (b).
        model: Name of the model, as a sentence begins: `The tuned model`.
        baseline: Name of the baseline, as within a sentence.

    Returns:
        Which model routes more tickets right, by how many points, and that chance does not explain
        it; or that they cannot be told apart, and how many test tickets that would take. A sentence
        on macro-F1 follows if that says something else.
    """
    a, b = (format_share(comparison[name]) for name in ("accuracy_a", "accuracy_b"))
    shares = f"{a} of {comparison['n']:,} test tickets go to the right queue, against {b}"
    difference, interval = _state_difference(comparison, "accuracy")
    outcome = comparison["outcome"]
    if outcome == "unclear":
        if _judge(comparison, "accuracy") != "unclear":
            p_value = comparison["p_value"]
            interval += (
                f", but McNemar's p = {p_value:.2g}"
                if p_value >= 0.05
                else ", but more groups of near copies speak for the other"
            )
        sentences = [
            f"{model} and {baseline} cannot be told apart: {shares}, a difference of {difference} "
            f"({interval}).",
            _state_size(comparison),
        ]
    else:
        verb = "beats" if outcome == "better" else "is beaten by"
        sentences = [
            f"{model} {verb} {baseline}: {shares}.",
            f"The difference of {difference} is more than chance ({interval}).",
        ]
    macro = _judge(comparison, "macro_f1")
    differ = comparison["only_a_right"] + comparison["only_b_right"]
    if macro != outcome and (macro == "unclear" or differ >= FEWEST):
        sentences.append(_state_macro(comparison, macro, model=model, baseline=baseline))
    return " ".join(sentences)


def _state_macro(
    comparison: Mapping[str, float | str | None], outcome: str, *, model: str, baseline: str
) -> str:
    """A sentence on the difference in macro-F1."""
    metric = "macro-F1, where each queue counts alike,"
    if outcome == "unclear":
        difference, interval = _state_difference(comparison, "macro_f1")
        return f"In {metric} the difference of {difference} is within chance ({interval})."
    by, *ends = (
        abs(100 * comparison[f"macro_f1_difference{end}"]) for end in ("", "_low", "_high")
    )
    interval = f"95 % interval {min(ends):.1f} to {max(ends):.1f}"
    size = f"by {by:.1f} points ({interval}), more than chance."
    if outcome == "worse":
        return f"In {metric} {baseline} is better, {size}"
    return f"{model} is better in {metric} {size}"


def _state_difference(comparison: Mapping[str, float | str | None], metric: str) -> tuple[str, str]:
    """The difference in a metric, and its interval, in points."""
    difference, low, high = (
        f"{100 * comparison[f'{metric}_difference{end}']:+.1f}".replace("-", "−")
        for end in ("", "_low", "_high")
    )
    return f"{difference} points", f"95 % interval {low} to {high}"


def _state_size(comparison: Mapping[str, float | str | None]) -> str:
    """A sentence on the differences that a test split of this size, or a larger one, shows."""
    n, needed, least = (comparison[name] for name in ("n", "tickets_needed", "smallest_difference"))
    if least >= 1:
        return f"A test split of {n:,} is too small to show any difference."
    shows = f"a test split of {n:,} shows one of {100 * least:.1f} points or more"
    if not needed:
        return f"Both are right equally often; {shows}."
    digits = max(len(str(needed)) - 2, 0)
    about = -(-needed // 10**digits) * 10**digits
    return f"To show a difference of that size takes about {about:,} test tickets; {shows}."


def _judge(comparison: Mapping[str, float | str | None], metric: str) -> str:
    """What the interval of a metric's difference says."""
    if comparison[f"{metric}_difference_low"] > 0:
        return "better"
    return "worse" if comparison[f"{metric}_difference_high"] < 0 else "unclear"
