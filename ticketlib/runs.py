"""Several runs side by side, for sweeps over a setting."""

import json
import warnings
from collections.abc import Sequence
from contextlib import suppress

import pandas as pd

from ticketlib.paths import Run, require

# Identifies the test tickets and their queues; runs with different ones cannot be compared.
TEST_SPLIT = "test_split"


def fingerprint_test(test: pd.DataFrame) -> str:
    """The same for the same test tickets with the same queues, in any order.

    Args:
        test: Frame with `ticket_id`, `subject`, `body` and `queue`.
    """
    columns = ["ticket_id", "subject", "body", "queue"]
    hashes = pd.util.hash_pandas_object(test[columns].astype(str), index=False)
    return f"{int(hashes.sum()):016x}-{len(test)}"


def compare_runs(runs: Sequence[Run]) -> pd.DataFrame:
    """What each run's `metrics.json` holds, as a table with the settings that differ first.

    Args:
        runs: Runs that notebook 04 has evaluated, but for those that failed.

    Returns:
        A row for each run (index `run_name`), first the settings (`settings.…`) that are not the
        same in all, then all figures (`tuned.accuracy` and so on; `metrics.json` in the README).
        The row of a run that was not evaluated is empty. Warnings name these runs, those of which a
        notebook failed after the evaluation, and those tested on other tickets than the first.

    Raises:
        FileNotFoundError: If no run has been evaluated.
        ValueError: If there are no runs, or two of one name.
    """
    names = [run.run_name for run in runs]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Runs are {names}; give one or more, each name once.")
    done = [run for run in runs if run.metrics.exists()]
    if not done:
        require(runs[0].metrics, made_by="04_evaluate_and_export.ipynb", run_name=names[0])
    rows = {run.run_name: json.loads(run.metrics.read_text("utf-8")) for run in done}
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(names).rename_axis("run_name")
    failed = {run.run_name: notebooks for run in runs if (notebooks := _failed_since(run))}
    if missing := [f"{name} ({failed.get(name, 'not run')})" for name in names if name not in rows]:
        warnings.warn(f"Not evaluated, without figures: {', '.join(missing)}.", stacklevel=2)
    if stale := [f"{name} ({failed[name]})" for name in failed if name in rows]:
        warnings.warn(f"Failed since these figures were written: {', '.join(stale)}.", stacklevel=2)
    if TEST_SPLIT in table:
        tested = table[TEST_SPLIT].dropna()
        if others := tested.index[tested != tested.iloc[0]].tolist():
            warnings.warn(
                f"{others} were tested on other tickets than {tested.index[0]!r}, so that their "
                "figures cannot be compared. Use the same tickets, split and seed in notebook 02.",
                stacklevel=2,
            )
    settings = [column for column in table if column.startswith("settings.")]
    differing = [column for column in settings if table[column].dropna().astype(str).nunique() > 1]
    figures = [column for column in table if column not in [*settings, TEST_SPLIT]]
    return table[[*differing, *figures]]


def _failed_since(run: Run) -> str:
    """Names the executed notebooks that failed, as papermill notes, since the run's evaluation."""
    evaluated = run.metrics.stat().st_mtime if run.metrics.exists() else 0
    names = []
    for path in sorted(run.notebooks.glob("*.ipynb")):
        if path.stat().st_mtime > evaluated:
            with suppress(json.JSONDecodeError):  # Papermill is writing it
                metadata = json.loads(path.read_text("utf-8"))["metadata"]
                if metadata.get("papermill", {}).get("exception"):
                    names.append(f"{path.name} failed")
    return ", ".join(names)
