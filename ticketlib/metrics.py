"""How well queue probabilities fit the true queues, how sure that is, and what a baseline reaches.

Throughout, `truth` holds the true queue of each of n tickets, `queues` all q queues,
`probabilities` is [n, q] with a column for each of `queues`, and the prediction is the most
probable queue (the first of equals).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)
from sklearn.pipeline import make_pipeline

from ticketlib.paths import replace_atomically


def majority_probabilities(training: pd.DataFrame, n: int, queues: Sequence[str]) -> np.ndarray:
    """Baseline that reads no ticket: each queue's share of the training tickets, n times, [n, q].

    Raises:
        ValueError: If a training ticket's queue is not in `queues`, or there are none.
    """
    codes = _encode(training["queue"], queues, "training")
    return np.tile(np.bincount(codes, minlength=len(queues)) / len(codes), (n, 1))


def tfidf_probabilities(
    training: pd.DataFrame, test: pd.DataFrame, queues: Sequence[str], *, seed: int
) -> np.ndarray:
    """Baseline of counted words: TF-IDF of words and word pairs, logistic regression, [n, q].

    It reads subject and body and learns from `training` alone. A queue without training tickets
    gets probability 0.

    Raises:
        ValueError: If a training ticket's queue is not in `queues`, or they hold fewer than two.
    """
    codes = _encode(training["queue"], queues, "training")
    if len(np.unique(codes)) < 2:
        raise ValueError(
            f"The training tickets hold one queue only, {queues[codes[0]]!r}. TF-IDF needs two or "
            "more: use more tickets, or majority_probabilities."
        )
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        # Newton-CG converges here 40 times faster than the default solver, to the same result.
        LogisticRegression(C=10, max_iter=1000, solver="newton-cg", random_state=seed),
    )
    classifier.fit(training["subject"] + "\n" + training["body"], codes)
    probabilities = np.zeros((len(test), len(queues)))
    probabilities[:, classifier.classes_] = classifier.predict_proba(
        test["subject"] + "\n" + test["body"]
    )
    return probabilities


def predict_queues(probabilities: np.ndarray, queues: Sequence[str]) -> np.ndarray:
    """The most probable queue of every row, [n].

    Raises:
        ValueError: If `probabilities` has not one column for each queue.
    """
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or probabilities.shape[1] != len(queues):
        raise ValueError(
            f"probabilities has shape {probabilities.shape}. Give one row for each ticket and one "
            f"column for each of the {len(queues)} queues."
        )
    return np.asarray(queues, dtype=object)[probabilities.argmax(axis=1)]


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
    as truth or as prediction, as scikit-learn's do.

    Args:
        truth: True queues, [n].
        probabilities: [n, q].
        queues: All queues, in the order of the columns.
        groups: Paraphrase group of every row, [n].
        seed: Seed of the bootstrap.
        n_resamples: Bootstrap samples.

    Returns:
        `accuracy`, `macro_f1`, `weighted_f1`, `top2_accuracy` (truth is among the two most probable
        queues), each also with `_low` and `_high`; `log_loss` (nats); `n`.

    Raises:
        ValueError: If lengths differ, there are no tickets, or a true queue is not in `queues`.
    """
    true, predicted = _encode_both(truth, probabilities, queues)
    groups = np.asarray(groups)
    if groups.shape != true.shape:
        raise ValueError(
            f"groups has shape {groups.shape}. Give one group for each of {len(true)}."
        )
    top2 = np.argsort(-np.asarray(probabilities), axis=1, kind="stable")[:, :2]
    in_top2 = (top2 == true[:, None]).any(axis=1)
    figures = {
        "accuracy": accuracy_score(true, predicted),
        "macro_f1": f1_score(true, predicted, average="macro", zero_division=0),
        "weighted_f1": f1_score(true, predicted, average="weighted", zero_division=0),
        "top2_accuracy": in_top2.mean(),
    }
    weights = _draw_groups(groups, n_resamples, np.random.default_rng(seed))
    samples = _resample(true, predicted, in_top2, weights, len(queues))
    summary = {}
    for name, value in figures.items():
        low, high = np.percentile(samples[name], [2.5, 97.5])
        summary |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    loss = log_loss(true, probabilities, labels=np.arange(len(queues)))
    return summary | {"log_loss": float(loss), "n": len(true)}


def _draw_groups(groups: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row occurs when as many groups as there are get drawn, [n_resamples, n]."""
    codes, names = pd.factorize(groups)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_resamples)
    return counts[:, codes]


def _resample(
    true: np.ndarray, predicted: np.ndarray, in_top2: np.ndarray, weights: np.ndarray, n_queues: int
) -> dict[str, np.ndarray]:
    """The figures of `summarize` for all samples at once, each [n_resamples]."""
    weights = weights.astype(float)
    is_true, is_predicted = np.eye(n_queues)[true], np.eye(n_queues)[predicted]
    support, n_predicted = weights @ is_true, weights @ is_predicted  # [n_resamples, q]
    hits = weights @ (is_true * is_predicted)
    total = weights.sum(axis=1)
    occurs = support + n_predicted > 0
    f1 = 2 * hits / np.where(occurs, support + n_predicted, 1)
    return {
        "accuracy": hits.sum(axis=1) / total,
        "macro_f1": f1.sum(axis=1) / occurs.sum(axis=1),
        "weighted_f1": (f1 * support).sum(axis=1) / total,
        "top2_accuracy": weights @ in_top2 / total,
    }


def per_queue(
    truth: Sequence[str], probabilities: np.ndarray, queues: Sequence[str]
) -> pd.DataFrame:
    """Precision, recall and F1 of every queue.

    Returns:
        One row a queue: queue, support (tickets of it), predicted (tickets sent to it), precision,
        recall, f1. A figure with nothing to count is 0.

    Raises:
        ValueError: If lengths differ, there are no tickets, or a true queue is not in `queues`.
    """
    true, predicted = _encode_both(truth, probabilities, queues)
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

    Returns:
        One row a language, the most frequent first: language, n, accuracy, macro_f1.

    Raises:
        ValueError: If lengths differ, there are no tickets, or a true queue is not in `queues`.
    """
    true, predicted = _encode_both(truth, probabilities, queues)
    languages = np.asarray(languages, dtype=object)
    if len(languages) != len(true):
        raise ValueError(f"{len(languages)} languages for {len(true)} tickets. Give one for each.")
    rows = []
    for language in sorted(set(languages)):
        part = languages == language
        accuracy = accuracy_score(true[part], predicted[part])
        macro_f1 = f1_score(true[part], predicted[part], average="macro", zero_division=0)
        rows.append((language, part.sum(), accuracy, macro_f1))
    table = pd.DataFrame(rows, columns=["language", "n", "accuracy", "macro_f1"])
    return table.sort_values("n", ascending=False, kind="stable", ignore_index=True)


def count_confusions(
    truth: Sequence[str],
    probabilities: np.ndarray,
    queues: Sequence[str],
    *,
    normalize: bool = False,
) -> pd.DataFrame:
    """True queues (rows) against predicted ones (columns).

    With `normalize`, shares of each true queue's tickets instead of counts.

    Raises:
        ValueError: If lengths differ, there are no tickets, or a true queue is not in `queues`.
    """
    true, predicted = _encode_both(truth, probabilities, queues)
    counts = confusion_matrix(
        true, predicted, labels=np.arange(len(queues)), normalize="true" if normalize else None
    )
    return pd.DataFrame(
        counts, pd.Index(queues, name="queue"), pd.Index(queues, name="predicted queue")
    )


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
    true, predicted = _encode_both(tickets["queue"], probabilities, queues)
    rows = np.arange(len(true))
    table = tickets.assign(
        predicted=predict_queues(probabilities, queues),
        probability=np.asarray(probabilities)[rows, predicted],
        probability_of_queue=np.asarray(probabilities)[rows, true],
    )
    return table[true != predicted].nlargest(n, "probability")


def mcnemar(truth: Sequence[str], a: Sequence[str], b: Sequence[str]) -> dict[str, float]:
    """Compare two models on the same tickets with McNemar's exact test.

    It takes tickets as independent; paraphrase groups make it a little too sure.

    Args:
        truth: True queues, [n].
        a: Queues that the first model predicts, [n].
        b: Queues that the second model predicts, [n].

    Returns:
        `only_a_right`, `only_b_right` (tickets) and `p_value` (two-sided: how probable a difference
        this large is when both are equally good).

    Raises:
        ValueError: If the lengths differ.
    """
    truth, a, b = (np.asarray(column, dtype=object) for column in (truth, a, b))
    if not len(truth) == len(a) == len(b):
        raise ValueError(
            f"{len(truth)} true queues, but {len(a)} and {len(b)} predicted. Give as many."
        )
    only_a = int(((a == truth) & (b != truth)).sum())
    only_b = int(((a != truth) & (b == truth)).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"only_a_right": only_a, "only_b_right": only_b, "p_value": float(p_value)}


def write_metrics(path: str | Path, metrics: Mapping) -> None:
    """Write figures as one flat JSON object, whole or not at all.

    `{"tuned": {"accuracy": 0.8}}` becomes `{"tuned.accuracy": 0.8}`. The notebooks write the
    figures of `summarize` under the names `majority`, `tfidf`, `untuned` and `tuned`, and those of
    `mcnemar` under the names of the two models, such as `tuned_vs_tfidf`.

    Raises:
        ValueError: If a figure is NaN or infinite, which JSON does not have.
        TypeError: If a value is neither text nor number.
    """
    flat = _flatten(metrics)
    text = json.dumps(flat, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replace_atomically(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _flatten(metrics: Mapping, prefix: str = "") -> dict[str, str | float | int | bool]:
    """Join nested names with dots; NumPy scalars become Python's."""
    flat = {}
    for name, value in metrics.items():
        key = f"{prefix}{name}"
        value = value.item() if isinstance(value, np.generic) else value
        flat |= _flatten(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat


def _encode(truth: Sequence[str], queues: Sequence[str], name: str) -> np.ndarray:
    """Column number of every true queue, [n]."""
    if not len(truth):
        raise ValueError(f"There are no {name} tickets.")
    codes = pd.Index(queues).get_indexer(pd.Index(truth))
    if (codes < 0).any():
        unknown = pd.Series(np.asarray(truth, dtype=object)[codes < 0]).value_counts()
        found = ", ".join(f"{queue!r} ({count})" for queue, count in unknown.items())
        raise ValueError(
            f"{name} holds queues that are not among the {len(queues)} given: {found}. Accepted: "
            f"{', '.join(map(repr, queues))}. Give all queues, or leave such tickets out."
        )
    return codes


def _encode_both(
    truth: Sequence[str], probabilities: np.ndarray, queues: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Column numbers of the true and of the predicted queues, [n] each."""
    true = _encode(truth, queues, "truth")
    predicted = pd.Index(queues).get_indexer(predict_queues(probabilities, queues))
    if len(predicted) != len(true):
        raise ValueError(
            f"{len(true)} true queues but {len(predicted)} rows of probabilities. Give as many."
        )
    return true, predicted
