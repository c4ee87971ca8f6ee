"""Differences, intervals and tests equal independent ones; verdicts are right as often as said."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn import metrics as sklearn_metrics

from ticketlib import comparison

QUEUES = ["Technical Support", "Billing and Payments", "Customer Service", "Human Resources", "IT"]
NAMES = {"model": "The tuned model", "baseline": "TF-IDF"}


def make_pair(n_groups=150, *, a=0.75, b=0.75, alike=0.7, sizes=(1, 1, 2, 3), seed=0):
    """Truth, one-hot predictions of two models that are right this often, and groups.

    Wordings of a ticket are right or wrong together, and so are both models on a share of tickets.
    """
    rng = np.random.default_rng(seed)
    true = rng.integers(5, size=n_groups)
    luck = rng.random(n_groups)
    other = np.where(rng.random(n_groups) < alike, luck, rng.random(n_groups))
    groups = np.repeat(np.arange(n_groups), rng.choice(sizes, size=n_groups))
    predicted = [
        np.where(drawn < accuracy, true, (true + rng.integers(1, 5, size=n_groups)) % 5)[groups]
        for drawn, accuracy in ((luck, a), (other, b))
    ]
    return [QUEUES[column] for column in true[groups]], *np.eye(5)[predicted], groups


def make_counts(both=0, only_a=0, only_b=0, neither=0, times=1):
    """One-hot predictions with so many tickets that both, one or no model has right."""
    right_a = np.repeat([1, 1, 0, 0], np.array([both, only_a, only_b, neither]) * times)
    right_b = np.repeat([1, 0, 1, 0], np.array([both, only_a, only_b, neither]) * times)
    true = np.arange(len(right_a)) % 5
    predicted = [np.where(right, true, (true + 1) % 5) for right in (right_a, right_b)]
    return [QUEUES[column] for column in true], *np.eye(5)[predicted]


def compare(truth, a, b, *, groups=None, **options):
    groups = range(len(truth)) if groups is None else groups
    return comparison.compare_models(truth, a, b, QUEUES, groups=groups, seed=0, **options)


def test_mcnemar_equals_the_binomial_sum():
    truth = list("aaaaaaaaaaaa")
    a = list("aaaaaaaabbaa")
    b = list("abbbbbbaaaaa")
    result = comparison.mcnemar(truth, a, b)
    assert (result["only_a_right"], result["only_b_right"]) == (6, 2)
    assert result["p_value"] == pytest.approx(2 * binom.cdf(2, 8, 0.5))
    assert comparison.mcnemar(truth, b, a)["p_value"] == pytest.approx(result["p_value"])
    assert comparison.mcnemar(truth, a, a)["p_value"] == 1
    with pytest.raises(ValueError, match="12 true queues, but 12 and 1"):
        comparison.mcnemar(truth, a, ["a"])
    assert comparison.mcnemar(truth, a, [None] * 12)["only_b_right"] == 0, "no answer is wrong"


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1))
def test_mcnemar_counts_a_group_once_for_the_model_that_is_right_more_often(rows):
    truth = ["x"] * len(rows)
    a, b = (["x" if row[i] else "y" for row in rows] for i in (0, 1))
    leads = {}
    for right_a, right_b, group in rows:
        leads[group] = leads.get(group, 0) + right_a - right_b
    result = comparison.mcnemar(truth, a, b, groups=[row[2] for row in rows])
    assert result["only_a_right"] == sum(lead > 0 for lead in leads.values())
    assert result["only_b_right"] == sum(lead < 0 for lead in leads.values())
    alone = comparison.mcnemar(truth, a, b)
    assert comparison.mcnemar(truth, a, b, groups=range(len(rows))) == alone


def test_figures_equal_a_naive_loop_over_drawn_groups():
    truth, a, b, groups = make_pair(30, b=0.5, seed=3)
    result = compare(truth, a, b, groups=groups, n_resamples=100)
    truth = np.array(truth)
    predicted = {name: np.array(QUEUES)[p.argmax(axis=1)] for name, p in {"a": a, "b": b}.items()}

    def score(metric, name, rows):
        y, p = truth[rows], predicted[name][rows]
        if metric == "accuracy":
            return sklearn_metrics.accuracy_score(y, p)
        return sklearn_metrics.f1_score(y, p, average="macro", zero_division=0)

    draws = np.random.default_rng(0).multinomial(30, [1 / 30] * 30, size=100)
    for metric in ("accuracy", "macro_f1"):
        whole = {name: score(metric, name, slice(None)) for name in "ab"}
        assert result[f"{metric}_a"] == pytest.approx(whole["a"])
        assert result[f"{metric}_b"] == pytest.approx(whole["b"])
        assert result[f"{metric}_difference"] == pytest.approx(whole["a"] - whole["b"])
        samples = []
        for counts in draws:
            rows = np.concatenate(
                [np.tile(np.flatnonzero(groups == g), count) for g, count in enumerate(counts)]
            )
            samples.append(score(metric, "a", rows) - score(metric, "b", rows))
        low, high = np.percentile(samples, [2.5, 97.5])
        assert result[f"{metric}_difference_low"] == pytest.approx(low)
        assert result[f"{metric}_difference_high"] == pytest.approx(high)
        if metric == "accuracy":
            assert result["smallest_difference"] == pytest.approx(2.8016 * np.std(samples), 1e-4)
    test = comparison.mcnemar(truth, predicted["a"], predicted["b"], groups=groups)
    assert test.items() <= result.items()
    assert result["n"] == len(truth)


def test_swapping_the_models_swaps_the_result():
    truth, a, b, groups = make_pair(b=0.5)
    result = compare(truth, a, b, groups=groups)
    swapped = compare(truth, b, a, groups=groups)
    assert (result["outcome"], swapped["outcome"]) == ("better", "worse")
    for metric in ("accuracy", "macro_f1"):
        assert swapped[f"{metric}_difference"] == -result[f"{metric}_difference"]
        low, high = (result[f"{metric}_difference_{end}"] for end in ("low", "high"))
        assert swapped[f"{metric}_difference_low"] == pytest.approx(-high)
        assert swapped[f"{metric}_difference_high"] == pytest.approx(-low)
    for name in ("smallest_difference", "tickets_needed", "p_value"):
        assert swapped[name] == pytest.approx(result[name])
    assert result == compare(truth, a, b, groups=groups), "same seed, same result"


def test_the_spread_is_that_of_the_paired_difference():
    """Of n tickets on which one model alone is right k times, it is about the root of k by n."""
    result = compare(*make_counts(both=150, only_a=30, only_b=20, neither=50), n_resamples=4000)
    error = np.sqrt(50 - 10**2 / 250) / 250
    assert result["smallest_difference"] == pytest.approx(2.8016 * error, rel=0.05)
    width = result["accuracy_difference_high"] - result["accuracy_difference_low"]
    assert width == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert result["tickets_needed"] == pytest.approx(250 * (2.8016 * error / 0.04) ** 2, rel=0.1)


def test_equal_models_are_rarely_told_apart_and_intervals_hold_the_difference():
    outcomes, held = [], 0
    for seed in range(200):
        truth, a, b, groups = make_pair(80, alike=0.5, seed=seed)
        result = compare(truth, a, b, groups=groups, n_resamples=200)
        outcomes.append(result["outcome"])
        held += result["accuracy_difference_low"] <= 0 <= result["accuracy_difference_high"]
    assert outcomes.count("unclear") / 200 >= 0.95
    assert 0.9 <= held / 200 <= 0.98


def test_the_smallest_difference_is_seen_in_nearly_four_of_five_splits():
    smallest = np.mean(
        [
            compare(*make_pair(b=0.65, sizes=[1], seed=seed)[:3], n_resamples=200)[
                "smallest_difference"
            ]
            for seed in range(20)
        ]
    )
    outcomes = []
    for seed in range(100):
        truth, a, b, _ = make_pair(b=0.75 - smallest, sizes=[1], seed=100 + seed)
        outcomes.append(compare(truth, a, b, n_resamples=200)["outcome"])
    assert 0.65 <= outcomes.count("better") / 100 <= 0.9


def test_a_handful_of_tickets_decides_nothing():
    """The interval leaves out 0, yet five heads in a row are no proof."""
    result = compare(*make_counts(both=180, only_a=5, neither=55))
    assert result["accuracy_difference_low"] > 0 and result["p_value"] > 0.05
    assert result["outcome"] == "unclear"
    assert compare(*make_counts(both=180, only_a=6, neither=54))["outcome"] == "better"
    # One ticket in 40 wordings; the bootstrap then sees no spread at all.
    truth, a, b = make_counts(only_a=40)
    one = compare(truth, a, b, groups=[0] * 40)
    assert one["accuracy_difference_low"] == one["accuracy_difference_high"] == 1
    assert one["outcome"] == "unclear" and one["smallest_difference"] > 1
    assert compare(truth, a, b)["outcome"] == "better"


def test_six_tickets_are_the_fewest_that_decide():
    three = compare(*make_counts(only_a=3))
    assert (three["accuracy_difference"], three["outcome"]) == (1, "unclear")
    assert three["tickets_needed"] == 6
    assert compare(*make_counts(only_a=5))["outcome"] == "unclear"
    assert compare(*make_counts(only_a=6))["outcome"] == "better"


def test_what_a_few_large_groups_say_against_many_small_ones_is_unclear():
    truth, a, b = make_counts(only_a=200, only_b=40)
    groups = [*np.repeat(range(10), 20), *range(10, 50)]
    result = compare(truth, a, b, groups=groups)
    assert result["accuracy_difference_low"] > 0
    assert result["only_b_right"] > result["only_a_right"] and result["p_value"] < 0.05
    assert result["outcome"] == "unclear"
    verdict = comparison.state_verdict(result, **NAMES)
    assert "cannot be told apart" in verdict
    assert "but more groups of near copies speak for the other)" in verdict


def test_models_that_agree_cannot_be_told_apart_but_need_not_be_equal():
    truth, a, _, groups = make_pair()
    same = compare(truth, a, a, groups=groups)
    assert same["outcome"] == "unclear" and same["tickets_needed"] is None
    assert same["accuracy_difference_low"] == same["accuracy_difference_high"] == 0
    assert same["smallest_difference"] == pytest.approx(6 / 150)


def test_the_verdict_says_that_the_model_beats_the_baseline():
    result = compare(*make_counts(both=140, only_a=50, only_b=10, neither=40))
    low, high = (100 * result[f"accuracy_difference_{end}"] for end in ("low", "high"))
    assert comparison.state_verdict(result, **NAMES) == (
        "The tuned model beats TF-IDF: 79.2 % of 240 test tickets go to the right queue, against "
        "62.5 %. The difference of +16.7 points is more than chance "
        f"(95 % interval {low:+.1f} to {high:+.1f})."
    )


def test_the_verdict_says_that_the_model_is_beaten():
    result = compare(*make_counts(both=140, only_a=10, only_b=50, neither=40))
    verdict = comparison.state_verdict(result, **NAMES)
    assert verdict.startswith("The tuned model is beaten by TF-IDF: 62.5 % of 240 test tickets")
    assert "against 79.2 %. The difference of −16.7 points is more than chance" in verdict


def test_the_verdict_says_that_they_cannot_be_told_apart_and_what_it_would_take():
    result = compare(*make_counts(both=140, only_a=30, only_b=25, neither=45))
    assert result["outcome"] == "unclear"
    verdict = comparison.state_verdict(result, **NAMES)
    assert verdict.startswith(
        "The tuned model and TF-IDF cannot be told apart: 70.8 % of 240 test tickets go to the "
        "right queue, against 68.8 %, a difference of +2.1 points (95 % interval −"
    )
    needed = result["tickets_needed"]
    assert needed > 10 * 240
    about = int(verdict.split("takes about ")[1].split(" test tickets")[0].replace(",", ""))
    assert needed <= about < 1.1 * needed
    least = 100 * result["smallest_difference"]
    assert verdict.endswith(f"a test split of 240 shows one of {least:.1f} points or more.")
    # With so many tickets, in the same shares, it is told.
    times = -(-about // 240)
    larger = compare(*make_counts(both=140, only_a=30, only_b=25, neither=45, times=times))
    assert larger["outcome"] == "better"


def test_the_verdict_on_splits_that_say_nothing():
    state = comparison.state_verdict
    three = state(compare(*make_counts(both=1, only_a=1, neither=1)), **NAMES)
    assert "cannot be told apart" in three
    assert three.endswith("A test split of 3 is too small to show any difference.")
    same = state(compare(*make_counts(both=60, neither=40)), **NAMES)
    assert "a difference of +0.0 points (95 % interval +0.0 to +0.0). Both are right" in same
    assert same.endswith("equally often; a test split of 100 shows one of 6.0 points or more.")
    handful = state(compare(*make_counts(both=180, only_a=5, neither=55)), **NAMES)
    assert "cannot be told apart" in handful and "but McNemar's p = 0.062)" in handful
    assert "To show a difference of that size takes about" in handful
    assert "macro-F1" not in handful


def test_the_verdict_names_a_macro_f1_that_says_something_else():
    """The model gives up two small queues to win in the largest."""
    truth = ["IT"] * 180 + ["Human Resources"] * 10 + ["Customer Service"] * 10
    codes = np.array([QUEUES.index(queue) for queue in truth])
    b = np.where((np.arange(200) < 40), 3, codes)
    a = np.full(200, 4)
    result = compare(truth, *np.eye(5)[[a, b]])
    assert result["outcome"] == "better"
    assert result["macro_f1_difference_high"] < 0
    verdict = comparison.state_verdict(result, **NAMES)
    assert "The tuned model beats TF-IDF" in verdict
    by, low, high = (100 * -result[f"macro_f1_difference{end}"] for end in ("", "_high", "_low"))
    interval = f"(95 % interval {low:.1f} to {high:.1f}), more than chance."
    assert verdict.endswith(
        f" In macro-F1, where each queue counts alike, TF-IDF is better, by {by:.1f} points "
        + interval
    )
    swapped = comparison.state_verdict(compare(truth, *np.eye(5)[[b, a]]), **NAMES)
    assert "The tuned model is beaten by TF-IDF" in swapped and swapped.endswith(
        " The tuned model is better in macro-F1, where each queue counts alike, "
        f"by {by:.1f} points " + interval
    )
    within = result | {"macro_f1_difference": -0.001, "macro_f1_difference_high": 0.004}
    assert "counts alike, the difference of −0.1 points is within chance (95 % interval −" in (
        comparison.state_verdict(within, **NAMES)
    )


def test_bad_input_is_named():
    truth, a, b, groups = make_pair(4)
    n = len(truth)
    with pytest.raises(ValueError, match=f"{n} true queues but {n - 1} rows"):
        compare(truth, a, b[1:], groups=groups)
    with pytest.raises(ValueError, match=f"{n} true queues but {n - 1} rows"):
        compare(truth, a[1:], b, groups=groups)
    with pytest.raises(ValueError, match="NaN in"):
        compare(truth, a, b * np.nan, groups=groups)
    with pytest.raises(ValueError, match=f"one group for each of {n}"):
        compare(truth, a, b, groups=groups[1:])
    with pytest.raises(ValueError, match=f"one group for each of {n}"):
        comparison.mcnemar(truth, truth, truth, groups=[1])
    with pytest.raises(ValueError, match="no truth tickets"):
        compare([], a[:0], b[:0])
