"""The loss history of a training: one file for each attempt, joined."""

import io
from pathlib import Path

import pandas as pd

from ticketlib.paths import Run, require

COLUMNS = {
    "reduced_train_loss": "train_loss",
    "val_loss": "val_loss",
    "train_step_timing in s": "seconds",
}


def list_attempts(run: Run) -> list[Path]:
    """Give the folders `attempt-1`, `attempt-2`, … of a run in their order.

    Each start of training logs to its own: Lightning's `CSVLogger` deletes the file that it finds.
    """
    return _list_attempts(run.training)


def _list_attempts(training: Path) -> list[Path]:
    return sorted(training.glob("attempt-*"), key=lambda path: int(path.name[8:]))


def read_history(run: Run) -> pd.DataFrame:
    """Give the loss history of a run, so far or to its end.

    Returns:
        A row a step: `step` (1 = after the first), `train_loss`, `val_loss` (nats a token; NaN
        where it was not measured), `seconds` (of that step). Where training was interrupted and
        went on from an earlier step, the steps that were repeated are those of the repetition.

    Raises:
        FileNotFoundError: Training has not logged a step.
    """
    history = read_losses(run.training)
    if history.empty:
        first = run.training / "attempt-1" / "metrics.csv"
        require(first, made_by="03_train_lora.ipynb", run_name=run.run_name)
    return history


def read_losses(training: Path) -> pd.DataFrame:
    """Give what `read_history` gives, of the folder `training` of a run; perhaps no row yet."""
    history = pd.DataFrame(columns=["step", *COLUMNS.values()], dtype=float)
    files = [attempt / "metrics.csv" for attempt in _list_attempts(training)]
    for attempt in map(_read_attempt, filter(Path.exists, files)):
        if len(attempt):
            history = pd.concat([history[history["step"] < attempt["step"].min()], attempt])
    return history.astype({"step": int}).reset_index(drop=True)


def _read_attempt(file: Path) -> pd.DataFrame:
    text = file.read_text("utf-8")
    whole = text[: text.rfind("\n") + 1]  # A process that was killed may leave part of a line
    if not whole:
        return pd.DataFrame(columns=["step"])
    logged = pd.read_csv(io.StringIO(whole)).rename(columns=COLUMNS)
    logged = logged.reindex(columns=["step", *COLUMNS.values()])
    logged = logged.dropna(how="all", subset=["train_loss", "val_loss"])
    return logged.groupby("step", as_index=False).last().assign(step=lambda rows: rows["step"] + 1)
