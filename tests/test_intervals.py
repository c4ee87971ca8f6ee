"""Intervals equal SciPy's and hold the truth as often as they say; draws keep groups whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ticketlib import intervals


@given(st.integers(1, 500), st.data(), st.sampled_from([0.5, 0.9, 0.95]))
def test_wilson_equals_scipy(n, data, confidence):
    hits = data.draw(st.integers(0, n))
    low, high = intervals.wilson_interval(hits / n, n, confidence=confidence)
    expected = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= hits / n + 1e-12 and hits / n <= high + 1e-12 <= 1 + 1e-9


def test_wilson_takes_arrays_keeps_nan_and_without_confidence_is_the_share():
    low, high = intervals.wilson_interval(np.array([0.5, np.nan]), np.array([10, 0]))
    assert low[0] < 0.5 < high[0] and np.isnan([low[1], high[1]]).all()
    assert intervals.wilson_interval(0.9, 10, confidence=0) == pytest.approx((0.9, 0.9))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.floats(0, 1))
def test_effective_number_is_kishs_at_every_length(groups, likeness):
    codes = intervals.encode_groups(groups, len(groups))
    numbers = intervals.count_effective(codes)
    partly = intervals.count_effective(codes, likeness=likeness)
    for n in range(1, len(groups) + 1):
        sizes = [groups[:n].count(group) for group in set(groups[:n])]
        assert numbers[n - 1] == pytest.approx(n**2 / sum(size**2 for size in sizes))
        # The variance of a mean whose tickets have this correlation within groups
        same = np.equal.outer(groups[:n], groups[:n])
        variance = np.where(same, likeness, 0)
        np.fill_diagonal(variance, 1)
        assert partly[n - 1] == pytest.approx(n**2 / variance.sum())


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_likeness_is_the_mean_correlation_of_pairs_in_a_group(rows):
    groups, right = (np.array(column) for column in zip(*rows, strict=True))
    share, total, tickets = right.mean(), 0.0, 0
    for group in set(groups):
        here = np.flatnonzero(groups == group)
        pairs = [(i, j) for i in here for j in here if i != j]
        if pairs and 0 < share < 1:
            products = [(right[i] - share) * (right[j] - share) for i, j in pairs]
            total += len(here) * np.mean(products) / (share * (1 - share))
            tickets += len(here)
    expected = min(max(total / tickets, 0), 1) if tickets else 1
    codes = intervals.encode_groups(groups, len(groups))
    assert intervals.estimate_likeness(right, codes) == pytest.approx(expected, abs=1e-9)


def test_likeness_of_wordings_that_are_always_never_and_partly_right_together():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(2000), 3)
    alone, together = rng.random(6000) < 0.7, np.repeat(rng.random(2000) < 0.7, 3)
    half = np.where(rng.random(6000) < np.sqrt(0.5), together, alone)
    for right, likeness in ((alone, 0), (together, 1), (half, 0.5)):
        assert intervals.estimate_likeness(right, groups) == pytest.approx(likeness, abs=0.05)


def test_draws_keep_groups_whole_and_have_as_many_groups():
    groups = [7, 7, 3, 9, 9, 9, 3, 1]
    weights = intervals.draw_groups(groups, 8, seed=0, n_resamples=50)
    assert weights.shape == (50, 8)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 2] == weights[:, 6]).all()
    assert (weights[:, [0, 2, 3, 7]].sum(axis=1) == 4).all()
    np.testing.assert_array_equal(weights, intervals.draw_groups(groups, 8, seed=0, n_resamples=50))
    assert (weights != intervals.draw_groups(groups, 8, seed=1, n_resamples=50)).any()


def test_intervals_hold_the_true_accuracy_about_as_often_as_they_say():
    """200 test splits of 100 tickets in one to six wordings, which are right or wrong together."""
    accuracy, held = 0.8, {"grouped": 0, "single": 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(100), rng.choice([1, 1, 2, 6], size=100))
        right = (rng.random(100) < accuracy)[groups]
        for name, drawn in {"grouped": groups, "single": np.arange(len(groups))}.items():
            weights = intervals.draw_groups(drawn, len(groups), seed=seed, n_resamples=200)
            low, high = intervals.middle_95(weights @ right / weights.sum(axis=1))
            held[name] += low <= accuracy <= high
    assert 0.9 <= held["grouped"] / 200 <= 0.98
    assert held["single"] / 200 < 0.8, "the same, with wordings taken as independent tickets"


def test_shares_are_shown_in_percent():
    assert intervals.format_share(0.0875) == "8.8 %"
    assert intervals.format_share(0.7625, 0.6951, 1) == "76.2 % (69.5 – 100.0)"
