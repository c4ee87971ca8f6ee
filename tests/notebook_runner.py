"""Runs a notebook as papermill does, for tests."""

import os
from pathlib import Path
from unittest import mock

import papermill
from planted import SECRETS

ROOT = Path(__file__).parents[1]
NAMES = ["01_explore_tickets", "02_prepare_jsonl", "03_train_lora", "04_evaluate_and_export"]


def execute(name, run, **parameters):
    """Run one notebook; parameters that it does not have are left out."""
    source = ROOT / "notebooks" / f"{name}.ipynb"
    known = papermill.inspect_notebook(source)
    parameters = {"experiments_dir": str(run.experiments), "run_name": run.run_name} | parameters
    run.notebooks.mkdir(parents=True, exist_ok=True)
    with mock.patch.dict(os.environ, SECRETS):  # No file that is written may hold them
        return papermill.execute_notebook(
            source,
            run.notebooks / source.name,
            {key: value for key, value in parameters.items() if key in known},
            kernel_name="python3",
            cwd=ROOT,
            progress_bar=False,
            start_timeout=300,  # Seconds; other tests may keep the machine busy
        )
