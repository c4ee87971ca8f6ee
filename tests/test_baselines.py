"""Baselines learn from training tickets alone, and a random split flatters them measurably."""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, import_script

from ticketlib import baselines, metrics

QUEUES = ["Human Resources", "Billing and Payments", "General Inquiry", "Sales", "IT"]


TRAINING = pd.DataFrame(
    {
        "subject": ["invoice", "invoice", "", "printer", "printer"] * 4,
        "body": ["wrong amount", "double charge", "charge twice", "paper jam", "jam again"] * 4,
        "queue": (["Billing and Payments"] * 3 + ["IT"] * 2) * 4,
    }
)


def test_majority_gives_the_shares_of_the_training_tickets():
    probabilities = baselines.majority_probabilities(TRAINING, 3, QUEUES)
    np.testing.assert_allclose(probabilities, [[0, 0.6, 0, 0, 0.4]] * 3)


def test_blind_loss_is_that_of_the_shares_over_all_tokens_of_the_answers(byte_tokenizer):
    # ln 4 twice and ln 4/3 once over the characters of each answer and its end
    loss = baselines.blind_loss(["IT", *["Sales"] * 3], ["IT", "IT", "Sales"], byte_tokenizer)
    assert loss == pytest.approx((2 * np.log(4) + np.log(4 / 3)) / (3 + 3 + 6))
    assert baselines.blind_loss(["IT"], ["IT"], byte_tokenizer) == 0
    with pytest.raises(KeyError, match="Sales"):
        baselines.blind_loss(["IT"], ["Sales"], byte_tokenizer)


def test_tfidf_learns_from_training_alone_and_keeps_the_order_of_queues():
    test = pd.DataFrame({"subject": ["the invoice", ""], "body": ["a charge", "paper jam"]})
    probabilities = baselines.tfidf_probabilities(TRAINING, test, QUEUES, seed=0)
    assert list(metrics.predict_queues(probabilities, QUEUES)) == ["Billing and Payments", "IT"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (probabilities[:, [0, 2, 3]] == 0).all(), "queues without training tickets"
    more = pd.concat([test, TRAINING.iloc[:5]])
    np.testing.assert_allclose(
        baselines.tfidf_probabilities(TRAINING, more, QUEUES, seed=0)[:2], probabilities
    )
    backwards = baselines.tfidf_probabilities(TRAINING, test, QUEUES[::-1], seed=0)
    np.testing.assert_allclose(backwards[:, ::-1], probabilities, atol=1e-4)


def test_baselines_score_finitely_when_training_lacks_a_queue():
    truth = ["Human Resources", "IT"]
    probabilities = baselines.majority_probabilities(TRAINING, 2, QUEUES)
    summary = metrics.summarize(truth, probabilities, QUEUES, groups=[0, 1], seed=0)
    assert np.isfinite(list(summary.values())).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="training holds queues"):
        baselines.majority_probabilities(TRAINING, 1, QUEUES[:2])
    with pytest.raises(ValueError, match="one queue only, 'IT'"):
        baselines.tfidf_probabilities(TRAINING[TRAINING["queue"] == "IT"], TRAINING, QUEUES, seed=0)
    with pytest.raises(ValueError, match="4 tickets of 2 queues; give 5 or more"):
        baselines.compare_splits(TRAINING[:4], pd.Series(range(4)), seed=0)
    with pytest.raises(ValueError, match="of 1 queues; .*Is queue_column the right one"):
        one = TRAINING[TRAINING["queue"] == "IT"].reset_index(drop=True)
        baselines.compare_splits(one, pd.Series(range(len(one))), seed=0)


def generate_tickets(n, seed):
    return import_script(ROOT / "data" / "make_tickets.py").generate_tickets(n, seed)


def test_a_random_split_flatters_where_there_are_paraphrases_only():
    tickets = generate_tickets(1000, 3)
    # The true groups, then the same tickets with one of each group left.
    leak = baselines.compare_splits(tickets, tickets["group"], seed=0)
    assert leak.loc["random", "accuracy"] - leak.loc["grouped", "accuracy"] > 0.02
    assert list(leak["tickets"]) == [1000, 1000] and leak["deviation"].between(0, 0.1).all()
    single = tickets.drop_duplicates("group")
    fair = baselines.compare_splits(single, single["group"], seed=0)
    assert abs(fair.loc["random", "accuracy"] - fair.loc["grouped", "accuracy"]) < 0.02


def test_many_tickets_are_sampled_by_whole_groups(monkeypatch):
    tickets = generate_tickets(600, 4)
    seen = []
    monkeypatch.setattr(
        baselines,
        "cross_val_score",
        lambda *args, groups, **options: seen.append(groups) or np.zeros(5),
    )
    table = baselines.compare_splits(tickets, tickets["group"], seed=0, max_tickets=200)
    assert 190 < len(seen[0]) == table["tickets"].iloc[0] <= 200
    counts = pd.Series(seen[0]).value_counts()
    assert (counts == tickets["group"].value_counts()[counts.index]).all()
