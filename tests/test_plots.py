"""Figures show the numbers they are given, are labeled, and leave the caller's settings alone."""

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

FIGURES = {
    "queue_counts": lambda ax=None: plots.queue_counts(TICKETS, ax=ax),
    "language_by_queue": lambda ax=None: plots.language_by_queue(TICKETS, ax=ax),
    "body_lengths": lambda ax=None: plots.body_lengths(TICKETS, ax=ax),
    "token_lengths": lambda ax=None: plots.token_lengths([90, 100, 520], 512, ax=ax),
    "group_sizes": lambda ax=None: plots.group_sizes([0, 0, 1, 2, 2, 2, 3], ax=ax),
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


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_draws_on_the_axes_given_or_on_new_ones_and_changes_no_settings(draw):
    before = dict(matplotlib.rcParams)
    own = draw()
    _, ax = plt.subplots()
    assert draw(ax) is ax
    assert own is not ax and own.figure is not ax.figure
    assert dict(matplotlib.rcParams) == before
    assert ax.get_xlabel() and not ax.get_title()


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_nothing_is_cut_off_and_labels_do_not_overlap(draw):
    ax = draw()
    ax.figure.canvas.draw()
    drawn, page = ax.get_tightbbox(), ax.figure.bbox
    assert drawn.x0 >= page.x0 and drawn.x1 <= page.x1
    assert drawn.y0 >= page.y0 and drawn.y1 <= page.y1
    for labels in (ax.get_yticklabels(), ax.texts):
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        for first, second in zip(boxes, boxes[1:], strict=False):
            assert not first.overlaps(second)


def test_queue_counts_are_the_counts_largest_on_top():
    ax = plots.queue_counts(TICKETS)
    counts = TICKETS["queue"].value_counts()
    drawn = {
        label.get_text(): bar.get_width()
        for label, bar in zip(ax.get_yticklabels(), ax.patches, strict=True)
    }
    assert drawn == counts.to_dict()
    assert ax.patches[-1].get_width() == counts.max()
    assert texts(ax)[-1] == f"{counts.max()} ({counts.max() / 200:.0%})"


def test_language_by_queue_shows_every_count():
    ax = plots.language_by_queue(TICKETS)
    shown = sum(int(text.split(" ")[0]) for text in texts(ax))
    assert shown == len(TICKETS)
    assert "(none)" in [label.get_text() for label in ax.get_xticklabels()]


def test_histograms_hold_every_ticket():
    ax = plots.body_lengths(TICKETS)
    heights = {}
    for bar in ax.patches:
        heights[bar.get_x()] = heights.get(bar.get_x(), 0) + bar.get_height()
    assert sum(heights.values()) == len(TICKETS)
    many = TICKETS.assign(language=[f"l{row % 7}" for row in range(200)])
    ax = plots.body_lengths(many)
    assert sum(bar.get_height() for bar in ax.patches) == 200
    assert [text.get_text() for text in ax.get_legend().get_texts()][-1] == "other"


def test_token_lengths_count_what_is_longer_than_the_limit():
    ax = plots.token_lengths([10, 512, 513, 900], 512)
    assert ax.get_legend().get_texts()[0].get_text() == "Limit: 512 tokens (2 of 4 longer)"
    assert sum(bar.get_height() for bar in ax.patches) == 4
    with pytest.raises(ValueError, match="counts is empty"):
        plots.token_lengths([], 512)


def test_group_sizes_count_groups():
    ax = plots.group_sizes([0, 0, 1, 2, 2, 2, 3])
    assert {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in ax.patches} == {
        1: 2,
        2: 1,
        3: 1,
    }
    with pytest.raises(ValueError, match="groups is empty"):
        plots.group_sizes([])


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


def test_score_comparison_shows_value_and_interval():
    ax = plots.score_comparison(SUMMARIES)
    assert texts(ax) == ["0.300", "0.700", "0.800"]
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), [0.2, 0.35])
    assert ax.yaxis_inverted(), "the first model is on top"
    with pytest.raises(ValueError, match='"log_loss" has no interval .* Use one of accuracy'):
        plots.score_comparison(SUMMARIES, metric="log_loss")


def test_saved_figures_are_png_and_svg(tmp_path):
    path = plots.save_figure(plots.queue_counts(TICKETS), tmp_path / "figures", "queue_counts")
    assert path == tmp_path / "figures" / "queue_counts.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in path.with_suffix(".svg").read_bytes()
    assert len(list(path.parent.iterdir())) == 2
