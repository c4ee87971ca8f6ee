"""How well queue probabilities fit the true queues, and how sure that is.

Throughout, `truth` holds the true queue of each of n tickets, `queues` all q queues,
`probabilities` is [n, q] with a column for each of `queues`, and the prediction is the most
probable queue (the first of equals).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)

from ticketlib.intervals import draw_groups, middle_95, resample_scores
from ticketlib.paths import write_json
from ticketlib.predictions import check_probabilities, encode_both, predict_queues


def summarize(
    truth: Sequence[str],
    probabilities: np.ndarray,
    queues: Sequence[str],
    *,
    groups: Sequence[int],
    seed: int,
    n_resamples: int = 1000,
) -> dict[str, float]:
    """Overall figures with 95 % confidence intervals.

    The intervals are percentiles of a bootstrap that draws whole paraphrase groups, because
    rewordings of one ticket are right or wrong together. F1 averages run over the queues that occur
    as truth or as prediction, as scikit-learn's do. Where every ticket is right, all draws are
    equal and the interval is a point; that is no proof that none will ever be wrong.

    Args:
        truth: True queues, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.
        groups: Paraphrase group of every row, [n].
        seed: Seed of the bootstrap.
        n_resamples: Bootstrap samples.

    Returns:
        `accuracy`, `macro_f1`, `weighted_f1`, `top2_accuracy` (truth is among the two most probable
        queues), each also with `_low` and `_high`; `log_loss` (nats); `brier` (mean over the
        tickets of the squared distance to probability 1 for the true queue and 0 elsewhere: 0 to 2,
        halved for two queues, as in scikit-learn); `n`.

    Raises:
        ValueError: If lengths differ, there are no tickets, a true queue is not in `queues`, there
            are fewer than two, a row is not probabilities that sum to 1, or has no group.
    """
    true, predicted = encode_both(truth, probabilities, queues)
    shares = check_probabilities(probabilities)
    shares = shares / shares.sum(axis=1, keepdims=True)  # To the last digit, as scikit-learn wants
    weights = draw_groups(groups, len(true), seed=seed, n_resamples=n_resamples)
    top2 = np.argsort(-np.asarray(probabilities), axis=1, kind="stable")[:, :2]
    in_top2 = (top2 == true[:, None]).any(axis=1)
    figures = {
        "accuracy": accuracy_score(true, predicted),
        "macro_f1": f1_score(true, predicted, average="macro", zero_division=0),
        "weighted_f1": f1_score(true, predicted, average="weighted", zero_division=0),
        "top2_accuracy": in_top2.mean(),
    }
    samples = resample_scores(true, predicted, weights, len(queues))
    samples["top2_accuracy"] = weights @ in_top2 / weights.sum(axis=1)
    summary = {}
    for name, value in figures.items():
        low, high = middle_95(samples[name])
        summary |= {name: float(value), f"{name}_low": low, f"{name}_high": high}
    for name, score in {"log_loss": log_loss, "brier": brier_score_loss}.items():
        summary[name] = float(score(true, shares, labels=np.arange(len(queues))))
    return summary | {"n": len(true)}


def per_queue(
    truth: Sequence[str], probabilities: np.ndarray, queues: Sequence[str]
) -> pd.DataFrame:
    """Precision, recall and F1 of every queue.

    Args:
        truth: True queues, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.

    Returns:
        One row a queue: queue, support (tickets of it), predicted (tickets sent to it), precision,
        recall, f1. A figure with nothing to count is 0.

    Raises:
        ValueError: If lengths differ, there are no tickets, or a true queue is not in `queues`.
    """
    true, predicted = encode_both(truth, probabilities, queues)
    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=np.arange(len(queues)), zero_division=0
    )
    return pd.DataFrame(
        {
            "queue": list(queues),
            "support": support,
            "predicted": np.bincount(predicted, minlength=len(queues)),
            "precision": precision,
            "recall": recall,
            "f1": f1,
        }
    )


def per_language(
    truth: Sequence[str],
    probabilities: np.ndarray,
    queues: Sequence[str],
    *,
    languages: Sequence[str],
) -> pd.DataFrame:
    """Accuracy and macro-F1 of every language.

    Args:
        truth: True queues, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.
        languages: Language of every ticket, [n].

    Returns:
        One row a language, the most frequent first: language, n, accuracy, macro_f1.

    Raises:
        ValueError: If lengths differ, there are no tickets, or a true queue is not in `queues`.
    """
    table = _score_parts(truth, probabilities, queues, "language", languages)
    return table.sort_values("n", ascending=False, kind="stable", ignore_index=True)


def per_length(
    truth: Sequence[str],
    probabilities: np.ndarray,
    queues: Sequence[str],
    lengths: Sequence[int],
    *,
    n_bands: int = 4,
) -> pd.DataFrame:
    """Accuracy and macro-F1 of short, longer and long tickets, in bands of about equally many.

    Args:
        truth: True queues, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.
        lengths: Length of every ticket's text in characters, [n].
        n_bands: Most bands; equal lengths stay together, so there can be fewer.

    Returns:
        One row a band, the shortest tickets first: shortest, longest (lengths that occur in it), n,
        accuracy, macro_f1.

    Raises:
        ValueError: If lengths differ, there are no tickets, a true queue is not in `queues`, a
            length is missing, or `n_bands` is less than 1.
    """
    lengths = np.asarray(lengths)
    bands = cut_bands(lengths, n_bands)
    table = _score_parts(truth, probabilities, queues, "band", bands).set_index("band")
    edges = pd.Series(lengths).groupby(bands).agg(shortest="min", longest="max")
    return edges.join(table).reset_index(drop=True)


def cut_bands(values: Sequence[float], n_bands: int) -> np.ndarray:
    """Number of the band, from 0 for the smallest, that each value falls into, [n].

    Bands hold about equally many values; equal values stay together, so there can be fewer bands.

    Args:
        values: Numbers to cut, [n].
        n_bands: Most bands to make.

    Raises:
        ValueError: If a value is missing, or `n_bands` is less than 1.
    """
    values = np.asarray(values, dtype=float)
    if n_bands < 1 or np.isnan(values).any():
        raise ValueError(
            f"{n_bands} bands of {len(values)} values, {np.isnan(values).sum()} of them missing. "
            "Give 1 or more bands, and no NaN."
        )
    borders = np.quantile(values, np.arange(1, n_bands) / n_bands)
    return pd.factorize(np.searchsorted(borders, values), sort=True)[0]


def _score_parts(
    truth: Sequence[str],
    probabilities: np.ndarray,
    queues: Sequence[str],
    name: str,
    parts: Sequence,
) -> pd.DataFrame:
    """A row for each part of the tickets: the part, under `name`, n, accuracy, macro_f1."""
    true, predicted = encode_both(truth, probabilities, queues)
    parts = np.asarray(parts, dtype=object)
    if len(parts) != len(true):
        raise ValueError(f"{len(parts)} {name}s for {len(true)} tickets. Give one for each.")
    rows = []
    for part in sorted(set(parts)):
        here = parts == part
        accuracy = accuracy_score(true[here], predicted[here])
        macro_f1 = f1_score(true[here], predicted[here], average="macro", zero_division=0)
        rows.append((part, here.sum(), accuracy, macro_f1))
    return pd.DataFrame(rows, columns=[name, "n", "accuracy", "macro_f1"])


def top_mistakes(
    tickets: pd.DataFrame, probabilities: np.ndarray, queues: Sequence[str], *, n: int = 10
) -> pd.DataFrame:
    """The most confident errors, to read: mislabeled tickets come up here first.

    Args:
        tickets: The tickets that `probabilities` belongs to, with their true `queue`.
        probabilities: [number of tickets, q].
        queues: All queues, in the order of the columns.
        n: Most rows wanted.

    Returns:
        The tickets with the columns `predicted`, `probability` (of the predicted queue) and
        `probability_of_queue` (of the true one), highest `probability` first.

    Raises:
        ValueError: If lengths differ, there are no tickets, or a true queue is not in `queues`.
    """
    true, predicted = encode_both(tickets["queue"], probabilities, queues)
    rows = np.arange(len(true))
    table = tickets.assign(
        predicted=predict_queues(probabilities, queues),
        probability=np.asarray(probabilities)[rows, predicted],
        probability_of_queue=np.asarray(probabilities)[rows, true],
    )
    return table[true != predicted].nlargest(n, "probability")


def write_metrics(path: str | Path, metrics: Mapping) -> Path:
    """Write figures as one flat JSON object, whole or not at all.

    `{"tuned": {"accuracy": 0.8}}` becomes `{"tuned.accuracy": 0.8}`. The README lists the keys that
    notebook 04 writes.

    Args:
        path: File to write or replace.
        metrics: Figures by name; nested mappings are joined with dots.

    Raises:
        ValueError: If a figure is NaN or infinite, which JSON does not have.
        TypeError: If a value is neither text nor number.
    """
    return write_json(path, _flatten(metrics))


def _flatten(metrics: Mapping, prefix: str = "") -> dict[str, str | float | int | bool]:
    """Join nested names with dots; NumPy scalars become Python's."""
    flat = {}
    for name, value in metrics.items():
        key = f"{prefix}{name}"
        value = value.item() if isinstance(value, np.generic) else value
        flat |= _flatten(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat
