"""Runs are compared by their files, and not where they were tested on other tickets."""

import json
import warnings

import pandas as pd
import pytest

from ticketlib.paths import Run
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


def test_missing_runs_are_named(make_run, tmp_path):
    with pytest.raises(FileNotFoundError, match='04_evaluate.* with run_name = "none"'):
        compare_runs([make_run("one"), Run("none", str(tmp_path))])
    with pytest.raises(ValueError, match="each name once"):
        compare_runs([])


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
