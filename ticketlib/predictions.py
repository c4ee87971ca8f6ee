"""Queue probabilities, checked, and queues as column numbers: what all figures start from.

Throughout, `truth` holds the true queue of each of n tickets, `queues` all q queues,
`probabilities` is [n, q] with a column for each of `queues`, and the prediction is the most
probable queue (the first of equals).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd


def predict_queues(probabilities: np.ndarray, queues: Sequence[str]) -> np.ndarray:
    """The most probable queue of every row, [n].

    Args:
        probabilities: [n, q].
        queues: All queues, in the order of the columns.

    Raises:
        ValueError: If `probabilities` has not one column for each queue, or holds NaN.
    """
    return np.asarray(queues, dtype=object)[_predict(probabilities, queues)]


def encode_queues(truth: Sequence[str], queues: Sequence[str], name: str) -> np.ndarray:
    """Column number of every true queue, [n].

    Args:
        truth: True queues, [n].
        queues: All queues, in the order of the columns.
        name: Of `truth` in an error.

    Raises:
        ValueError: If there are no tickets, a true queue is not in `queues`, or one of those is
            there twice.
    """
    if not len(truth):
        raise ValueError(f"There are no {name} tickets.")
    columns = pd.Index(queues)
    if not columns.is_unique:
        twice = ", ".join(map(repr, columns[columns.duplicated()].unique()))
        raise ValueError(f"queues holds {twice} more than once. Give each queue once.")
    codes = columns.get_indexer(pd.Index(truth))
    if (codes < 0).any():
        unknown = pd.Series(np.asarray(truth, dtype=object)[codes < 0])
        counts = unknown.value_counts(dropna=False)
        found = ", ".join(f"{queue!r} ({count})" for queue, count in counts.items())
        raise ValueError(
            f"{name} holds queues that are not among the {len(queues)} given: {found}. Accepted: "
            f"{', '.join(map(repr, queues))}. Give all queues, or leave such tickets out."
        )
    return codes


def encode_both(
    truth: Sequence[str], probabilities: np.ndarray, queues: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Column numbers of the true and of the predicted queues, [n] each.

    Args:
        truth: True queues, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.

    Raises:
        ValueError: If lengths differ, there are no tickets, a true queue is not in `queues`, or a
            probability is NaN.
    """
    true, predicted = encode_queues(truth, queues, "truth"), _predict(probabilities, queues)
    if len(predicted) != len(true):
        raise ValueError(
            f"{len(true)} true queues but {len(predicted)} rows of probabilities. Give as many."
        )
    return true, predicted


def check_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """The same in double precision, [n, q].

    Raises:
        ValueError: If there are fewer than two columns, or a row is not of numbers from 0 to 1 that
            sum to 1 (to 0.0001, for numbers of low precision).
    """
    shares = np.asarray(probabilities, dtype=float)
    if shares.shape[1] < 2:
        raise ValueError("probabilities has one column. Give two or more queues.")
    sums = shares.sum(axis=1)
    wrong = ~((shares >= 0).all(axis=1) & (abs(sums - 1) < 1e-4))
    if wrong.any():
        row = wrong.argmax()
        raise ValueError(
            f"{wrong.sum()} of {len(shares)} rows are not probabilities; row {row} holds "
            f"{shares[row].min():.4g} to {shares[row].max():.4g}, in sum {sums[row]:.4g}. Give "
            "numbers from 0 to 1 that sum to 1, such as those of scoring.label_probabilities."
        )
    return shares


def _predict(probabilities: np.ndarray, queues: Sequence[str]) -> np.ndarray:
    """Column number of the most probable queue of every row, [n]."""
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or probabilities.shape[1] != len(queues):
        raise ValueError(
            f"probabilities has shape {probabilities.shape}. Give one row for each ticket and one "
            f"column for each of the {len(queues)} queues."
        )
    missing = np.isnan(probabilities).any(axis=1)
    if missing.any():
        raise ValueError(
            f"probabilities has NaN in {missing.sum()} of {len(missing)} rows, first in row "
            f"{missing.argmax()}. A model that gives NaN has no prediction."
        )
    return probabilities.argmax(axis=1)
