"""What a model has to beat: the largest queue, and counted words; and what a leak is worth to them.

`queues` are all q queues, and probabilities are [n, q] with a column for each.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline

from ticketlib.predictions import encode_queues
from ticketlib.rendering import count_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def majority_probabilities(training: pd.DataFrame, n: int, queues: Sequence[str]) -> np.ndarray:
    """Baseline that reads no ticket: each queue's share of the training tickets, n times, [n, q].

    Args:
        training: Tickets to count, with a column `queue`.
        n: Rows to give.
        queues: All queues, in the order of the columns.

    Raises:
        ValueError: If a training ticket's queue is not in `queues`, or there are none.
    """
    codes = encode_queues(training["queue"], queues, "training")
    return np.tile(np.bincount(codes, minlength=len(queues)) / len(codes), (n, 1))


def blind_loss(
    training: Sequence[str], validation: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> float:
    """Loss, in nats a token, of a model that reads no ticket and knows each answer's share.

    As NeMo measures it: over all tokens of an answer, its end token among them.

    Args:
        training: Rendered answers (`prompts.render_answer`), which give the shares.
        validation: Those on which the loss is measured.
        tokenizer: Of the model.

    Raises:
        KeyError: If an answer occurs in validation only.
    """
    shares = pd.Series(training).value_counts(normalize=True)
    tokens = sum(count_tokens(validation, tokenizer)) + len(validation)
    return float(-np.log(shares.loc[list(validation)]).sum() / tokens)


def tfidf_classifier(*, seed: int) -> Pipeline:
    """The baseline, unfitted: TF-IDF of words and word pairs, logistic regression.

    Args:
        seed: Of the solver.
    """
    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        # Newton-CG converges here 40 times faster than the default solver, to the same result.
        LogisticRegression(C=10, max_iter=1000, solver="newton-cg", random_state=seed),
    )


def tfidf_probabilities(
    training: pd.DataFrame, test: pd.DataFrame, queues: Sequence[str], *, seed: int
) -> np.ndarray:
    """What `tfidf_classifier` gives for test tickets, [n, q].

    It reads subject and body and learns from `training` alone. A queue without training tickets
    gets probability 0.

    Args:
        training: Tickets to learn from, with `subject`, `body` and `queue`.
        test: Tickets to predict, with `subject` and `body`, n of them.
        queues: All queues, in the order of the columns.
        seed: As for `tfidf_classifier`.

    Raises:
        ValueError: If a training ticket's queue is not in `queues`, or they hold fewer than two.
    """
    codes = encode_queues(training["queue"], queues, "training")
    if len(np.unique(codes)) < 2:
        raise ValueError(
            f"The training tickets hold one queue only, {queues[codes[0]]!r}. TF-IDF needs two or "
            "more: use more tickets, or majority_probabilities."
        )
    classifier = tfidf_classifier(seed=seed)
    classifier.fit(training["subject"] + "\n" + training["body"], codes)
    probabilities = np.zeros((len(test), len(queues)))
    probabilities[:, classifier.classes_] = classifier.predict_proba(
        test["subject"] + "\n" + test["body"]
    )
    return probabilities


def compare_splits(
    tickets: pd.DataFrame,
    groups: pd.Series,
    *,
    seed: int,
    folds: int = 5,
    max_tickets: int = 10_000,
) -> pd.DataFrame:
    """How much a random split flatters `tfidf_classifier`, against one that keeps groups whole.

    Cross-validation tests it on each ticket once, so that the difference is not that of one small
    test split.

    Args:
        tickets: Frame with `subject`, `body` and `queue`.
        groups: A group for each ticket; index as `tickets`.
        seed: Of the folds and of the sample.
        folds: Parts of the cross-validation; at least 2.
        max_tickets: Where there are more tickets, groups are drawn until there are this many.

    Returns:
        Two rows, `random` and `grouped`, with `accuracy` (0 to 1, mean over the folds), its
        standard `deviation` between folds, and the number of `tickets`.

    Raises:
        ValueError: If the tickets are of one queue or fewer than the folds.
    """
    drawn = groups.drop_duplicates().sample(frac=1, random_state=seed)
    so_far = drawn.map(groups.value_counts()).cumsum()
    chosen = groups.isin(drawn[so_far <= max(max_tickets, so_far.iloc[0])])
    tickets, groups = tickets[chosen], groups[chosen].to_numpy()
    if len(tickets) < folds or tickets["queue"].nunique() < 2:
        raise ValueError(
            f"{len(tickets)} tickets of {tickets['queue'].nunique()} queues; give {folds} or more, "
            "of two or more queues, or there is nothing to route. Is queue_column the right one?"
        )
    texts = (tickets["subject"] + "\n" + tickets["body"]).to_numpy(dtype=object)
    codes = pd.factorize(tickets["queue"])[0]
    rows = {}
    with warnings.catch_warnings():
        # Of queues with fewer tickets than folds, and of folds that need no groups.
        warnings.filterwarnings("ignore", message="The (least populated class|groups param)")
        for name, folder in (("random", StratifiedKFold), ("grouped", StratifiedGroupKFold)):
            scores = cross_val_score(
                tfidf_classifier(seed=seed),
                texts,
                codes,
                groups=groups,
                cv=folder(folds, shuffle=True, random_state=seed),
            )
            rows[name] = (scores.mean(), scores.std(), len(tickets))
    return pd.DataFrame.from_dict(rows, "index", columns=["accuracy", "deviation", "tickets"])
