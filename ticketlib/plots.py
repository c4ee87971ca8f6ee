"""Figures of training and results, and what all figures share.

Each figure is drawn on one `Axes`, which is returned.

Colors are Okabe and Ito's (distinct for the color-blind), and what color says, a label, marker or
brightness says too, so that the figures survive a black-and-white printer.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import PercentFormatter
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.metrics import confusion_matrix as count_pairs

from ticketlib.intervals import format_share
from ticketlib.paths import replace_atomically

METRICS = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "weighted_f1": "Weighted F1",
    "top2_accuracy": "Top-2 accuracy",
}
BLUE, VERMILLION, SKY, YELLOW, GRAY = "#0072B2", "#D55E00", "#56B4E9", "#F0E442", "#999999"


def new_axes(*, width: float = 7, height: float = 3.5) -> Axes:
    """New axes on a figure of a size in inches.

    Args:
        width: Inches.
        height: Inches.
    """
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def without_frame(ax: Axes) -> Axes:
    """The axes, without the two lines that carry no scale."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def text_width(texts: Iterable[str], *, size: float = 10) -> float:
    """Inches that the longest of some texts takes.

    Args:
        texts: Lines of text.
        size: Of the font, in points.
    """
    font = FontProperties(size=size)
    sizes = [text_to_path.get_text_width_height_descent(text, font, False) for text in texts]
    return max((width / 72 for width, _, _ in sizes), default=0)


def shorten(names: Iterable[str], *, most: int = 60) -> list[str]:
    """The names, those of more than `most` characters without their middle.

    Args:
        names: Texts for an axis.
        most: Characters that a name may have.
    """
    half = most // 2
    return [f"{name[:half]}…{name[-half:]}" if len(name) > most else name for name in names]


def loss_curves(history: pd.DataFrame, *, blind_loss: float = 0.0, ax: Axes | None = None) -> Axes:
    """Lines: training and validation loss by optimizer step.

    Args:
        history: Columns `step`, `train_loss`, `val_loss` (nats a token; NaN where not measured).
        blind_loss: Loss of a model that reads no ticket (`baselines.blind_loss`), drawn as a line;
            0 for none.
        ax: Axes to draw on, else new ones.

    Raises:
        KeyError: If a column is missing.
    """
    ax = ax or new_axes()
    training = history[["step", "train_loss"]].dropna()
    validation = history[["step", "val_loss"]].dropna()
    ax.plot(training["step"], training["train_loss"], color=SKY, label="Training")
    ax.plot(validation["step"], validation["val_loss"], "o-", color=VERMILLION, label="Validation")
    if blind_loss:
        ax.axhline(blind_loss, color=GRAY, ls=":", label="Knows the shares of the queues alone")
    ax.legend(frameon=False)
    ax.set(xlabel="Optimizer step", ylabel="Loss (nats a token)")
    ax.set_ylim(bottom=0)
    return without_frame(ax)


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
    names = shorten(queues)
    size, longest = 0.55 * len(queues), text_width(names)
    ax = ax or new_axes(width=1 + size + longest, height=0.8 + size + 0.65 * longest)
    counts = count_pairs(truth, predicted, labels=queues, normalize="true" if normalize else None)
    display = ConfusionMatrixDisplay(counts)
    display.plot(
        ax=ax,
        cmap="Blues",
        colorbar=False,
        values_format=".0%" if normalize else ",d",
        im_kw={"vmin": 0, "vmax": 1 if normalize else None, "aspect": "auto"},
    )
    for cell, value in zip(display.text_.flat, counts.flat, strict=True):
        if value == 0:
            cell.set_text("")
    ticks = {"ticks": range(len(queues)), "labels": names, "parse_math": False}
    ax.set_xticks(**ticks, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(**ticks)
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
    ax = ax or new_axes(height=1 + 0.45 * len(summaries))
    for row, summary in enumerate(summaries.values()):
        value, low, high = (summary[f"{metric}{end}"] for end in ("", "_low", "_high"))
        ax.plot([low, high], [row, row], color=BLUE, lw=2, marker="|", ms=10)
        ax.plot(value, row, "o", color=BLUE, ms=7)
        ax.annotate(
            format_share(value), (value, row), (0, 7), textcoords="offset points", ha="center"
        )
    ax.set_yticks(range(len(summaries)), summaries)
    ax.set(xlabel=f"{METRICS.get(metric, metric)} with 95 % interval", xlim=(0, 1))
    ax.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    ax.set_ylim(len(summaries) - 0.5, -0.7)
    ax.grid(axis="x", alpha=0.3)
    return without_frame(ax)


def run_comparison(
    table: pd.DataFrame, *, model: str = "tuned", metric: str = "accuracy", ax: Axes | None = None
) -> Axes:
    """Points with 95 % confidence intervals: one figure of several runs, the first on top.

    Args:
        table: Of `runs.compare_runs`.
        model: As the keys of `metrics.json` begin.
        metric: As for `score_comparison`.
        ax: Axes to draw on, else new ones.

    Raises:
        ValueError: If the runs have no such figure with an interval.
    """
    own = table.filter(regex=rf"^{re.escape(model)}\.").rename(columns=lambda c: c.split(".")[-1])
    return score_comparison(own.to_dict("index"), metric=metric, ax=ax)


def reliability(tables: Mapping[str, pd.DataFrame], *, ax: Axes | None = None) -> Axes:
    """Points with 95 % intervals: how often predictions are right, by how sure they are.

    Args:
        tables: Name of each set of probabilities and its `calibration.reliability_table`, at most
            four.
        ax: Axes to draw on, else new ones.

    Raises:
        KeyError: If a column is missing.
    """
    ax = ax or new_axes(width=5, height=5)
    ax.plot([0, 1], [0, 1], color=GRAY, ls=":", label="Calibrated")
    for (name, table), color, marker in zip(
        tables.items(), (BLUE, VERMILLION, SKY, YELLOW), "osD^", strict=False
    ):
        distance = [table["accuracy"] - table["accuracy_low"]]
        distance.append(table["accuracy_high"] - table["accuracy"])
        ax.errorbar(
            table["confidence"],
            table["accuracy"],
            yerr=np.clip(distance, 0, None),
            color=color,
            marker=marker,
            label=name,
            elinewidth=1,
            capsize=2,
        )
    ax.legend(frameon=False, loc="upper left")
    ax.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    ax.set(xlabel="Probability of the predicted queue", ylabel="Share that is right")
    return without_frame(ax)


def handoff_curve(
    curves: Mapping[str, pd.DataFrame],
    *,
    target_accuracy: float = 0.0,
    chosen: Mapping[str, float | None] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Lines: accuracy among the tickets routed automatically, by the share that is routed.

    Args:
        curves: Name of each model and its `handoff.handoff_curve`, at most four. The first has a
            band, its 95 % interval.
        target_accuracy: Wanted accuracy, drawn as a line; 0 for none.
        chosen: What the chosen threshold does (`handoff.summarize_handoff`), drawn as a point.
        ax: Axes to draw on, else new ones.

    Raises:
        KeyError: If a column is missing.
    """
    ax = ax or new_axes(height=4)
    styles = zip((BLUE, VERMILLION, SKY, YELLOW), ("-", "--", "-.", ":"), strict=True)
    for number, ((name, curve), (color, line)) in enumerate(
        zip(curves.items(), styles, strict=False)
    ):
        ax.plot(curve["share"], curve["accuracy"], color=color, ls=line, lw=2, label=name)
        if number == 0:
            ends = curve["accuracy_low"], curve["accuracy_high"]
            ax.fill_between(curve["share"], *ends, color=color, alpha=0.15, lw=0)
    if target_accuracy:
        ax.axhline(
            target_accuracy, color=GRAY, ls=":", label=f"Target: {100 * target_accuracy:g} %"
        )
    if chosen and chosen["accuracy"] is not None:
        share, accuracy = (format_share(chosen[name]) for name in ("share", "accuracy"))
        label = f"Threshold: {share} routed, {accuracy} right"
        ax.plot(chosen["share"], chosen["accuracy"], "o", color="black", ms=9, label=label)
    ax.legend(frameon=False, loc="lower left")
    ax.set(
        xlim=(0, 1), xlabel="Share of tickets routed automatically", ylabel="Share of them right"
    )
    return without_frame(ax)


def save_figure(ax: Axes, folder: str | Path, name: str) -> Path:
    """Save the figure of an `Axes` as PNG and SVG; gives the path of the PNG.

    Args:
        ax: Axes of the figure.
        folder: Made where it does not exist.
        name: Of the files, without suffix.

    Raises:
        OSError: If the folder cannot be written.
    """
    for suffix in ("svg", "png"):
        with replace_atomically(Path(folder) / f"{name}.{suffix}") as temporary:
            ax.figure.savefig(temporary, dpi=150, bbox_inches="tight")
    return Path(folder) / f"{name}.png"
