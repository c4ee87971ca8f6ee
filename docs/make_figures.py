"""Draw the figures of README.rst and docs/ from the results of a run (`make figures`)."""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from ticketlib import calibration, card, handoff, plots
from ticketlib.paths import Run, replace_atomically, require


def draw_figures(run: Run, folder: Path) -> list[Path]:
    """Write `results.png` and `reading.png`, as wide as a page; gives their paths.

    Args:
        run: Evaluated by notebook 04.
        folder: Where the files go.

    Raises:
        FileNotFoundError: The run has not been evaluated.
    """
    for path in (run.metrics, run.predictions):
        require(path, made_by="04_evaluate_and_export.ipynb", run_name=run.run_name)
    figures = json.loads(run.metrics.read_text("utf-8"))
    predictions = pd.read_parquet(run.predictions)
    return [
        _save(_draw_results(figures, predictions), folder / "results.png"),
        _save(_draw_reading(predictions), folder / "reading.png"),
    ]


def _draw_results(figures: dict, predictions: pd.DataFrame) -> list[Axes]:
    """How models compare, and how many tickets may be routed alone."""
    _, axes = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=[5, 6], layout="constrained")
    summaries = {
        label: {key.split(".")[1]: figures[key] for key in figures if key.startswith(f"{name}.")}
        for name, label in card.MODELS.items()
        if name != "mxfp4"
    }
    plots.score_comparison(summaries, ax=axes[0])
    curves = {
        card.MODELS[model.replace("calibrated", "tuned")]: handoff.handoff_curve(
            *_read_model(predictions, model)
        )
        for model in ("calibrated", "tfidf")
    }
    chosen = {key: figures.get(f"handoff.{key}") for key in ("share", "accuracy")}
    target = figures["handoff.target_accuracy"]
    plots.handoff_curve(curves, target_accuracy=target, chosen=chosen, ax=axes[1])
    return list(axes)


def _draw_reading(predictions: pd.DataFrame) -> list[Axes]:
    """Whether probabilities hold, and which queues are mixed up."""
    _, axes = plt.subplots(1, 2, figsize=(11, 5), width_ratios=[5, 6], layout="constrained")
    names = {"tuned": "as trained", "calibrated": "after temperature scaling"}
    tables = {
        name: calibration.reliability_table(*_read_model(predictions, model))
        for model, name in names.items()
    }
    plots.reliability(tables, ax=axes[0]).legend(frameon=False, loc="lower right")
    rows = predictions.query("model == 'tuned'")
    queues = sorted(rows["queue"].unique())
    plots.confusion_matrix(rows["queue"], rows["predicted"], queues, normalize=True, ax=axes[1])
    axes[1].set_ylabel("")  # It would stand between the two
    axes[1].set_title("Rows are true queues, columns predicted ones", fontsize="medium", loc="left")
    axes[1].set_xlabel("")
    return list(axes)


def _read_model(predictions: pd.DataFrame, model: str) -> tuple:
    """True queues, probabilities and queues of one model."""
    rows = predictions[predictions["model"] == model]
    shares = rows.filter(like="probability: ")
    queues = [name.removeprefix("probability: ") for name in shares]
    return rows["queue"], shares.to_numpy(), queues


def _save(axes: list[Axes], path: Path) -> Path:
    with replace_atomically(path) as temporary:
        axes[0].figure.savefig(temporary, dpi=100, pil_kwargs={"optimize": True})
    return path


def main() -> None:
    """Draw what `make figures` names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-name", default="demo")
    parser.add_argument("--experiments-dir", default="nemo-experiments")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "images")
    options = parser.parse_args()
    for path in draw_figures(Run(options.run_name, options.experiments_dir), options.folder):
        print(path)


if __name__ == "__main__":
    main()
