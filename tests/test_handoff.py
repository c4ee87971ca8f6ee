"""The curve counts what a loop counts; a chosen threshold keeps its promise on other tickets."""

import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import binomtest

from ticketlib import handoff, metrics, thresholds

QUEUES = ["Technical Support", "Billing and Payments", "Customer Service", "Human Resources", "IT"]


def make_case(n=200, *, seed=0, scale=3.0, decimals=None):
    """True queues drawn from the probabilities, which are rounded to make ties if `decimals`."""
    rng = np.random.default_rng(seed)
    probabilities = softmax(rng.normal(scale=scale, size=(n, len(QUEUES))), axis=1)
    if decimals is not None:
        top = probabilities.argmax(axis=1)
        largest = probabilities.max(axis=1).round(decimals)
        probabilities[:] = ((1 - largest) / 4)[:, None]
        probabilities[np.arange(n), top] = largest
    drawn = (probabilities.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return [QUEUES[column] for column in drawn], probabilities


def make_scored(rights, confidences):
    """Tickets predicted for the first queue with these probabilities, and whether that is right."""
    truth = [QUEUES[0] if right else QUEUES[1] for right in rights]
    probabilities = np.array([[p, 0, 0, 0, 1 - p] for p in confidences])
    return truth, probabilities


def judge(truth, probabilities):
    predicted = metrics.predict_queues(probabilities, QUEUES)
    return predicted == np.array(truth, dtype=object), probabilities.max(axis=1), predicted


@settings(max_examples=40)
@given(st.integers(1, 50), st.integers(0, 10**6), st.sampled_from([1, 2, None]))
def test_the_curve_equals_a_loop_over_thresholds(n, seed, decimals):
    truth, probabilities = make_case(n, seed=seed, decimals=decimals)
    right, confidence, _ = judge(truth, probabilities)
    curve = handoff.handoff_curve(truth, probabilities, QUEUES)
    assert curve.columns.tolist() == [
        *("threshold", "share", "accuracy", "n", "accuracy_low", "accuracy_high")
    ]
    assert (np.diff(curve["threshold"]) < 0).all() and (np.diff(curve["n"]) > 0).all()
    for row in curve.itertuples():
        routed = confidence >= row.threshold
        assert row.n == routed.sum()
        assert row.share == pytest.approx(routed.mean())
        assert row.accuracy == pytest.approx(right[routed].mean())
        interval = binomtest(int(right[routed].sum()), row.n).proportion_ci(method="wilson")
        assert (row.accuracy_low, row.accuracy_high) == pytest.approx(tuple(interval))
    last = curve.iloc[-1]
    assert (last["share"], last["accuracy"]) == (1, pytest.approx(right.mean()))


def test_ties_are_one_threshold():
    truth, probabilities = make_scored([1, 0, 1, 1], [0.9, 0.8, 0.8, 0.6])
    curve = handoff.handoff_curve(truth, probabilities, QUEUES)
    assert curve["threshold"].tolist() == pytest.approx([0.9, 0.8, 0.6])
    assert curve["n"].tolist() == [1, 3, 4]
    assert curve["accuracy"].tolist() == pytest.approx([1, 2 / 3, 3 / 4])


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_equals_a_loop_with_scipys_interval(seed, confidence):
    truth, probabilities = make_case(150, seed=seed, decimals=2)
    right, shares, _ = judge(truth, probabilities)
    for target in (0.5, 0.8, 0.9, 0.99):
        best = handoff.ROUTE_NOTHING
        for threshold in sorted(set(shares), reverse=True):
            routed = right[shares >= threshold]
            low = routed.mean()
            if confidence > 0.5:
                low = (
                    binomtest(int(routed.sum()), len(routed), alternative="greater")
                    .proportion_ci(confidence, method="wilson")
                    .low
                )
            if low >= target - 1e-12:
                best = threshold
        chosen = thresholds.choose_threshold(
            truth, probabilities, QUEUES, target_accuracy=target, confidence=confidence
        )
        assert chosen == pytest.approx(best)


def test_a_lucky_handful_chooses_nothing_and_enough_tickets_do():
    def choose(n_right, n_wrong, **options):
        rights = [1] * n_right + [0] * n_wrong
        case = make_scored(rights, np.linspace(0.99, 0.6, len(rights)))
        return thresholds.choose_threshold(*case, QUEUES, target_accuracy=0.9, **options)

    assert choose(3, 30) == handoff.ROUTE_NOTHING
    assert choose(3, 30, confidence=0.5) < 1
    assert choose(24, 30) == handoff.ROUTE_NOTHING
    assert choose(25, 30) < 1
    assert choose(25, 0) == pytest.approx(0.6)
    assert choose(0, 30) == choose(0, 30, confidence=0.5) == handoff.ROUTE_NOTHING
    # Five wordings each of five tickets, right or wrong together, are not 25 tickets.
    assert choose(25, 0, groups=np.repeat(range(5), 5)) == handoff.ROUTE_NOTHING
    assert choose(25, 0, groups=range(25)) == pytest.approx(0.6)


def test_a_chosen_threshold_meets_its_target_on_other_tickets():
    """In nine of ten cases and more; with the accuracy seen on validation alone, in half."""
    target, n_cases = 0.9, 200
    truth, probabilities = make_case(50_000, seed=1)
    right, confidence, _ = judge(truth, probabilities)
    missed = {0.5: 0, 0.95: 0}
    for seed in range(n_cases):
        case = make_case(250, seed=1000 + seed)
        for sure in missed:
            threshold = thresholds.choose_threshold(
                *case, QUEUES, target_accuracy=target, confidence=sure
            )
            routed = confidence >= threshold
            missed[sure] += routed.any() and right[routed].mean() < target
    assert missed[0.95] / n_cases < 0.1
    assert 0.4 < missed[0.5] / n_cases < 0.7


def test_groups_keep_the_promise_where_tickets_have_several_wordings():
    truth, probabilities = make_case(50_000, seed=1)
    right, confidence, _ = judge(truth, probabilities)
    missed = {"grouped": 0, "single": 0}
    for seed in range(150):
        queues, shares = make_case(100, seed=1000 + seed)
        groups = np.repeat(range(100), np.random.default_rng(seed).choice([1, 1, 2, 6], size=100))
        case = np.array(queues)[groups], shares[groups]
        for name, given_groups in {"grouped": groups, "single": None}.items():
            threshold = thresholds.choose_threshold(
                *case, QUEUES, target_accuracy=0.8, groups=given_groups
            )
            routed = confidence >= threshold
            missed[name] += routed.any() and right[routed].mean() < 0.8
    assert missed["grouped"] / 150 < 0.1 < missed["single"] / 150


def test_extreme_targets():
    truth, probabilities = make_case()
    lowest = probabilities.max(axis=1).min()
    choose = thresholds.choose_threshold
    assert choose(truth, probabilities, QUEUES, target_accuracy=0) == pytest.approx(lowest)
    nothing = choose(truth, probabilities, QUEUES, target_accuracy=1)
    assert nothing == handoff.ROUTE_NOTHING, "no number of tickets proves that none is wrong"
    perfect = np.eye(5)
    assert choose(QUEUES, perfect, QUEUES, target_accuracy=1, confidence=0.5) == 1


def test_the_summary_equals_a_naive_loop_over_drawn_groups():
    truth, probabilities = make_case(60, seed=2)
    right, confidence, _ = judge(truth, probabilities)
    groups = np.repeat(range(30), 2)
    summary = handoff.summarize_handoff(
        truth, probabilities, QUEUES, threshold=0.7, groups=groups, seed=5, n_resamples=200
    )
    routed = confidence >= 0.7
    assert summary["share"] == pytest.approx(routed.mean())
    assert summary["accuracy"] == pytest.approx(right[routed].mean())
    assert (summary["routed"], summary["n"]) == (routed.sum(), 60)
    shares, accuracies = [], []
    for counts in np.random.default_rng(5).multinomial(30, [1 / 30] * 30, size=200):
        rows = [row for g, count in enumerate(counts) for row in [2 * g, 2 * g + 1] * count]
        shares.append(routed[rows].mean())
        accuracies.append(right[rows][routed[rows]].mean())
    for name, values in {"share": shares, "accuracy": accuracies}.items():
        low, high = np.percentile(values, [2.5, 97.5])
        assert summary[f"{name}_low"] == pytest.approx(low)
        assert summary[f"{name}_high"] == pytest.approx(high)


def test_the_summary_of_nothing_routed_has_no_accuracy_and_can_be_written(tmp_path):
    truth, probabilities = make_case(20)
    summary = handoff.summarize_handoff(
        truth,
        probabilities,
        QUEUES,
        threshold=handoff.ROUTE_NOTHING,
        groups=range(20),
        seed=0,
    )
    assert summary == {
        **{"share": 0, "share_low": 0, "share_high": 0, "routed": 0, "n": 20},
        **{"accuracy": None, "accuracy_low": None, "accuracy_high": None},
    }
    metrics.write_metrics(tmp_path / "metrics.json", {"handoff": summary})
    assert '"handoff.accuracy": null' in (tmp_path / "metrics.json").read_text()


def test_draws_without_a_routed_ticket_say_nothing_on_accuracy():
    truth, probabilities = make_scored([1, 0] + [1] * 18, [0.9, 0.9] + [0.6] * 18)
    options = {"threshold": 0.8, "groups": range(20), "seed": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = handoff.summarize_handoff(truth, probabilities, QUEUES, **options)
    assert summary["share_low"] == 0
    assert (summary["accuracy_low"], summary["accuracy_high"]) == (0, 1)


def test_where_all_routed_are_right_the_interval_is_no_point():
    truth, probabilities = make_scored([1] * 10 + [0] * 10, [0.9] * 10 + [0.6] * 10)
    options = {"threshold": 0.8, "seed": 0}
    single = handoff.summarize_handoff(truth, probabilities, QUEUES, groups=range(20), **options)
    assert (single["accuracy"], single["accuracy_high"]) == (1, 1)
    assert single["accuracy_low"] == pytest.approx(
        binomtest(10, 10).proportion_ci(method="wilson").low
    )
    pairs = np.repeat(range(10), 2)
    grouped = handoff.summarize_handoff(truth, probabilities, QUEUES, groups=pairs, **options)
    assert grouped["accuracy_low"] == pytest.approx(
        binomtest(5, 5).proportion_ci(method="wilson").low
    )
    truth, probabilities = make_scored([0, 0, 0, 1], [0.9, 0.9, 0.9, 0.6])
    wrong = handoff.summarize_handoff(truth, probabilities, QUEUES, groups=range(4), **options)
    assert (wrong["accuracy"], wrong["accuracy_low"]) == (0, 0) and wrong["accuracy_high"] > 0.3


def test_the_statement_says_what_is_routed_and_whether_the_target_is_reached():
    truth, probabilities = make_scored([1] * 45 + [0] * 5 + [0] * 50, [0.9] * 50 + [0.6] * 50)

    def state(threshold, target):
        options = {"threshold": threshold, "groups": range(100), "seed": 0}
        summary = handoff.summarize_handoff(truth, probabilities, QUEUES, **options)
        return handoff.state_handoff(summary, threshold=threshold, target_accuracy=target)

    reached = state(0.8, 0.9)
    assert "threshold of 0.80, 50.0 % of the test tickets" in reached and "(50 of 100)" in reached
    assert (
        "90.0 % of these go to the right queue" in reached
        and "target of 90 % is reached" in reached
    )
    assert "target of 95 % is missed" in state(0.8, 0.95)
    assert "on the validation split, no threshold proves 95 % right" in state(
        handoff.ROUTE_NOTHING, 0.95
    )
    assert "none of the 100 test tickets is routed" in state(0.95, 0.9)


def test_queues_are_counted_as_in_a_loop_and_add_up_to_the_summary():
    truth, probabilities = make_case(120, seed=3)
    right, confidence, predicted = judge(truth, probabilities)
    table = handoff.per_queue_handoff(truth, probabilities, QUEUES, threshold=0.7)
    assert table["queue"].tolist() == QUEUES and table["n"].sum() == 120
    for row in table.itertuples():
        here = predicted == row.queue
        routed = here & (confidence >= 0.7)
        assert (row.n, row.routed, row.threshold) == (here.sum(), routed.sum(), 0.7)
        assert row.share == pytest.approx(routed.sum() / here.sum())
        assert row.accuracy == pytest.approx(right[routed].mean())
        interval = binomtest(int(right[routed].sum()), row.routed).proportion_ci(method="wilson")
        assert (row.accuracy_low, row.accuracy_high) == pytest.approx(tuple(interval))
    summary = handoff.summarize_handoff(
        truth, probabilities, QUEUES, threshold=0.7, groups=range(120), seed=0
    )
    assert summary["routed"] == table["routed"].sum()
    assert summary["accuracy"] == pytest.approx(
        np.average(table["accuracy"], weights=table["routed"])
    )


def test_queues_without_tickets_or_without_routed_ones_have_no_figures():
    truth, probabilities = make_scored([1, 0, 1], [0.9, 0.8, 0.6])
    thresholds = [0.7, 0, 0, 0, 0]
    table = handoff.per_queue_handoff(truth, probabilities, QUEUES, threshold=thresholds)
    assert table["n"].tolist() == [3, 0, 0, 0, 0]
    assert table["share"].isna().tolist() == [False, True, True, True, True]
    table = handoff.per_queue_handoff(truth, probabilities, QUEUES, threshold=0.95)
    assert table.loc[0, "share"] == 0
    assert table.loc[0, ["accuracy", "accuracy_low", "accuracy_high"]].isna().all()


def test_a_threshold_for_each_queue_where_its_tickets_suffice():
    rng = np.random.default_rng(0)
    predicted = np.repeat([0, 1, 2, 3], [200, 200, 20, 25])  # None for the fifth queue
    top = rng.uniform(0.5, 1, size=len(predicted))
    probabilities = np.full((len(predicted), 5), 0.0)
    probabilities[:, 4] = 1 - top
    probabilities[np.arange(len(predicted)), predicted] = top
    # The first is right from 0.6 on, the second never, the others always.
    right = np.where(predicted == 0, top > 0.6, predicted > 1)
    truth = np.array(QUEUES)[np.where(right, predicted, (predicted + 1) % 4)]
    options = {"target_accuracy": 0.9}
    table = thresholds.choose_queue_thresholds(truth, probabilities, QUEUES, **options)
    overall = thresholds.choose_threshold(truth, probabilities, QUEUES, **options)
    assert table.columns.tolist() == ["queue", "n", "threshold", "chosen_on"]
    assert table["queue"].tolist() == QUEUES and table["n"].tolist() == [200, 200, 20, 25, 0]
    assert table["chosen_on"].tolist() == [*("queue", "queue", "all queues", "queue", "all queues")]
    first, second, third, fourth, fifth = table["threshold"]
    assert 0.55 < first < 0.62
    assert second == handoff.ROUTE_NOTHING
    assert third == fifth == overall
    assert fourth == pytest.approx(top[predicted == 3].min())
    for column in (0, 3):  # The same as for this queue's tickets alone
        here = predicted == column
        alone = thresholds.choose_threshold(truth[here], probabilities[here], QUEUES, **options)
        assert alone == table["threshold"][column]
    groups = np.where(predicted == 3, -1, np.arange(len(predicted)))  # One ticket in 25 wordings
    grouped = thresholds.choose_queue_thresholds(
        truth, probabilities, QUEUES, groups=groups, **options
    )
    assert grouped["chosen_on"][3] == "all queues"
    routed = handoff.per_queue_handoff(truth, probabilities, QUEUES, threshold=table["threshold"])
    assert routed["routed"][1] == 0 and routed["routed"][3] == 25
    summary = handoff.summarize_handoff(
        truth,
        probabilities,
        QUEUES,
        threshold=table["threshold"],
        groups=range(len(truth)),
        seed=0,
    )
    assert summary["routed"] == routed["routed"].sum()


def test_a_hundred_thousand_tickets_take_seconds():
    truth, probabilities = make_case(100_000)
    start = time.perf_counter()
    handoff.handoff_curve(truth, probabilities, QUEUES)
    thresholds.choose_threshold(
        truth, probabilities, QUEUES, target_accuracy=0.9, groups=range(100_000)
    )
    assert time.perf_counter() - start < 10


def test_bad_input_is_named():
    truth, probabilities = make_case(4)
    target = {"target_accuracy": 0.9}
    sample = {"threshold": 0.5, "groups": range(4), "seed": 0}
    for call, options in (
        (handoff.handoff_curve, {}),
        (thresholds.choose_threshold, target),
        (thresholds.choose_queue_thresholds, target),
        (handoff.summarize_handoff, sample),
        (handoff.per_queue_handoff, {"threshold": 0.5}),
    ):
        with pytest.raises(ValueError, match="3 true queues but 4 rows"):
            call(truth[:3], probabilities, QUEUES, **options)
        with pytest.raises(ValueError, match="4 of 4 rows are not probabilities"):
            call(truth, 2 * probabilities, QUEUES, **options)
        with pytest.raises(ValueError, match="NaN in 4 of 4 rows"):
            call(truth, probabilities * np.nan, QUEUES, **options)
    for call in (thresholds.choose_threshold, thresholds.choose_queue_thresholds):
        for wrong in (-0.1, 1.1, 90, np.nan):
            with pytest.raises(ValueError, match=f"target_accuracy is {wrong}. .*from 0 to 1"):
                call(truth, probabilities, QUEUES, target_accuracy=wrong)
        for wrong in (0.4, 1, 95, np.nan):
            with pytest.raises(ValueError, match=f"confidence is {wrong}. Give at least 0.5"):
                call(truth, probabilities, QUEUES, confidence=wrong, **target)
        with pytest.raises(ValueError, match="one group for each of 4"):
            call(truth, probabilities, QUEUES, groups=[1], **target)
    for wrong in (np.nan, [0.5, 0.5], [0.5, 0.5, 0.5, 0.5, np.nan]):
        with pytest.raises(ValueError, match="one for each of the 5 queues"):
            handoff.per_queue_handoff(truth, probabilities, QUEUES, threshold=wrong)
        with pytest.raises(ValueError, match="one for each of the 5 queues"):
            handoff.summarize_handoff(truth, probabilities, QUEUES, **sample | {"threshold": wrong})
    with pytest.raises(ValueError, match="one group for each of 4"):
        handoff.summarize_handoff(truth, probabilities, QUEUES, **sample | {"groups": [1]})
