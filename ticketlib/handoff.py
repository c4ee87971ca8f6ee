"""Which tickets are routed automatically and which are handed to a human, and how many are right.

A ticket is routed if the probability of its predicted queue is at least a threshold. That is chosen
on the validation split and reported on the test split. `truth`, `probabilities` and `queues` are
those of `metrics`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ticketlib.intervals import (
    count_effective,
    draw_groups,
    encode_groups,
    estimate_likeness,
    format_share,
    middle_95,
    wilson_interval,
)
from ticketlib.predictions import check_probabilities, encode_both

# A threshold that no probability reaches: every ticket goes to a human.
ROUTE_NOTHING = 2.0


def handoff_curve(
    truth: Sequence[str], probabilities: np.ndarray, queues: Sequence[str]
) -> pd.DataFrame:
    """How many tickets each threshold routes, and how many of those to their queue.

    Args:
        truth: True queues, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.

    Returns:
        One row for each probability that occurs, as the threshold, the highest first: threshold,
        share (of all tickets, that are routed), accuracy (of those), n (of those), and accuracy_low
        and accuracy_high, the ends of Wilson's 95 % interval. It takes tickets as independent;
        paraphrase groups make it a little too narrow.

    Raises:
        ValueError: If lengths differ, there are no tickets, a true queue is not in `queues`, or a
            row is not probabilities that sum to 1.
    """
    right, _, probability = judge_predictions(truth, probabilities, queues)
    curve = build_curve(right, probability, np.arange(len(right)), 0)
    low, high = wilson_interval(curve["accuracy"], curve["n"])
    return curve.drop(columns="effective").assign(accuracy_low=low, accuracy_high=high)


def summarize_handoff(
    truth: Sequence[str],
    probabilities: np.ndarray,
    queues: Sequence[str],
    *,
    threshold: float | Sequence[float],
    groups: Sequence[int],
    seed: int,
    n_resamples: int = 1000,
) -> dict[str, float | None]:
    """What a threshold does on the test split, with 95 % confidence intervals.

    The intervals are those of `metrics.summarize`. Where all routed tickets are right (or all are
    wrong), the bootstrap knows no spread, and that of the accuracy is Wilson's instead, with groups
    counted as in `thresholds.choose_threshold`.

    Args:
        truth: True queues of the test split, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.
        threshold: One for all queues, or one for each, [q].
        groups: Paraphrase group of every row, [n].
        seed: Seed of the bootstrap.
        n_resamples: Bootstrap samples.

    Returns:
        `share` (of all tickets, that are routed) and `accuracy` (of those; None if there are none),
        each also with `_low` and `_high`; `routed` and `n` (tickets).

    Raises:
        ValueError: If lengths differ, there are no tickets, a true queue is not in `queues`, a row
            is not probabilities that sum to 1 or has no group, or a threshold is missing.
    """
    right, predicted, probability = judge_predictions(truth, probabilities, queues)
    routed = probability >= _spread_threshold(threshold, queues)[predicted]
    weights = draw_groups(groups, len(right), seed=seed, n_resamples=n_resamples)
    drawn = weights @ routed
    low, high = middle_95(drawn / weights.sum(axis=1))
    summary = {"share": routed.mean().item(), "share_low": low, "share_high": high}
    accuracy = low = high = None
    if routed.any():
        accuracy = right[routed].mean().item()
        some = drawn > 0
        low, high = middle_95((weights @ (routed & right))[some] / drawn[some])
        if accuracy in (0, 1):
            codes, likeness = weigh_groups(right, groups)
            effective = count_effective(codes[routed], likeness=likeness)[-1]
            low, high = (end.item() for end in wilson_interval(accuracy, effective))
    summary |= {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
    return summary | {"routed": int(routed.sum()), "n": len(right)}


def state_handoff(
    summary: Mapping[str, float | None], *, threshold: float, target_accuracy: float
) -> str:
    """What `summarize_handoff` found, in one or two sentences for a reader without statistics.

    Args:
        summary: Of the test split.
        threshold: What `thresholds.choose_threshold` gave on the validation split.
        target_accuracy: The share of right ones that was wanted, 0 to 1.
    """
    if threshold >= ROUTE_NOTHING:
        return (
            f"No ticket can be routed automatically: on the validation split, no threshold proves "
            f"{100 * target_accuracy:g} % right. People decide all of them, or you accept less."
        )
    if not summary["routed"]:
        return (
            f"With a threshold of {threshold:.2f}, none of the {summary['n']:,} test tickets is "
            "routed automatically: the model is less sure of them than of the validation split."
        )
    share, accuracy, low, high = (
        format_share(summary[name])
        for name in ("share", "accuracy", "accuracy_low", "accuracy_high")
    )
    reached = "reached" if summary["accuracy"] >= target_accuracy else "missed"
    return (
        f"With a threshold of {threshold:.2f}, {share} of the test tickets are routed "
        f"automatically ({summary['routed']:,} of {summary['n']:,}), and {accuracy} of these go to "
        f"the right queue (95 % interval {low} to {high}). The target of "
        f"{100 * target_accuracy:g} % is {reached}; people decide the others."
    )


def per_queue_handoff(
    truth: Sequence[str],
    probabilities: np.ndarray,
    queues: Sequence[str],
    *,
    threshold: float | Sequence[float],
) -> pd.DataFrame:
    """What each team gets: how many of the tickets predicted for its queue are routed, and right.

    Args:
        truth: True queues, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.
        threshold: One for all queues, or one for each, [q].

    Returns:
        One row a predicted queue: queue, threshold, n (tickets predicted for it), routed (of
        those), share (routed of n), accuracy (of the routed), and accuracy_low and accuracy_high,
        the ends of Wilson's 95 % interval. NaN where there is nothing to count.

    Raises:
        ValueError: If lengths differ, there are no tickets, a true queue is not in `queues`, a row
            is not probabilities that sum to 1, or a threshold is missing.
    """
    right, predicted, probability = judge_predictions(truth, probabilities, queues)
    thresholds = _spread_threshold(threshold, queues)
    routed = probability >= thresholds[predicted]
    n, n_routed, n_right = (
        np.bincount(predicted, weights=counted, minlength=len(queues))
        for counted in (np.ones(len(right)), routed, routed & right)
    )
    accuracy = n_right / np.where(n_routed > 0, n_routed, np.nan)
    low, high = wilson_interval(accuracy, n_routed)
    return pd.DataFrame(
        {
            "queue": list(queues),
            "threshold": thresholds,
            "n": n.astype(int),
            "routed": n_routed.astype(int),
            "share": n_routed / np.where(n > 0, n, np.nan),
            "accuracy": accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
        }
    )


def judge_predictions(
    truth: Sequence[str], probabilities: np.ndarray, queues: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each prediction is right, its column number and its probability, [n] each.

    Args:
        truth: True queues, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.
    """
    true, predicted = encode_both(truth, probabilities, queues)
    return true == predicted, predicted, check_probabilities(probabilities).max(axis=1)


def weigh_groups(right: np.ndarray, groups: Sequence[int] | None) -> tuple[np.ndarray, float]:
    """Number of each ticket's group, [n], and how alike the tickets of a group are.

    Args:
        right: Whether each prediction is right, [n].
        groups: Paraphrase group of every row, [n]; None: each row is one of its own.
    """
    if groups is None:
        return np.arange(len(right)), 0
    codes = encode_groups(groups, len(right))
    return codes, estimate_likeness(right, codes)


def build_curve(
    right: np.ndarray, probability: np.ndarray, groups: np.ndarray, likeness: float
) -> pd.DataFrame:
    """Threshold, share, accuracy, n and effective number of n, the highest threshold first.

    Args:
        right: Whether each prediction is right, [n].
        probability: Of the predicted queue, [n].
        groups: Number of every row's group, [n].
        likeness: How alike the tickets of a group are, 0 to 1 (`weigh_groups`).
    """
    order = np.argsort(-probability, kind="stable")
    n = np.arange(1, len(right) + 1)
    curve = pd.DataFrame(
        {
            "threshold": probability[order],
            "share": n / len(right),
            "accuracy": right[order].cumsum() / n,
            "n": n,
            "effective": count_effective(groups[order], likeness=likeness),
        }
    )
    return curve.drop_duplicates("threshold", keep="last", ignore_index=True)


def _spread_threshold(threshold: float | Sequence[float], queues: Sequence[str]) -> np.ndarray:
    """The threshold of each queue, [q]."""
    thresholds = np.asarray(threshold, dtype=float)
    if thresholds.shape not in ((), (len(queues),)) or np.isnan(thresholds).any():
        raise ValueError(
            f"threshold is {threshold!r}. Give one number, or one for each of the {len(queues)} "
            "queues, such as thresholds.choose_queue_thresholds(...)['threshold']."
        )
    return np.broadcast_to(thresholds, len(queues))
