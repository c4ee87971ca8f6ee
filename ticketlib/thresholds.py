"""How sure a model must be to act alone: thresholds chosen on the validation split.

`truth`, `probabilities` and `queues` are those of `metrics`; what a threshold does is counted by
`handoff`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ticketlib.handoff import ROUTE_NOTHING, build_curve, judge_predictions, weigh_groups
from ticketlib.intervals import wilson_interval


def choose_threshold(
    truth: Sequence[str],
    probabilities: np.ndarray,
    queues: Sequence[str],
    *,
    target_accuracy: float,
    confidence: float = 0.95,
    groups: Sequence[int] | None = None,
) -> float:
    """The threshold that routes the most tickets with at least the target accuracy.

    Among few tickets, all are right by luck now and then, and a threshold that just meets the
    target here misses it on other tickets half of the time. So not the accuracy seen here has to
    reach the target, but the lower end of Wilson's interval: for 0.9, that takes 25 tickets if all
    are right, 42 with one wrong, 58 with two. In simulations, at most 9 % of such thresholds miss
    the target on other tickets (most often 5 %; more than 5 % as each is the best of many).

    Args:
        truth: True queues of the validation split, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.
        target_accuracy: Wanted share of routed tickets that go to their queue, 0 to 1.
        confidence: How sure that has to be: one-sided, at least 0.5 (the accuracy seen on these
            tickets is enough) and below 1.
        groups: Paraphrase group of every row, [n]. With them, the tickets of a group count for the
            fewer, the more alike they are in being right. Without, all are independent.

    Returns:
        The lowest such threshold, a probability that occurs; `ROUTE_NOTHING` (2.0) if there is
        none. Then `summarize_handoff` says that no ticket is routed.

    Raises:
        ValueError: If lengths differ, there are no tickets, a true queue is not in `queues`, a row
            is not probabilities that sum to 1 or has no group, or the target or `confidence` is out
            of range.
    """
    check_target(target_accuracy, confidence)
    right, _, probability = judge_predictions(truth, probabilities, queues)
    codes, likeness = weigh_groups(right, groups)
    curve = build_curve(right, probability, codes, likeness)
    return _choose(curve, target_accuracy, confidence)


def choose_queue_thresholds(
    truth: Sequence[str],
    probabilities: np.ndarray,
    queues: Sequence[str],
    *,
    target_accuracy: float,
    confidence: float = 0.95,
    groups: Sequence[int] | None = None,
) -> pd.DataFrame:
    """A threshold for each predicted queue, so that what each team gets meets the target.

    A queue with so few tickets that they would not prove the target if all were right gets the
    threshold of `choose_threshold` for all tickets, which promises nothing for this queue alone. A
    queue that has enough of them, but no threshold that meets the target, gets `ROUTE_NOTHING`.

    Args:
        truth: True queues of the validation split, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.
        target_accuracy: As for `choose_threshold`.
        confidence: As for `choose_threshold`.
        groups: Paraphrase group of every row, [n].

    Returns:
        One row a queue: queue, n (validation tickets predicted for it), threshold, chosen_on
        (`queue` or `all queues`).

    Raises:
        ValueError: As `choose_threshold`.
    """
    check_target(target_accuracy, confidence)
    right, predicted, probability = judge_predictions(truth, probabilities, queues)
    codes, likeness = weigh_groups(right, groups)
    curve = build_curve(right, probability, codes, likeness)
    overall = _choose(curve, target_accuracy, confidence)
    rows = []
    for column, queue in enumerate(queues):
        here = predicted == column
        curve = build_curve(right[here], probability[here], codes[here], likeness)
        if _choose(curve.assign(accuracy=1.0), target_accuracy, confidence) == ROUTE_NOTHING:
            rows.append((queue, here.sum(), overall, "all queues"))
        else:
            own = _choose(curve, target_accuracy, confidence)
            rows.append((queue, here.sum(), own, "queue"))
    return pd.DataFrame(rows, columns=["queue", "n", "threshold", "chosen_on"])


def _choose(curve: pd.DataFrame, target_accuracy: float, confidence: float) -> float:
    """The lowest threshold of `_curve` that meets the target, or `ROUTE_NOTHING`."""
    low, _ = wilson_interval(curve["accuracy"], curve["effective"], confidence=2 * confidence - 1)
    meets = low >= target_accuracy - 1e-12  # Not to miss 0.9 by rounding
    return float(curve["threshold"][meets].min()) if meets.any() else ROUTE_NOTHING


def check_target(target_accuracy: float, confidence: float = 0.95) -> None:
    """Raise where `choose_threshold` would refuse these, before anything is scored.

    Args:
        target_accuracy: As for `choose_threshold`.
        confidence: As for `choose_threshold`.

    Raises:
        ValueError: One of them is out of range.
    """
    if not 0 <= target_accuracy <= 1:
        raise ValueError(
            f"target_accuracy is {target_accuracy}. Give a share from 0 to 1, such as 0.9."
        )
    if not 0.5 <= confidence < 1:
        raise ValueError(
            f"confidence is {confidence}. Give at least 0.5 and less than 1, such as 0.95."
        )
