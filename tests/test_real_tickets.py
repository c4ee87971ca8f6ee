"""The notebooks run on real tickets, from the export to the figures."""

import json

import pytest
from notebook_runner import NAMES, execute

from ticketlib.paths import Run


@pytest.mark.notebook
def test_series_runs_on_real_tickets(shared, tmp_path):
    files = sorted((shared / "data").glob("aa_dataset*.csv"))
    if not files:
        pytest.skip(f"{shared}/data holds no aa_dataset file")
    run = Run("real", str(tmp_path))
    for name in NAMES:
        execute(name, run, tickets_csv=str(files[0]), max_steps=10, generate_tickets=10)
    figures = json.loads(run.metrics.read_text("utf-8"))
    assert figures["tuned.n"] > 100
    assert figures["tuned.accuracy"] > 0
