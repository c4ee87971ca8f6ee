"""The figures equal scikit-learn's, the intervals resample whole groups, bad input is named."""

import json
import time
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from ticketlib import metrics

QUEUES = ["Technical Support", "Billing and Payments", "Customer Service", "Human Resources", "IT"]


def make_case(n=60, n_queues=5, seed=0, skill=1.0):
    """Random truth, probabilities without ties, and groups of one to three rows."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(n_queues, size=n)
    logits = rng.normal(size=(n, n_queues)) + skill * np.eye(n_queues)[codes]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    groups = np.repeat(np.arange(n), rng.integers(1, 4, size=n))[:n]
    return [QUEUES[code] for code in codes], probabilities, QUEUES[:n_queues], groups


def one_hot(truth, queues):
    return np.eye(len(queues))[[queues.index(queue) for queue in truth]]


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_scikit_learn(seed):
    truth, probabilities, queues, groups = make_case(seed=seed)
    summary = metrics.summarize(truth, probabilities, queues, groups=groups, seed=0)
    predicted = [queues[column] for column in probabilities.argmax(axis=1)]
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(truth, predicted),
        "macro_f1": sklearn_metrics.f1_score(truth, predicted, average="macro"),
        "weighted_f1": sklearn_metrics.f1_score(truth, predicted, average="weighted"),
        "top2_accuracy": sklearn_metrics.top_k_accuracy_score(
            truth, probabilities[:, np.argsort(queues)], k=2, labels=sorted(queues)
        ),
        "log_loss": sklearn_metrics.log_loss(
            truth, probabilities[:, np.argsort(queues)], labels=sorted(queues)
        ),
        "brier": np.mean(((probabilities - one_hot(truth, queues)) ** 2).sum(axis=1)),
        "n": len(truth),
    }
    for name, value in expected.items():
        assert summary[name] == pytest.approx(value), name
    assert set(summary) == {
        *expected,
        *(f"{name}_{end}" for name in list(expected)[:4] for end in ("low", "high")),
    }


def test_intervals_equal_a_naive_loop_over_drawn_groups():
    """The same draws, each put together row by row and given to scikit-learn."""
    truth, probabilities, queues, groups = make_case(n=40, n_queues=4, seed=3)
    n_resamples = 200
    summary = metrics.summarize(
        truth, probabilities, queues, groups=groups, seed=7, n_resamples=n_resamples
    )
    truth = np.array(truth)
    predicted = np.array(queues)[probabilities.argmax(axis=1)]
    names = list(dict.fromkeys(groups))
    draws = np.random.default_rng(7).multinomial(
        len(names), [1 / len(names)] * len(names), size=n_resamples
    )
    samples = {"accuracy": [], "macro_f1": [], "weighted_f1": [], "top2_accuracy": []}
    for counts in draws:
        rows = [
            row
            for name, count in zip(names, counts, strict=True)
            for _ in range(count)
            for row in np.flatnonzero(groups == name)
        ]
        y, p = truth[rows], predicted[rows]
        samples["accuracy"].append(sklearn_metrics.accuracy_score(y, p))
        samples["macro_f1"].append(sklearn_metrics.f1_score(y, p, average="macro", zero_division=0))
        samples["weighted_f1"].append(
            sklearn_metrics.f1_score(y, p, average="weighted", zero_division=0)
        )
        in_top2 = [
            queues.index(q) in np.argsort(probabilities[row])[-2:]
            for q, row in zip(y, rows, strict=True)
        ]
        samples["top2_accuracy"].append(np.mean(in_top2))
    for name, values in samples.items():
        low, high = np.percentile(values, [2.5, 97.5])
        assert summary[f"{name}_low"] == pytest.approx(low), name
        assert summary[f"{name}_high"] == pytest.approx(high), name


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 10**6))
def test_every_figure_lies_between_0_and_1_and_the_same_seed_gives_the_same(n, n_queues, seed):
    truth, probabilities, queues, groups = make_case(n, n_queues, seed)
    options = {"groups": groups, "n_resamples": 50}
    summary = metrics.summarize(truth, probabilities, queues, seed=seed, **options)
    assert summary == metrics.summarize(truth, probabilities, queues, seed=seed, **options)
    for name in ("accuracy", "macro_f1", "weighted_f1", "top2_accuracy"):
        assert 0 <= summary[f"{name}_low"] <= summary[f"{name}_high"] <= 1
    assert summary["top2_accuracy"] >= summary["accuracy"]


def test_perfect_and_collapsed_predictions():
    truth, _, queues, groups = make_case()
    perfect = metrics.summarize(truth, one_hot(truth, queues), queues, groups=groups, seed=0)
    figures = {name: perfect[name] for name in perfect if name not in ("n", "log_loss", "brier")}
    assert set(figures.values()) == {1.0}
    assert perfect["log_loss"] == pytest.approx(0) and perfect["brier"] == 0
    collapsed = np.tile(np.eye(5)[2], (len(truth), 1))
    summary = metrics.summarize(truth, collapsed, queues, groups=groups, seed=0)
    share = truth.count(queues[2]) / len(truth)
    assert summary["accuracy"] == pytest.approx(share)
    assert summary["macro_f1"] == pytest.approx(2 * share / (1 + share) / 5)
    assert summary["brier"] == pytest.approx(2 * (1 - share))
    table = metrics.per_queue(truth, collapsed, queues)
    assert table["predicted"].tolist() == [0, 0, len(truth), 0, 0]


def test_groups_of_equal_rows_make_the_interval_wider():
    """100 tickets in three wordings each are 100 observations, not 300."""
    truth, probabilities, queues, _ = make_case(n=100, skill=1.5)
    truth, probabilities = np.repeat(truth, 3), np.repeat(probabilities, 3, axis=0)
    width = {}
    for name, groups in {"grouped": np.repeat(range(100), 3), "single": range(300)}.items():
        summary = metrics.summarize(truth, probabilities, queues, groups=groups, seed=0)
        width[name] = summary["accuracy_high"] - summary["accuracy_low"]
    assert width["grouped"] / width["single"] == pytest.approx(np.sqrt(3), rel=0.15)


def test_a_thousand_resamples_of_240_rows_take_less_than_two_seconds():
    truth, probabilities, queues, groups = make_case(n=240)
    start = time.perf_counter()
    metrics.summarize(truth, probabilities, queues, groups=groups, seed=0, n_resamples=1000)
    assert time.perf_counter() - start < 2


def test_per_queue_equals_the_classification_report():
    truth, probabilities, queues, _ = make_case()
    truth = [queue if queue != "IT" else "Human Resources" for queue in truth]  # IT: no tickets
    table = metrics.per_queue(truth, probabilities, queues).set_index("queue")
    predicted = metrics.predict_queues(probabilities, queues)
    report = sklearn_metrics.classification_report(
        truth, predicted, labels=queues, output_dict=True, zero_division=0
    )
    assert table.index.tolist() == queues
    for queue in queues:
        for name in ("precision", "recall", "f1-score", "support"):
            assert table.loc[queue, name.removesuffix("-score")] == report[queue][name]
        assert table.loc[queue, "predicted"] == list(predicted).count(queue)
    assert table.loc["IT", "support"] == 0 and table.loc["IT", "f1"] == 0


def test_per_language_is_the_same_figures_on_each_part():
    truth, probabilities, queues, _ = make_case(n=50)
    languages = ["de"] * 20 + ["en"] * 29 + [""]
    table = metrics.per_language(truth, probabilities, queues, languages=languages)
    assert table["language"].tolist() == ["en", "de", ""]
    assert table["n"].tolist() == [29, 20, 1]
    predicted = metrics.predict_queues(probabilities, queues)
    assert table["accuracy"][1] == np.mean(predicted[:20] == np.array(truth[:20], dtype=object))
    assert table["macro_f1"][0] == pytest.approx(
        sklearn_metrics.f1_score(truth[20:49], list(predicted[20:49]), average="macro")
    )
    with pytest.raises(ValueError, match="2 languages for 50 tickets"):
        metrics.per_language(truth, probabilities, queues, languages=["en", "de"])


def test_the_brier_score_of_two_queues_is_halved_as_in_scikit_learn():
    truth, probabilities, queues, groups = make_case(n_queues=2)
    summary = metrics.summarize(truth, probabilities, queues, groups=groups, seed=0)
    is_second = np.array([queue == queues[1] for queue in truth])
    assert summary["brier"] == pytest.approx(
        sklearn_metrics.brier_score_loss(is_second, probabilities[:, 1])
    )


def test_probabilities_of_low_precision_count_as_what_they_are():
    truth, probabilities, queues, groups = make_case(seed=2)
    exact = metrics.summarize(truth, probabilities, queues, groups=groups, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rough in (probabilities.astype(np.float32), probabilities * (1 + 5e-5)):
            summary = metrics.summarize(truth, rough, queues, groups=groups, seed=0)
            assert summary == pytest.approx(exact, abs=1e-6)


def test_per_length_is_the_same_figures_on_quarters():
    truth, probabilities, queues, _ = make_case(n=60)
    lengths = np.random.default_rng(0).permutation(np.arange(10, 70))
    table = metrics.per_length(truth, probabilities, queues, lengths)
    assert table.columns.tolist() == ["shortest", "longest", "n", "accuracy", "macro_f1"]
    assert table["shortest"].tolist() == [10, 25, 40, 55]
    assert table["longest"].tolist() == [24, 39, 54, 69]
    assert table["n"].tolist() == [15] * 4
    predicted = metrics.predict_queues(probabilities, queues)
    for row in table.itertuples():
        part = (lengths >= row.shortest) & (lengths <= row.longest)
        y, p = np.array(truth)[part], predicted[part].astype(str)
        assert row.accuracy == sklearn_metrics.accuracy_score(y, p)
        assert row.macro_f1 == pytest.approx(sklearn_metrics.f1_score(y, p, average="macro"))
    with pytest.raises(ValueError, match="2 bands for 60 tickets"):
        metrics.per_length(truth, probabilities, queues, [1, 2])
    with pytest.raises(ValueError, match="0 bands of 60"):
        metrics.per_length(truth, probabilities, queues, lengths, n_bands=0)
    with pytest.raises(ValueError, match="4 bands of 60 values, 1 of them missing"):
        metrics.per_length(truth, probabilities, queues, [np.nan, *range(59)])


def test_per_length_does_not_depend_on_the_callers_index():
    truth, probabilities, queues, _ = make_case(n=20)
    tickets = pd.DataFrame({"queue": truth, "length": range(20)}, index=range(90, 70, -1))
    pd.testing.assert_frame_equal(
        metrics.per_length(tickets["queue"], probabilities, queues, tickets["length"]),
        metrics.per_length(truth, probabilities, queues, range(20)),
    )


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(1, 6))
def test_bands_keep_order_and_equal_values_together(values, n_bands):
    bands = metrics.cut_bands(values, n_bands)
    assert set(bands) == set(range(bands.max() + 1)) and bands.max() < n_bands
    for value, band in zip(values, bands, strict=True):
        for other, its_band in zip(values, bands, strict=True):
            assert (value < other) <= (band <= its_band)
            assert (value == other) <= (band == its_band)


@given(st.lists(st.integers(0, 10**6), min_size=8, max_size=60, unique=True))
def test_bands_are_those_of_pandas_where_all_values_differ(values):
    np.testing.assert_array_equal(metrics.cut_bands(values, 4), pd.qcut(values, 4, labels=False))


def test_top_mistakes_are_the_most_confident_errors():
    truth, probabilities, queues, _ = make_case()
    tickets = pd.DataFrame(
        {"ticket_id": range(100, 160), "queue": truth}, index=range(160, 100, -1)
    )
    before = tickets.copy()
    table = metrics.top_mistakes(tickets, probabilities, queues, n=7)
    errors = []
    for row, queue in enumerate(truth):
        best = max(range(5), key=lambda column: probabilities[row, column])
        if queues[best] != queue:
            true_probability = probabilities[row, queues.index(queue)]
            errors.append((probabilities[row, best], true_probability, 100 + row, queues[best]))
    errors = sorted(errors, reverse=True)[:7]
    columns = ["probability", "probability_of_queue", "ticket_id", "predicted"]
    assert list(table[columns].itertuples(index=False, name=None)) == errors
    pd.testing.assert_frame_equal(tickets, before)
    assert metrics.top_mistakes(tickets, one_hot(truth, queues), queues).empty


def test_bad_input_is_named():
    truth, probabilities, queues, groups = make_case(n=4)
    with pytest.raises(ValueError, match=r"truth holds queues .*'Refund Desk' \(2\).*'IT'"):
        metrics.per_queue(["Refund Desk", "Refund Desk", *truth[:2]], probabilities, queues)
    with pytest.raises(ValueError, match="4 true queues but 3 rows"):
        metrics.per_queue(truth, probabilities[:3], queues)
    with pytest.raises(ValueError, match=r"shape \(4, 5\).* the 2 queues"):
        metrics.predict_queues(probabilities, queues[:2])
    with pytest.raises(ValueError, match="no truth tickets"):
        metrics.per_queue([], probabilities[:0], queues)
    with pytest.raises(ValueError, match=r"truth holds queues .*: nan \(1\)"):
        metrics.per_queue([np.nan, *truth[:3]], probabilities, queues)
    with pytest.raises(ValueError, match="queues holds 'IT' more than once"):
        metrics.per_queue(truth, probabilities, [*queues[:3], "IT", "IT"])
    options = {"queues": queues, "groups": groups, "seed": 0}
    with pytest.raises(ValueError, match="one group for each of 4"):
        metrics.summarize(truth, probabilities, **options | {"groups": groups[:2]})
    with pytest.raises(ValueError, match="1 of 4 tickets have no group"):
        metrics.summarize(truth, probabilities, **options | {"groups": [0, 1, np.nan, 2]})
    broken = probabilities.copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN in 1 of 4 rows, first in row 2"):
        metrics.predict_queues(broken, queues)
    with pytest.raises(ValueError, match=r"1 of 4 rows are not .*; row 3 .* in sum 0\.9"):
        metrics.summarize(truth, probabilities * np.array([[1, 1, 1, 0.9]]).T, **options)
    with pytest.raises(ValueError, match="4 of 4 rows are not probabilities; row 0"):
        metrics.summarize(truth, np.log(probabilities), **options)
    with pytest.raises(ValueError, match="one column. Give two or more queues"):
        metrics.summarize(["IT"], np.ones((1, 1)), ["IT"], groups=[0], seed=0)


def test_numeric_and_missing_looking_queues_are_just_names():
    queues = ["NA", "None", "007"]
    summary = metrics.summarize(queues, np.eye(3), queues, groups=[0, 1, 2], seed=0)
    assert summary["accuracy"] == 1


def test_metrics_file_is_flat_and_whole(tmp_path):
    truth, probabilities, queues, groups = make_case()
    summary = metrics.summarize(truth, probabilities, queues, groups=groups, seed=0)
    path = tmp_path / "run" / "metrics.json"
    metrics.write_metrics(path, {"tuned": summary, "run": {"name": "Zürich", "n": np.int64(3)}})
    flat = json.loads(path.read_text(encoding="utf-8"))
    assert flat["tuned.accuracy"] == summary["accuracy"]
    assert (flat["run.name"], flat["run.n"]) == ("Zürich", 3)
    assert len(flat) == len(summary) + 2
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        metrics.write_metrics(path, {"tuned": {"accuracy": np.float64("nan")}})
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
