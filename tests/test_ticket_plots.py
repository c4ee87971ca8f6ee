"""Figures of tickets show the numbers they are given, with any number and length of queue names."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from test_plots import (
    QUEUES,
    TICKETS,
    assert_draws_where_told_and_changes_no_settings,
    assert_nothing_is_cut_or_overlaps,
    texts,
)

from ticketlib import explore, plots, ticket_plots

LONG = [
    f"{name} {number}"
    for number in range(5)
    for name in (
        "Third-Level Infrastructure Engineering (EMEA)",
        "Donaudampfschifffahrtsgesellschaftsangelegenheiten",
        "IT",
        "US$ and CA$ payments",
        "A name that is longer than what anybody would read from beginning to end, or print",
    )
]
MANY = [f"Group {number:03d}" for number in range(120)]


def make_tables(queues):
    """Tickets in these queues, and what `explore` gives for them: words, and labels to look at."""
    random = np.random.default_rng(0)
    drawn = [*queues, *random.choice(queues, 12 * len(queues))]
    letters = "".join(map(chr, range(ord("a"), ord("z"))))
    tickets = pd.DataFrame(
        {
            "queue": drawn,
            "subject": np.where(random.random(len(drawn)) < 0.2, "", "x"),
            "language": random.choice(["en", "de", ""], len(drawn)),
            "body": [letters[: 2 + queues.index(queue) % 24] * 2 for queue in drawn],
        }
    )
    words = [
        (queue, letters[: 3 + (7 * i + j) % 22] + "mw" * (j % 3), 0.9 / (1 + j), 0.5, 0.1)
        for i, queue in enumerate(queues)
        for j in range(8)
    ]
    words = pd.DataFrame(words, columns=["queue", "word", "score", "share", "elsewhere"])
    noise = pd.DataFrame(
        {"queue": drawn[::2], "suggested": random.permutation(drawn)[: len(drawn[::2])]}
    )
    return tickets, words, noise


TABLES = {name: make_tables(queues) for name, queues in (("long", LONG), ("many", MANY))}
TABLES["usual"] = make_tables(QUEUES)

FIGURES = {
    "queue_counts": lambda ax=None, of="usual": ticket_plots.queue_counts(TABLES[of][0], ax=ax),
    "language_by_queue": lambda ax=None, of="usual": ticket_plots.language_by_queue(
        TABLES[of][0], ax=ax
    ),
    "missing_fields": lambda ax=None, of="usual": ticket_plots.missing_fields(
        explore.missing_fields(TABLES[of][0]), ax=ax
    ),
    "telling_words": lambda ax=None, of="usual": ticket_plots.telling_words(TABLES[of][1], ax=ax),
    "label_noise": lambda ax=None, of="usual": ticket_plots.label_noise(TABLES[of][2], ax=ax),
    "body_lengths": lambda ax=None, of="usual": ticket_plots.body_lengths(TABLES[of][0], ax=ax),
    "token_lengths": lambda ax=None, of="usual": ticket_plots.token_lengths(
        [90, 100, 520], 512, ax=ax
    ),
    "group_sizes": lambda ax=None, of="usual": ticket_plots.group_sizes(
        np.repeat(range(200), [1] * 100 + [2] * 50 + [5] * 40 + [12] * 9 + [3000]), ax=ax
    ),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_draws_on_the_axes_given_or_on_new_ones_and_changes_no_settings(draw):
    assert_draws_where_told_and_changes_no_settings(draw)


@pytest.mark.parametrize("of", TABLES)
@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_nothing_is_cut_off_and_labels_do_not_overlap(draw, of):
    assert_nothing_is_cut_or_overlaps(draw(of=of))


def tick_texts(ticks):
    return [label.get_text() for label in ticks]


def test_queue_counts_are_the_counts_largest_on_top():
    ax = ticket_plots.queue_counts(TICKETS)
    counts = TICKETS["queue"].value_counts()
    widths = [bar.get_width() for bar in ax.patches]
    assert dict(zip(tick_texts(ax.get_yticklabels()), widths, strict=True)) == counts.to_dict()
    assert widths == sorted(widths, reverse=True) and ax.yaxis_inverted()
    assert texts(ax)[0] == f"{counts.max()} ({counts.max() / 200:.0%})"


def test_of_many_queues_the_largest_are_shown_and_it_says_so():
    tickets, words, noise = TABLES["many"]
    largest = tickets["queue"].value_counts().index[:40].tolist()
    for ax in (
        ticket_plots.queue_counts(tickets),
        ticket_plots.language_by_queue(tickets),
        ticket_plots.missing_fields(explore.missing_fields(tickets)),
        ticket_plots.telling_words(words),
    ):
        shown = [name.split(" (")[0] for name in tick_texts(ax.get_yticklabels())]
        assert shown == (MANY[:40] if "Words" in ax.get_xlabel() else largest)
        assert ax.get_xlabel().endswith("\n40 of 120 queues")
    ax = ticket_plots.label_noise(noise)
    shown = tick_texts(ax.get_yticklabels())
    n = (noise["queue"].isin(shown) & noise["suggested"].isin(shown)).sum()
    assert len(shown) == 15
    assert ax.get_xlabel() == f"Suggested queue ({n} of {len(noise)} tickets)"


def test_language_by_queue_shows_every_count():
    ax = ticket_plots.language_by_queue(TICKETS)
    assert sum(int(text.split(" ")[0]) for text in texts(ax)) == len(TICKETS)
    assert "(none)" in tick_texts(ax.get_xticklabels())
    table = pd.crosstab(TICKETS["queue"], TICKETS["language"].replace("", "(none)"))
    shown = {text.get_position(): text.get_text() for text in ax.texts}
    for row, queue in enumerate(tick_texts(ax.get_yticklabels())):
        for column, language in enumerate(tick_texts(ax.get_xticklabels())):
            n = table.loc[queue, language]
            assert shown[column, row] == f"{n} ({n / table.loc[queue].sum():.0%})"


def test_missing_fields_shows_the_table():
    table = pd.DataFrame(
        {"subject": [0.125, 1.0], "language": [0.0, 0.5], "tickets": [1200, 4]},
        index=["Billing", "IT"],
    )
    ax = ticket_plots.missing_fields(table)
    assert tick_texts(ax.get_yticklabels()) == ["Billing (1,200)", "IT (4)"]
    assert tick_texts(ax.get_xticklabels()) == ["Subject", "Language"]
    assert texts(ax) == ["12.5%", "0.0%", "100.0%", "50.0%"]
    np.testing.assert_array_equal(ax.images[0].get_array(), [[0.125, 0], [1, 0.5]])


def test_telling_words_shows_each_queues_words_in_order_the_darker_the_more_they_tell():
    table = TABLES["usual"][1]
    ax = ticket_plots.telling_words(table)
    assert texts(ax) == plots.shorten(table["word"], most=24)
    assert tick_texts(ax.get_yticklabels()) == table["queue"].unique().tolist()
    boxes = [(bar.get_y() + bar.get_height() / 2, bar.get_x()) for bar in ax.patches]
    assert boxes == sorted(boxes) and len(boxes) == len(table)
    light = [sum(bar.get_facecolor()[:3]) for bar in ax.patches]
    by_score = pd.Series(light).groupby(table["score"].round(6)).agg(["min", "max"])
    assert (by_score["min"].iloc[:-1].to_numpy() > by_score["max"].iloc[1:].to_numpy()).all()


def test_words_stay_within_their_boxes():
    ax = ticket_plots.telling_words(TABLES["long"][1])
    ax.figure.canvas.draw()
    for text, bar in zip(ax.texts, ax.patches, strict=True):
        inner, outer = text.get_window_extent(), bar.get_window_extent()
        assert outer.x0 < inner.x0 and inner.x1 < outer.x1


def test_label_noise_shows_the_counts_of_both_queues():
    noise = TABLES["usual"][2]
    ax = ticket_plots.label_noise(noise)
    counts = pd.crosstab(noise["queue"], noise["suggested"])
    queues = tick_texts(ax.get_yticklabels())
    assert queues == tick_texts(ax.get_xticklabels()) and set(queues) == set(QUEUES)
    shown = {tuple(map(round, text.get_position())): text.get_text() for text in ax.texts}
    for row, queue in enumerate(queues):
        for column, suggested in enumerate(queues):
            assert shown[column, row] == str(counts.loc[queue, suggested] or "")
    assert ax.get_xlabel() == "Suggested queue (tickets)" and ax.get_ylabel() == "Labeled queue"


def test_where_there_is_nothing_to_show_it_says_so():
    _, words, noise = TABLES["usual"]
    assert texts(ticket_plots.telling_words(words[:0])) == ["No word tells a queue."]
    assert texts(ticket_plots.label_noise(noise[:0])) == ["No label looks wrong."]


def test_histograms_hold_every_ticket():
    ax = ticket_plots.body_lengths(TICKETS)
    heights = {}
    for bar in ax.patches:
        heights[bar.get_x()] = heights.get(bar.get_x(), 0) + bar.get_height()
    assert sum(heights.values()) == len(TICKETS)
    many = TICKETS.assign(language=[f"l{row % 7}" for row in range(200)])
    ax = ticket_plots.body_lengths(many)
    assert sum(bar.get_height() for bar in ax.patches) == 200
    assert [text.get_text() for text in ax.get_legend().get_texts()][-1] == "other"


def test_token_lengths_count_what_is_longer_than_the_limit():
    ax = ticket_plots.token_lengths([10, 512, 513, 900], 512)
    assert ax.get_legend().get_texts()[0].get_text() == "Limit: 512 tokens (2 of 4 longer)"
    assert sum(bar.get_height() for bar in ax.patches) == 4
    with pytest.raises(ValueError, match="counts is empty"):
        ticket_plots.token_lengths([], 512)


def test_group_sizes_count_groups():
    ax = ticket_plots.group_sizes([0, 0, 1, 2, 2, 2, 3])
    assert tick_texts(ax.get_xticklabels()) == ["1", "2", "3"]
    assert [bar.get_height() for bar in ax.patches] == [2, 1, 1]
    with pytest.raises(ValueError, match="groups is empty"):
        ticket_plots.group_sizes([])


def test_large_groups_are_counted_in_ranges():
    sizes = [1, 8, 8, 9, 16, 17, 32, 33, 70]
    ax = ticket_plots.group_sizes(np.repeat(range(len(sizes)), sizes))
    names = tick_texts(ax.get_xticklabels())
    assert names == [*"12345678", "9–16", "17–32", "33–64", "65–128"]
    assert [bar.get_height() for bar in ax.patches] == [1, 0, 0, 0, 0, 0, 0, 2, 2, 2, 1, 1]
    assert texts(ax) == ["1", *[""] * 6, "2", "2", "2", "1", "1"]
