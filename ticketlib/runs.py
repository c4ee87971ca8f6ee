"""Several runs side by side, for sweeps over a setting."""

import json
import warnings
from collections.abc import Sequence

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
        runs: Runs that notebook 04 has evaluated.

    Returns:
        A row for each run (index `run_name`), first the settings (`settings.…`) that are not the
        same in all, then all figures (`tuned.accuracy` and so on; `metrics.json` in the README).
        A warning names runs that were tested on other tickets than the first.

    Raises:
        FileNotFoundError: If a run has not been evaluated.
        ValueError: If there are no runs, or two of one name.
    """
    names = [run.run_name for run in runs]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Runs are {names}; give one or more, each name once.")
    paths = [
        require(run.metrics, made_by="04_evaluate_and_export.ipynb", run_name=run.run_name)
        for run in runs
    ]
    rows = [json.loads(path.read_text("utf-8")) for path in paths]
    table = pd.DataFrame(rows, index=pd.Index(names, name="run_name"))
    if TEST_SPLIT in table:
        others = table.index[table[TEST_SPLIT] != table[TEST_SPLIT].iloc[0]].tolist()
        if others:
            warnings.warn(
                f"{others} were tested on other tickets than {names[0]!r}, so that their figures "
                "cannot be compared. Use the same tickets, split and seed in notebook 02.",
                stacklevel=2,
            )
    settings = [column for column in table if column.startswith("settings.")]
    differing = [column for column in settings if table[column].astype(str).nunique() > 1]
    figures = [column for column in table if column not in [*settings, TEST_SPLIT]]
    return table[[*differing, *figures]]
