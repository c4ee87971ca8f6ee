"""Temperature mends what it can, equals scikit-learn's; the table shows what calibration means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from ticketlib import calibration

QUEUES = ["Technical Support", "Billing and Payments", "Customer Service", "Human Resources", "IT"]


def make_calibrated(n=5000, *, seed=0, scale=2.0):
    """Logits, and true queues drawn from the probabilities that they mean."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=(n, len(QUEUES)))
    drawn = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return [QUEUES[column] for column in drawn], logits


@pytest.mark.parametrize("factor", [1, 3, 0.5, 5])
def test_finds_the_factor_by_which_logits_are_too_large(factor):
    truth, logits = make_calibrated()
    stated = softmax(factor * logits, axis=1)
    temperature = calibration.fit_temperature(truth, stated, QUEUES)
    assert temperature == pytest.approx(factor, rel=0.05)
    mended = calibration.apply_temperature(stated, temperature)
    np.testing.assert_allclose(mended, softmax(logits, axis=1), atol=0.03)
    assert calibration.expected_calibration_error(truth, mended, QUEUES) < 0.02
    if factor != 1:
        assert calibration.expected_calibration_error(truth, stated, QUEUES) > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_no_other_temperature_has_a_smaller_log_loss(seed):
    truth, logits = make_calibrated(60, seed=seed)
    probabilities = softmax(3 * logits, axis=1)
    codes = [QUEUES.index(queue) for queue in truth]

    def loss(temperature):
        mended = calibration.apply_temperature(probabilities, temperature)
        return log_loss(codes, mended, labels=range(len(QUEUES)))

    temperature = calibration.fit_temperature(truth, probabilities, QUEUES)
    found = minimize_scalar(loss, bounds=(0.1, 100), method="bounded", options={"xatol": 1e-8})
    assert temperature == pytest.approx(found.x, rel=1e-4)
    assert loss(temperature) <= min(loss(other) for other in np.geomspace(0.1, 100, 40)) + 1e-12


def test_equals_the_temperature_scaling_of_scikit_learn():
    rng = np.random.default_rng(0)
    codes = rng.integers(4, size=600)
    features = rng.normal(size=(600, 4)) + np.eye(4)[codes]
    classifier = LogisticRegression().fit(features[:100], codes[:100])
    classifier.coef_ *= 4
    scaled = CalibratedClassifierCV(FrozenEstimator(classifier), method="temperature")
    scaled.fit(features, codes)
    probabilities, queues = classifier.predict_proba(features), list("abcd")
    temperature = calibration.fit_temperature([queues[c] for c in codes], probabilities, queues)
    np.testing.assert_allclose(
        calibration.apply_temperature(probabilities, temperature),
        scaled.predict_proba(features),
        atol=1e-3,
    )


@given(st.integers(0, 10**6), st.floats(0.1, 100))
def test_temperature_keeps_the_order_and_the_sum(seed, temperature):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([0.3] * 5, size=20)
    mended = calibration.apply_temperature(probabilities, temperature)
    np.testing.assert_allclose(mended.sum(axis=1), 1)
    assert (mended.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    sure, mended_sure = probabilities.max(axis=1), mended.max(axis=1)
    assert (mended_sure <= sure + 1e-12).all() if temperature >= 1 else (mended_sure >= sure).all()
    back = calibration.apply_temperature(probabilities, 1)
    np.testing.assert_allclose(back, probabilities, atol=1e-14)


def test_temperature_where_there_is_little_to_fit():
    one_hot, even = np.eye(5), np.full((5, 5), 0.2)
    spread = 0.6 * one_hot + 0.08
    fit = calibration.fit_temperature
    assert fit(QUEUES, even, QUEUES) == 1, "no temperature changes it"
    assert fit(QUEUES, spread, QUEUES) == 0.1, "all right: the surer, the better"
    assert fit(QUEUES, np.roll(spread, 1, axis=0), QUEUES) == 100, "all wrong: the flatter"
    assert fit(QUEUES[:1], spread[:1], QUEUES) == 0.1
    assert fit(["IT"] * 4, np.tile([0.1, 0.1, 0.1, 0.1, 0.6], (4, 1)), QUEUES) == 0.1
    # Of four sure answers one is wrong: as sure as three of four is right.
    hard = one_hot[[0, 1, 2, 4]]
    temperature = fit(QUEUES[:4], hard, QUEUES)
    mended = calibration.apply_temperature(hard, temperature)
    assert mended.max(axis=1) == pytest.approx([0.75] * 4)
    # Shares of the queues, as the largest-queue baseline states them, need no mending.
    truth = ["IT"] * 6 + ["Human Resources"] * 3 + ["Customer Service"]
    shares = np.tile([0, 0, 0.1, 0.3, 0.6], (10, 1))
    assert fit(truth, shares, QUEUES) == pytest.approx(1, abs=1e-3)
    assert np.isfinite(fit(["Technical Support"] * 10, shares, QUEUES)), "truth had probability 0"


def test_the_table_counts_every_ticket_in_one_bin():
    truth, logits = make_calibrated(200)
    probabilities = softmax(logits, axis=1)
    table = calibration.reliability_table(truth, probabilities, QUEUES, n_bins=8)
    assert table.columns.tolist() == [
        *("low", "high", "n", "confidence", "accuracy", "accuracy_low", "accuracy_high")
    ]
    assert table["n"].tolist() == [25] * 8
    assert (table["low"].to_numpy()[1:] > table["high"].to_numpy()[:-1]).all()
    confidence = probabilities.max(axis=1)
    right = np.array([QUEUES[c] for c in probabilities.argmax(axis=1)]) == truth
    for row in table.itertuples():
        here = (confidence >= row.low) & (confidence <= row.high)
        assert row.n == here.sum()
        assert row.confidence == pytest.approx(confidence[here].mean())
        assert row.accuracy == pytest.approx(right[here].mean())
        interval = binomtest(int(right[here].sum()), row.n).proportion_ci(method="wilson")
        assert (row.accuracy_low, row.accuracy_high) == pytest.approx(tuple(interval))


def test_the_table_equals_the_curve_of_scikit_learn():
    truth, logits = make_calibrated(400, seed=1)
    probabilities = softmax(logits, axis=1)
    right = [QUEUES[c] == t for c, t in zip(probabilities.argmax(axis=1), truth, strict=True)]
    table = calibration.reliability_table(truth, probabilities, QUEUES, n_bins=5)
    accuracy, confidence = calibration_curve(
        right, probabilities.max(axis=1), n_bins=5, strategy="quantile"
    )
    np.testing.assert_allclose(table["accuracy"], accuracy)
    np.testing.assert_allclose(table["confidence"], confidence)


def test_equal_confidences_are_one_bin():
    truth = ["IT"] * 3 + ["Human Resources"]
    probabilities = np.tile([0, 0, 0, 0.4, 0.6], (4, 1))
    table = calibration.reliability_table(truth, probabilities, QUEUES)
    assert table[["n", "confidence", "accuracy"]].to_numpy().tolist() == [[4, 0.6, 0.75]]
    error = calibration.expected_calibration_error(truth, probabilities, QUEUES)
    assert error == pytest.approx(0.15)


def test_the_error_weights_bins_by_their_tickets():
    truth = [QUEUES[0]] * 8 + [QUEUES[1]] * 2
    probabilities = np.array([[0.6, 0.4, 0, 0, 0]] * 9 + [[0.9, 0.1, 0, 0, 0]])
    table = calibration.reliability_table(truth, probabilities, QUEUES)
    assert table["n"].tolist() == [9, 1]
    expected = (9 * abs(8 / 9 - 0.6) + 0.9) / 10
    error = calibration.expected_calibration_error(truth, probabilities, QUEUES)
    assert error == pytest.approx(expected)


def test_the_error_of_sure_predictions_is_the_share_of_wrong_ones():
    truth = [QUEUES[0]] * 7 + [QUEUES[1]] * 3
    sure = np.tile(np.eye(5)[0], (10, 1))
    assert calibration.expected_calibration_error(truth, sure, QUEUES) == pytest.approx(0.3)
    assert calibration.expected_calibration_error(QUEUES, np.eye(5), QUEUES) == 0


def test_bins_hold_the_true_accuracy_as_often_as_they_say():
    """In 60 calibrated models, the mean confidence of a bin lies in its interval."""
    held = []
    for seed in range(60):
        truth, logits = make_calibrated(300, seed=seed)
        table = calibration.reliability_table(truth, softmax(logits, axis=1), QUEUES)
        held += list(table["confidence"].between(table["accuracy_low"], table["accuracy_high"]))
    assert 0.92 <= np.mean(held) <= 0.98


def test_bad_input_is_named():
    truth, logits = make_calibrated(4)
    probabilities = softmax(logits, axis=1)
    for call in (
        calibration.fit_temperature,
        calibration.reliability_table,
        calibration.expected_calibration_error,
    ):
        with pytest.raises(ValueError, match="3 true queues but 4 rows"):
            call(truth[:3], probabilities, QUEUES)
        with pytest.raises(ValueError, match="4 of 4 rows are not probabilities"):
            call(truth, logits, QUEUES)
        with pytest.raises(ValueError, match="NaN in 4 of 4 rows"):
            call(truth, probabilities * np.nan, QUEUES)
        with pytest.raises(ValueError, match="not among the 5 given: 'Refunds'"):
            call(["Refunds", *truth[1:]], probabilities, QUEUES)
        with pytest.raises(ValueError, match="no truth tickets"):
            call([], probabilities[:0], QUEUES)
    with pytest.raises(ValueError, match="0 bands"):
        calibration.reliability_table(truth, probabilities, QUEUES, n_bins=0)
    with pytest.raises(ValueError, match="rows are not probabilities"):
        calibration.apply_temperature(logits, 2)
    for temperature in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"temperature is {temperature}"):
            calibration.apply_temperature(probabilities, temperature)
