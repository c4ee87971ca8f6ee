"""Figures of tickets, each on one `Axes`, which is returned.

Of very many queues, the figures show the largest and say so.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ticketlib.plots import (
    BLUE,
    GRAY,
    SKY,
    VERMILLION,
    YELLOW,
    confusion_matrix,
    new_axes,
    shorten,
    text_width,
    without_frame,
)

# No page holds more: rows, and rows and columns.
_MOST_QUEUES, _MOST_PAIRED = 40, 15


def queue_counts(tickets: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Bars: tickets of every queue, the largest on top.

    Args:
        tickets: Frame with `queue`.
        ax: Axes to draw on, else new ones.

    Raises:
        KeyError: If `tickets` has no column `queue`.
    """
    counts = tickets["queue"].value_counts()
    queues, note = _take_largest(counts.index)
    counts, names = counts[queues], shorten(queues)
    ax = ax or new_axes(width=4.8 + text_width(names), height=1 + 0.3 * len(names))
    bars = ax.barh(range(len(names)), counts, color=BLUE)
    ax.bar_label(bars, [f"{n:,} ({n / len(tickets):.0%})" for n in counts], padding=3)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.margins(x=0.18)
    ax.set(xlabel=f"Tickets{note}")
    return without_frame(ax)


def language_by_queue(tickets: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Heat map: share of every language among a queue's tickets, with their number.

    Args:
        tickets: Frame with `queue` and `language`.
        ax: Axes to draw on, else new ones.

    Raises:
        KeyError: If `tickets` has no column `queue` or `language`.
    """
    named = tickets["language"].replace("", "(none)")
    counts = pd.crosstab(tickets["queue"], named)
    queues, note = _take_largest(tickets["queue"].value_counts().index)
    counts = counts.loc[queues, named.value_counts().index]
    shares = counts.div(counts.sum(axis=1), axis=0)
    labels = [
        f"{n:,} ({share:.0%})" for n, share in zip(counts.stack(), shares.stack(), strict=True)
    ]
    ax = _draw_shares(shares, labels, ax)
    ax.set(xlabel=f"Language: tickets (share of the queue){note}")
    return ax


def missing_fields(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Heat map: share of every queue's tickets whose subject or language is empty.

    Args:
        table: What `explore.missing_fields` gives.
        ax: Axes to draw on, else new ones.

    Raises:
        KeyError: If a column is missing.
    """
    queues, note = _take_largest(table.index)
    shares, tickets = table.loc[queues, ["subject", "language"]], table.loc[queues, "tickets"]
    labels = [f"{share:.1%}" for share in shares.stack()]
    names = [f"{name} ({n:,})" for name, n in zip(shorten(queues), tickets, strict=True)]
    ax = _draw_shares(shares.set_axis(names).rename(columns=str.capitalize), labels, ax)
    ax.set(xlabel=f"Empty field (share of tickets){note}")
    return ax


def telling_words(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Rows of words: a queue's most telling ones, in order, the darker the more they tell.

    Args:
        table: What `explore.telling_words` gives.
        ax: Axes to draw on, else new ones; they take a width in inches of what is in them.

    Raises:
        KeyError: If a column is missing.
    """
    queues, note = _take_largest(table["queue"].unique())
    names = shorten(queues)
    rows = [table[table["queue"] == queue] for queue in queues]
    words = [shorten(row["word"], most=24) for row in rows]
    widths = [[text_width([word], size=9) + 0.15 for word in row] for row in words]
    total = max((sum(row) for row in widths), default=4)
    ax = ax or new_axes(width=0.4 + text_width(names) + total, height=0.7 + 0.3 * len(rows))
    for y, row in enumerate(rows):
        left = np.cumsum([0, *widths[y]])[:-1]
        shades = row["score"].to_numpy() / table["score"].max()
        colors = plt.get_cmap("Blues")(0.1 + 0.7 * shades)
        bars = ax.barh(y, widths[y], left=left, height=0.84, color=colors, ec="white")
        texts = ax.bar_label(bars, words[y], label_type="center", size=9, parse_math=False)
        for text, shade in zip(texts, shades, strict=True):
            text.set_color("white" if shade > 0.75 else "black")
            text.set_in_layout(False)  # Within its bar; hundreds are slow to lay out.
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set(xlim=(0, total), ylim=(max(len(rows), 1) - 0.5, -0.5), xticks=[])
    if not rows:
        ax.text(total / 2, 0, "No word tells a queue.", ha="center", va="center")
    best = f", up to {table['score'].max():.2f}" if rows else ""
    ax.set(xlabel=f"Words, the most telling first (darker: higher score{best}){note}")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


def label_noise(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Heat map: tickets whose label looks wrong, by their queue and by the one suggested.

    Shows the 15 queues that occur most, and how many of the tickets these are.

    Args:
        table: What `explore.find_label_noise` gives.
        ax: Axes to draw on, else new ones.

    Raises:
        KeyError: If a column is missing.
    """
    queues = pd.concat([table["queue"], table["suggested"]]).value_counts().index[:_MOST_PAIRED]
    shown = table[table["queue"].isin(queues) & table["suggested"].isin(queues)]
    note = "tickets" if len(shown) == len(table) else f"{len(shown):,} of {len(table):,} tickets"
    if shown.empty:
        ax = ax or new_axes(height=1.5)
        ax.text(0.5, 0.5, "No label looks wrong.", ha="center", va="center")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    else:
        ax = confusion_matrix(shown["queue"], shown["suggested"], queues, ax=ax)
    ax.set(xlabel=f"Suggested queue ({note})", ylabel="Labeled queue")
    return ax


def body_lengths(tickets: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Histogram: characters in a ticket's body, by language, the most frequent at the bottom.

    Args:
        tickets: Frame with `body` and `language`.
        ax: Axes to draw on, else new ones.

    Raises:
        KeyError: If `tickets` has no column `body` or `language`.
    """
    ax = ax or new_axes()
    lengths = tickets["body"].str.len()
    named = tickets["language"].replace("", "(none)")
    languages = named.value_counts().index[:4]
    parts = {language: lengths[named == language] for language in languages}
    if len(other := lengths[~named.isin(languages)]):
        parts["other"] = other
    colors = [BLUE, SKY, VERMILLION, YELLOW, GRAY][: len(parts)]
    ax.hist(
        list(parts.values()), bins=30, stacked=True, label=list(parts), color=colors, ec="white"
    )
    ax.legend(title="Language", frameon=False)
    ax.set(xlabel="Length of the body (characters)", ylabel="Tickets")
    return without_frame(ax)


def token_lengths(counts: Sequence[int], seq_length: int, *, ax: Axes | None = None) -> Axes:
    """Histogram: tokens of a ticket's prompt, with the limit and how many are longer.

    Args:
        counts: Tokens of every prompt (`prompts.count_tokens`).
        seq_length: Limit in tokens.
        ax: Axes to draw on, else new ones.

    Raises:
        ValueError: If there are no counts.
    """
    counts = np.asarray(counts)
    if not counts.size:
        raise ValueError("counts is empty. Give the number of tokens of every prompt.")
    ax = ax or new_axes()
    n_longer = int((counts > seq_length).sum())
    label = f"Limit: {seq_length:,} tokens ({n_longer:,} of {len(counts):,} longer)"
    ax.hist(counts, bins=30, color=BLUE, ec="white")
    ax.axvline(seq_length, color=VERMILLION, ls="--", lw=2, label=label)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    ax.set(xlabel="Length of the prompt (tokens)", ylabel="Tickets")
    return without_frame(ax)


def group_sizes(groups: Sequence[int], *, ax: Axes | None = None) -> Axes:
    """Bars: how many paraphrase groups have one, two, three … tickets; above eight, ranges.

    Args:
        groups: Paraphrase group of every ticket, [n].
        ax: Axes to draw on, else new ones.

    Raises:
        ValueError: If there are no groups.
    """
    sizes = pd.Series(groups).value_counts()
    if sizes.empty:
        raise ValueError("groups is empty. Give the group of every ticket.")
    ax = ax or new_axes()
    starts = np.array([*range(1, 9), *(2**power + 1 for power in range(3, 40))])
    bars = np.bincount(np.searchsorted(starts, sizes, side="right"))[1:]
    places = np.arange(1, len(bars) + 1)
    ends = starts[places] - 1
    names = [f"{a}" if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=False)]
    ax.bar_label(ax.bar(places, bars, color=BLUE), [f"{n:,}" if n else "" for n in bars])
    ax.set_xticks(places, names)
    ax.set(xlabel="Size of the paraphrase group (tickets)", ylabel="Groups")
    return without_frame(ax)


def _take_largest(queues: Sequence[str]) -> tuple[list[str], str]:
    """The first queues, as many as a figure can show, and the note that says so."""
    shown = list(queues)[:_MOST_QUEUES]
    return shown, f"\n{len(shown)} of {len(queues):,} queues" if len(shown) < len(queues) else ""


def _draw_shares(shares: pd.DataFrame, labels: Sequence[str], ax: Axes | None) -> Axes:
    """Heat map of shares, 0 to 1, with a label in each cell, row by row."""
    n_rows, n_columns = shares.shape
    names, columns = shorten(shares.index, most=80), shorten(shares.columns, most=12)
    width = max(n_columns * (text_width(labels) + 0.25), 3)
    ax = ax or new_axes(width=0.4 + text_width(names) + width, height=1.2 + 0.33 * n_rows)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        text = labels[row * n_columns + column]
        color = "white" if share > 0.65 else "black"
        ax.text(column, row, text, ha="center", va="center", color=color)
    ax.set_xticks(range(n_columns), columns, parse_math=False)
    ax.set_yticks(range(n_rows), names, parse_math=False)
    return ax
