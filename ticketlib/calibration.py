"""Whether a probability of 0.8 is right in 8 of 10 cases, and one number that mends it.

`truth`, `probabilities` and `queues` are those of `metrics`; the confidence of a prediction is its
probability.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import softmax

from ticketlib.intervals import wilson_interval
from ticketlib.metrics import cut_bands
from ticketlib.predictions import check_probabilities, encode_both

# Of the temperature. It flattens further than it sharpens: to be too sure costs more.
LOWEST, HIGHEST = 0.1, 100.0


def fit_temperature(
    truth: Sequence[str], probabilities: np.ndarray, queues: Sequence[str]
) -> float:
    """The temperature with which `apply_temperature` makes the log-loss smallest.

    Fit it on the validation split and apply it to the test split (Guo et al., On Calibration of
    Modern Neural Networks, 2017). Above 1, the model was too sure; below 1, not sure enough.

    Args:
        truth: True queues of the validation split, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.

    Returns:
        From 0.1 to 100. An end says that the log-loss has no minimum between: 0.1 where every
        prediction is right (or nearly), 100 where probabilities and truth have nothing in common.
        1 where all probabilities are equal, as no temperature changes them.

    Raises:
        ValueError: If lengths differ, there are no tickets, a true queue is not in `queues`, or a
            row is not probabilities that sum to 1.
    """
    true, _ = encode_both(truth, probabilities, queues)
    logits = _to_logits(probabilities)
    if np.ptp(logits, axis=1).max() < 1e-9:
        return 1.0
    of_truth = logits[np.arange(len(true)), true]

    def slope(temperature: float) -> float:
        """Of the log-loss, by 1 / temperature, in which it is convex."""
        return ((softmax(logits / temperature, axis=1) * logits).sum(axis=1) - of_truth).mean()

    if slope(LOWEST) <= 0:
        return LOWEST
    if slope(HIGHEST) >= 0:
        return HIGHEST
    return float(brentq(slope, LOWEST, HIGHEST))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities made flatter (temperature above 1) or sharper (below), [n, q].

    Each becomes its power 1 / temperature, and each row sums to 1 again; the most probable queue
    stays. Below 2.2e-16 they count as that, as in scikit-learn's log-loss.

    Args:
        probabilities: [n, q].
        temperature: What `fit_temperature` gives; 1 changes nothing.

    Raises:
        ValueError: If a row is not probabilities that sum to 1, or `temperature` not above 0.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature is {temperature}. Give one above 0, as of fit_temperature.")
    return softmax(_to_logits(probabilities) / temperature, axis=1)


def reliability_table(
    truth: Sequence[str], probabilities: np.ndarray, queues: Sequence[str], *, n_bins: int = 10
) -> pd.DataFrame:
    """How often predictions are right, by how sure they are; calibrated means equally often.

    Bins hold about equally many tickets, because a tuned model is nearly sure of most: bins of
    equal width would put these into one and leave others with a handful, whose accuracy is chance.

    Args:
        truth: True queues, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.
        n_bins: Most bins; equal confidences stay together, so there can be fewer.

    Returns:
        One row a bin, the least sure first: low, high (confidences that occur in it), n, confidence
        (mean), accuracy, and accuracy_low and accuracy_high, the ends of Wilson's 95 % interval. It
        takes tickets as independent; paraphrase groups make it a little too narrow.

    Raises:
        ValueError: If lengths differ, there are no tickets, a true queue is not in `queues`, a row
            is not probabilities that sum to 1, or `n_bins` is less than 1.
    """
    true, predicted = encode_both(truth, probabilities, queues)
    confidence = check_probabilities(probabilities).max(axis=1)
    tickets = pd.DataFrame({"confidence": confidence, "right": true == predicted})
    table = tickets.groupby(cut_bands(confidence, n_bins)).agg(
        low=("confidence", "min"),
        high=("confidence", "max"),
        n=("right", "size"),
        confidence=("confidence", "mean"),
        accuracy=("right", "mean"),
    )
    low, high = wilson_interval(table["accuracy"], table["n"])
    return table.assign(accuracy_low=low, accuracy_high=high)


def expected_calibration_error(
    truth: Sequence[str], probabilities: np.ndarray, queues: Sequence[str], *, n_bins: int = 10
) -> float:
    """Mean distance of confidence and accuracy in `reliability_table`, weighted by tickets, 0 to 1.

    Chance keeps it above 0: with 25 tickets a bin, a perfectly calibrated model gets about 0.06.
    Compare it only between models on the same tickets, with the same bins.

    Args:
        truth: True queues, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.
        n_bins: As for `reliability_table`.

    Raises:
        ValueError: As `reliability_table`.
    """
    table = reliability_table(truth, probabilities, queues, n_bins=n_bins)
    return float(np.average(abs(table["confidence"] - table["accuracy"]), weights=table["n"]))


def _to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Logarithms, also of 0."""
    return np.log(np.maximum(check_probabilities(probabilities), np.finfo(float).eps))
