"""Figures of results show the numbers they are given and leave the caller's settings alone."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ticketlib import plots

QUEUES = [
    "Technical Support",
    "Product Support",
    "Customer Service",
    "IT Support",
    "Billing and Payments",
    "Returns and Exchanges",
    "Service Outages and Maintenance",
    "Sales and Pre-Sales",
    "Human Resources",
    "General Inquiry",
]
RNG = np.random.default_rng(0)
TICKETS = pd.DataFrame(
    {
        "queue": [*QUEUES, *RNG.choice(QUEUES, 190)],
        "language": RNG.choice(["en", "de", ""], 200, p=[0.6, 0.3, 0.1]),
        "body": ["x" * length for length in RNG.integers(1, 1500, 200)],
    }
)
HISTORY = pd.DataFrame(
    {
        "step": range(1, 7),
        "train_loss": [3, 2, 1.5, 1.2, 1.1, 1.0],
        "val_loss": [np.nan, 2.1, np.nan, 1.4, np.nan, 1.3],
    }
)
SUMMARIES = {
    name: {"accuracy": a, "accuracy_low": a - 0.1, "accuracy_high": a + 0.05, "log_loss": 1.0}
    for name, a in {"Majority": 0.3, "TF-IDF + logistic regression": 0.7, "Tuned": 0.8}.items()
}
PREDICTED = np.where(RNG.random(200) < 0.7, TICKETS["queue"], RNG.choice(QUEUES, 200))
RELIABILITY = {
    name: pd.DataFrame({"confidence": [0.4, 0.7, 0.9], "accuracy": [0.3 + shift, 0.6, 1.0]}).assign(
        accuracy_low=lambda t: t["accuracy"] - 0.1, accuracy_high=lambda t: t["accuracy"]
    )
    for name, shift in {"as trained": 0, "temperature 1.2": 0.1}.items()
}
CURVES = {
    name: pd.DataFrame(
        {"share": [0.1, 0.5, 1], "accuracy": [best, 0.9, 0.7], "threshold": [0.9, 0.5, 0.1]}
    ).assign(
        accuracy_low=lambda t: t["accuracy"] - 0.1,
        accuracy_high=lambda t: (t["accuracy"] + 0.1).clip(upper=1),
    )
    for name, best in {"Tuned model": 1.0, "TF-IDF": 0.95}.items()
}
ROUTED = {"share": 0.5, "accuracy": 0.9}

FIGURES = {
    "reliability": lambda ax=None: plots.reliability(RELIABILITY, ax=ax),
    "handoff_curve": lambda ax=None: plots.handoff_curve(
        CURVES, target_accuracy=0.9, chosen=ROUTED, ax=ax
    ),
    "loss_curves": lambda ax=None: plots.loss_curves(HISTORY, ax=ax),
    "confusion_matrix": lambda ax=None: plots.confusion_matrix(
        TICKETS["queue"], PREDICTED, QUEUES, ax=ax
    ),
    "score_comparison": lambda ax=None: plots.score_comparison(SUMMARIES, ax=ax),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def assert_draws_where_told_and_changes_no_settings(draw):
    before = dict(matplotlib.rcParams)
    own = draw()
    _, ax = plt.subplots()
    assert draw(ax) is ax
    assert own is not ax and own.figure is not ax.figure
    assert dict(matplotlib.rcParams) == before
    assert ax.get_xlabel() and not ax.get_title()


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_draws_on_the_axes_given_or_on_new_ones_and_changes_no_settings(draw):
    assert_draws_where_told_and_changes_no_settings(draw)


def assert_nothing_is_cut_or_overlaps(ax):
    ax.figure.canvas.draw()
    drawn, page = ax.get_tightbbox(), ax.figure.bbox
    assert drawn.x0 >= page.x0 and drawn.x1 <= page.x1
    assert drawn.y0 >= page.y0 and drawn.y1 <= page.y1
    for labels in (ax.get_yticklabels(), ax.texts):
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        for first, second in zip(boxes, boxes[1:], strict=False):
            assert not first.overlaps(second)


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_nothing_is_cut_off_and_labels_do_not_overlap(draw):
    assert_nothing_is_cut_or_overlaps(draw())


def test_loss_curves_show_what_a_blind_model_would_reach():
    assert not plots.loss_curves(HISTORY).get_lines()[2:]
    line = plots.loss_curves(HISTORY, blind_loss=0.3).get_lines()[-1]
    assert set(line.get_ydata()) == {0.3} and "alone" in line.get_label()


def test_loss_curves_join_the_measured_points():
    ax = plots.loss_curves(HISTORY)
    training, validation = ax.get_lines()
    assert training.get_ydata().tolist() == HISTORY["train_loss"].tolist()
    assert validation.get_xydata().tolist() == [[2, 2.1], [4, 1.4], [6, 1.3]]


@pytest.mark.parametrize("normalize", [False, True])
def test_confusion_matrix_shows_the_table(normalize):
    ax = plots.confusion_matrix(TICKETS["queue"], PREDICTED, QUEUES, normalize=normalize)
    table = pd.crosstab(
        TICKETS["queue"], PREDICTED, normalize="index" if normalize else False
    ).reindex(index=QUEUES, columns=QUEUES, fill_value=0)
    shown = {tuple(map(round, text.get_position())): text.get_text() for text in ax.texts}
    for row in range(10):
        for column in range(10):
            value = table.iloc[row, column]
            expected = "" if value == 0 else f"{value:.0%}" if normalize else str(value)
            assert shown[column, row] == expected
    with pytest.raises(ValueError, match="'Refund Desk' not among the 10 queues"):
        plots.confusion_matrix(["Refund Desk"], ["IT Support"], QUEUES)


def test_text_width_is_what_is_drawn():
    _, ax = plt.subplots()
    for text in ("Rückgabe und Umtausch", "US$ and CA$", "mmmm", "iiii"):
        drawn = ax.text(0, 0, text, size=9, parse_math=False).get_window_extent()
        width = drawn.width / ax.figure.dpi
        assert plots.text_width(["i", text], size=9) == pytest.approx(width, rel=0.1, abs=0.03)
    assert plots.text_width([""]) == plots.text_width([]) == 0
    assert plots.text_width([" \u200b"]) < 0.1


def test_long_queue_names_fit_a_confusion_matrix():
    queues = [f"Donaudampfschifffahrtsgesellschaftsangelegenheiten {i}" for i in range(6)]
    queues += ["US$ and CA$ payments", "A name longer than what anybody reads " * 3]
    ax = plots.confusion_matrix(queues, queues[::-1], queues)
    assert_nothing_is_cut_or_overlaps(ax)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [label.get_text() for label in ax.get_xticklabels()]
    assert names[:7] == queues[:7] and len(names[7]) == 61 and "…" in names[7]


def test_score_comparison_shows_value_and_interval():
    ax = plots.score_comparison(SUMMARIES)
    assert texts(ax) == ["30.0 %", "70.0 %", "80.0 %"]
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), [0.2, 0.35])
    assert ax.yaxis_inverted(), "the first model is on top"
    with pytest.raises(ValueError, match='"log_loss" has no interval .* Use one of accuracy'):
        plots.score_comparison(SUMMARIES, metric="log_loss")


def test_runs_are_compared_by_a_model_and_a_metric():
    table = pd.DataFrame(
        {
            f"{model}.macro_f1{end}": [value + shift, value + shift + 0.1]
            for model, value in {"tuned": 0.5, "untuned": 0.1}.items()
            for end, shift in {"": 0, "_low": -0.1, "_high": 0.1}.items()
        },
        index=["rank4", "rank8"],
    )
    ax = plots.run_comparison(table, metric="macro_f1")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["rank4", "rank8"]
    assert texts(ax) == ["50.0 %", "60.0 %"] and "Macro-F1" in ax.get_xlabel()
    with pytest.raises(ValueError, match='metric = "accuracy" has no interval'):
        plots.run_comparison(table)


def test_reliability_shows_each_table_beside_the_diagonal():
    ax = plots.reliability(RELIABILITY)
    diagonal, *_ = ax.get_lines()
    assert diagonal.get_xdata().tolist() == diagonal.get_ydata().tolist() == [0, 1]
    for bars, table in zip(ax.containers, RELIABILITY.values(), strict=True):
        np.testing.assert_allclose(bars.lines[0].get_xydata(), table[["confidence", "accuracy"]])
        low = [segment[0, 1] for segment in bars.lines[2][0].get_segments()]
        np.testing.assert_allclose(low, table["accuracy_low"])
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["Calibrated", *RELIABILITY]


def test_handoff_curve_shows_curves_target_and_choice():
    ax = plots.handoff_curve(CURVES, target_accuracy=0.9, chosen=ROUTED)
    lines = {line.get_label(): line for line in ax.get_lines()}
    for name, curve in CURVES.items():
        np.testing.assert_allclose(lines[name].get_xydata(), curve[["share", "accuracy"]])
    assert lines["Target: 90 %"].get_ydata() == [0.9, 0.9]
    assert lines["Threshold: 50.0 % routed, 90.0 % right"].get_xydata().tolist() == [[0.5, 0.9]]
    nothing = plots.handoff_curve(CURVES, chosen={"share": 0.0, "accuracy": None})
    assert len(nothing.get_lines()) == 2


def test_saved_figures_are_png_and_svg(tmp_path):
    path = plots.save_figure(plots.loss_curves(HISTORY), tmp_path / "figures", "loss")
    assert path == tmp_path / "figures" / "loss.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in path.with_suffix(".svg").read_bytes()
    assert len(list(path.parent.iterdir())) == 2
