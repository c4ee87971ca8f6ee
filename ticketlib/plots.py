"""Figures of tickets, training and results. Each draws one `Axes` and returns it.

Colors are Okabe and Ito's (distinct for the color-blind), and what color says, a label, marker or
brightness says too, so that the figures survive a black-and-white printer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.metrics import confusion_matrix as count_pairs

from ticketlib.paths import replace_atomically

BLUE, VERMILLION, SKY, YELLOW, GRAY = "#0072B2", "#D55E00", "#56B4E9", "#F0E442", "#999999"


def queue_counts(tickets: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Bars: tickets of every queue, the largest on top.

    Raises:
        KeyError: If `tickets` has no column `queue`.
    """
    counts = tickets["queue"].value_counts().iloc[::-1]
    ax = ax or _new_axes(height=1 + 0.3 * len(counts))
    bars = ax.barh(counts.index, counts, color=BLUE)
    shares = counts / counts.sum()
    labels = [f"{n:,} ({share:.0%})" for n, share in zip(counts, shares, strict=True)]
    ax.bar_label(bars, labels, padding=3)
    ax.margins(x=0.18)
    ax.set(xlabel="Tickets")
    return _without_frame(ax)


def language_by_queue(tickets: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Heat map: share of every language among a queue's tickets, with their number.

    Raises:
        KeyError: If `tickets` has no column `queue` or `language`.
    """
    named = tickets["language"].replace("", "(none)")
    counts = pd.crosstab(tickets["queue"], named)
    counts = counts.loc[tickets["queue"].value_counts().index, named.value_counts().index]
    shares = counts.div(counts.sum(axis=1), axis=0).to_numpy()
    ax = ax or _new_axes(width=3.4 + 0.9 * counts.shape[1], height=1.2 + 0.33 * counts.shape[0])
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        text = f"{counts.iloc[row, column]:,} ({share:.0%})"
        color = "white" if share > 0.65 else "black"
        ax.text(column, row, text, ha="center", va="center", color=color)
    ax.set_xticks(range(counts.shape[1]), counts.columns)
    ax.set_yticks(range(counts.shape[0]), counts.index)
    ax.set(xlabel="Language: tickets (share of the queue)")
    return ax


def body_lengths(tickets: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Histogram: characters in a ticket's body, by language, the most frequent at the bottom.

    Raises:
        KeyError: If `tickets` has no column `body` or `language`.
    """
    ax = ax or _new_axes()
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
    return _without_frame(ax)


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
    ax = ax or _new_axes()
    n_longer = int((counts > seq_length).sum())
    label = f"Limit: {seq_length:,} tokens ({n_longer:,} of {len(counts):,} longer)"
    ax.hist(counts, bins=30, color=BLUE, ec="white")
    ax.axvline(seq_length, color=VERMILLION, ls="--", lw=2, label=label)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    ax.set(xlabel="Length of the prompt (tokens)", ylabel="Tickets")
    return _without_frame(ax)


def group_sizes(groups: Sequence[int], *, ax: Axes | None = None) -> Axes:
    """Bars: how many paraphrase groups have one, two, three … tickets.

    Raises:
        ValueError: If there are no groups.
    """
    sizes = pd.Series(groups).value_counts().value_counts().sort_index()
    if sizes.empty:
        raise ValueError("groups is empty. Give the group of every ticket.")
    ax = ax or _new_axes()
    ax.bar_label(ax.bar(sizes.index, sizes, color=BLUE), fmt="{:,.0f}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="Size of the paraphrase group (tickets)", ylabel="Groups")
    return _without_frame(ax)


def loss_curves(history: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Lines: training and validation loss by optimizer step.

    Args:
        history: Columns `step`, `train_loss`, `val_loss` (nats a token; NaN where not measured).
        ax: Axes to draw on, else new ones.

    Raises:
        KeyError: If a column is missing.
    """
    ax = ax or _new_axes()
    training = history[["step", "train_loss"]].dropna()
    validation = history[["step", "val_loss"]].dropna()
    ax.plot(training["step"], training["train_loss"], color=SKY, label="Training")
    ax.plot(validation["step"], validation["val_loss"], "o-", color=VERMILLION, label="Validation")
    ax.legend(frameon=False)
    ax.set(xlabel="Optimizer step", ylabel="Loss (nats a token)")
    ax.set_ylim(bottom=0)
    return _without_frame(ax)


def confusion_matrix(
    truth: Sequence[str],
    predicted: Sequence[str],
    queues: Sequence[str],
    *,
    normalize: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Heat map: true queues (rows) against predicted ones (columns); empty cells are 0.

    Args:
        truth: True queues, [n].
        predicted: Predicted queues, [n].
        queues: All queues, in the order to show.
        normalize: Show shares of each true queue's tickets instead of counts.
        ax: Axes to draw on, else new ones.

    Raises:
        ValueError: If lengths differ, there are no tickets, or a queue is not among `queues`.
    """
    if unknown := {*truth, *predicted} - {*queues}:
        raise ValueError(
            f"{', '.join(map(repr, sorted(unknown)))} not among the {len(queues)} queues to show. "
            "Give all queues that occur."
        )
    size = 0.55 * len(queues)
    ax = ax or _new_axes(width=2.5 + size, height=2 + size)
    counts = count_pairs(truth, predicted, labels=queues, normalize="true" if normalize else None)
    display = ConfusionMatrixDisplay(counts, display_labels=queues)
    display.plot(
        ax=ax,
        cmap="Blues",
        colorbar=False,
        values_format=".0%" if normalize else ",d",
        im_kw={"vmin": 0, "vmax": 1 if normalize else None},
    )
    for cell, value in zip(display.text_.flat, counts.flat, strict=True):
        if value == 0:
            cell.set_text("")
    plt.setp(ax.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    borders = np.arange(len(queues) + 1) - 0.5
    ax.set_xticks(borders, minor=True)
    ax.set_yticks(borders, minor=True)
    ax.grid(which="minor", color="0.85", lw=0.5)
    ax.tick_params(which="minor", length=0)
    unit = "share of the true queue's tickets" if normalize else "tickets"
    ax.set(xlabel=f"Predicted queue ({unit})", ylabel="True queue")
    return ax


def score_comparison(
    summaries: Mapping[str, Mapping[str, float]],
    *,
    metric: str = "accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Points with 95 % confidence intervals: one figure of several models, the first on top.

    Args:
        summaries: Name of every model and what `metrics.summarize` gives for it.
        metric: `accuracy`, `macro_f1`, `weighted_f1` or `top2_accuracy`.
        ax: Axes to draw on, else new ones.

    Raises:
        ValueError: If a summary has no such metric with an interval.
    """
    for name, summary in summaries.items():
        if not {metric, f"{metric}_low", f"{metric}_high"} <= summary.keys():
            known = [key.removesuffix("_low") for key in summary if key.endswith("_low")]
            raise ValueError(
                f'metric = "{metric}" has no interval in the summary of {name!r}. '
                f"Use one of {', '.join(known)}."
            )
    ax = ax or _new_axes(height=1 + 0.45 * len(summaries))
    for row, summary in enumerate(summaries.values()):
        value, low, high = (summary[f"{metric}{end}"] for end in ("", "_low", "_high"))
        ax.plot([low, high], [row, row], color=BLUE, lw=2, marker="|", ms=10)
        ax.plot(value, row, "o", color=BLUE, ms=7)
        ax.annotate(f"{value:.3f}", (value, row), (0, 7), textcoords="offset points", ha="center")
    ax.set_yticks(range(len(summaries)), summaries)
    label = {
        "macro_f1": "Macro-F1",
        "weighted_f1": "Weighted F1",
        "top2_accuracy": "Top-2 accuracy",
    }
    ax.set(xlabel=f"{label.get(metric, 'Accuracy')} with 95 % interval", xlim=(0, 1))
    ax.set_ylim(len(summaries) - 0.5, -0.7)
    ax.grid(axis="x", alpha=0.3)
    return _without_frame(ax)


def save_figure(ax: Axes, folder: str | Path, name: str) -> Path:
    """Save the figure of an `Axes` as PNG and SVG; gives the path of the PNG.

    Raises:
        OSError: If the folder cannot be written.
    """
    for suffix in ("svg", "png"):
        with replace_atomically(Path(folder) / f"{name}.{suffix}") as temporary:
            ax.figure.savefig(temporary, dpi=150, bbox_inches="tight")
    return Path(folder) / f"{name}.png"


def _new_axes(*, width: float = 7, height: float = 3.5) -> Axes:
    """New axes of a size in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _without_frame(ax: Axes) -> Axes:
    """Remove the two lines that carry no scale."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax
