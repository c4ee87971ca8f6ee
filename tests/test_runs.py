"""Runs are compared by their files, and not where they were tested on other tickets."""

import json
import os
import warnings

import pandas as pd
import pytest

from ticketlib.paths import Run
from ticketlib.plots import run_comparison
from ticketlib.runs import compare_runs, fingerprint_test


@pytest.fixture
def make_run(tmp_path):
    def make(name, **metrics):
        run = Run(name, str(tmp_path))
        run.folder.mkdir(parents=True)
        run.metrics.write_text(json.dumps({k.replace("__", "."): v for k, v in metrics.items()}))
        return run

    return make


def test_settings_that_differ_come_first_then_all_figures(make_run):
    same = {"settings__seed": 0, "test_split": "a"}
    runs = [
        make_run("one", settings__lora_rank=4, tuned__accuracy=0.5, **same),
        make_run("two", settings__lora_rank=8, tuned__accuracy=0.6, **same, tuned__ece=0.1),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = compare_runs(runs)
    assert list(table.index) == ["one", "two"] and table.index.name == "run_name"
    assert list(table) == ["settings.lora_rank", "tuned.accuracy", "tuned.ece"]
    assert table["tuned.accuracy"].tolist() == [0.5, 0.6]
    assert table["tuned.ece"].isna().tolist() == [True, False]


def test_other_test_tickets_are_warned_of(make_run):
    runs = [make_run("one", test_split="a"), make_run("two", test_split="b")]
    with pytest.warns(UserWarning, match=r"\['two'\] were tested on other tickets than 'one'"):
        compare_runs(runs)


def write_notebook(run, name, exception):
    run.notebooks.mkdir(parents=True, exist_ok=True)
    path = run.notebooks / f"{name}.ipynb"
    path.write_text(json.dumps({"metadata": {"papermill": {"exception": exception}}}))
    return path


def test_a_run_that_failed_has_an_empty_row_and_is_named(make_run, tmp_path):
    failed, none = Run("failed", str(tmp_path)), Run("none", str(tmp_path))
    write_notebook(failed, "02_prepare_jsonl", None)
    write_notebook(failed, "03_train_lora", True)
    runs = [make_run("one", settings__lora_rank=4, tuned__accuracy=0.5, test_split="a")]
    with pytest.warns(
        UserWarning, match=r"failed \(03_train_lora.ipynb failed\), none \(not run\)"
    ):
        table = compare_runs([*runs, failed, none])
    assert table.index.tolist() == ["one", "failed", "none"]
    assert table["tuned.accuracy"].isna().tolist() == [False, True, True]
    ax = run_comparison(
        table.assign(**{"tuned.accuracy_low": table["tuned.accuracy"], "tuned.accuracy_high": 0.6})
    )
    assert {label.get_text() for label in ax.get_yticklabels()} >= {"one", "failed", "none"}
    with pytest.raises(FileNotFoundError, match='04_evaluate.* with run_name = "failed"'):
        compare_runs([failed, none])
    with pytest.raises(ValueError, match="each name once"):
        compare_runs([])


def test_figures_from_before_a_failure_are_warned_of(make_run):
    run = make_run("again", tuned__accuracy=0.5)
    path = write_notebook(run, "03_train_lora", True)
    later = run.metrics.stat().st_mtime + 5
    os.utime(path, (later, later))
    with pytest.warns(
        UserWarning, match=r"figures were written: again \(03_train_lora.ipynb failed\)"
    ):
        compare_runs([run])
    os.utime(run.metrics, (later + 5, later + 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare_runs([run])


def test_the_fingerprint_is_of_the_tickets_not_of_their_order():
    test = pd.DataFrame(
        {"ticket_id": [1, 2], "subject": ["a", ""], "body": ["b", "c"], "queue": ["IT", "HR"]}
    )
    mark = fingerprint_test(test)
    assert fingerprint_test(test[::-1].reset_index(drop=True)) == mark and mark.endswith("-2")
    for column, value in [("queue", "IT"), ("body", "d"), ("ticket_id", 3)]:
        other = test.copy()
        other.loc[1, column] = value
        assert fingerprint_test(other) != mark
    assert fingerprint_test(test[:1]) != mark
