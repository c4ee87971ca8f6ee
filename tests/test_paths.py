"""Runs name their files inside one folder, inputs are found from anywhere, writes are whole."""

import json
import os
import subprocess
import sys

import pytest

from ticketlib.paths import (
    Run,
    locked,
    project_root,
    replace_atomically,
    require,
    resolve,
    write_json,
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    for folder in ("notebooks", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "tickets.csv").write_text("subject,body,queue\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("folder", [".", "notebooks", "data"])
def test_project_and_inputs_are_found_from_any_of_its_folders(project, monkeypatch, folder):
    monkeypatch.chdir(project / folder)
    assert project_root() == project
    assert resolve("data/tickets.csv") == project / "data" / "tickets.csv"


def test_outside_a_project_the_working_directory_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path
    assert resolve("a.csv") == tmp_path / "a.csv"
    assert resolve(tmp_path / "b.csv") == tmp_path / "b.csv"


def test_a_file_here_wins_over_one_of_the_project(project, monkeypatch):
    (project / "notebooks" / "data").mkdir()
    (project / "notebooks" / "data" / "tickets.csv").write_text("mine")
    monkeypatch.chdir(project / "notebooks")
    assert resolve("data/tickets.csv").read_text() == "mine"


def test_two_runs_share_models_and_nothing_else(project):
    one, two = Run("one"), Run("two")
    properties = [name for name, value in vars(Run).items() if isinstance(value, property)]
    shared = {name for name in properties if getattr(one, name) == getattr(two, name)}
    assert shared == {"experiments", "models", "models_cache"}
    of_the_run = set(properties) - shared
    assert all(getattr(one, name).is_relative_to(one.folder) for name in of_the_run)
    assert len({getattr(one, name) for name in properties}) == len(properties)
    assert one.training_jsonl == (
        project / "nemo-experiments" / "results" / "one" / "dataset" / "training.jsonl"
    )


def test_experiments_can_lie_elsewhere(tmp_path):
    assert Run("a", str(tmp_path)).folder == tmp_path / "results" / "a"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a\\b"])
def test_a_run_stays_in_its_folder(name):
    with pytest.raises(ValueError, match="run_name"):
        Run(name)


def test_require_says_what_to_run_first(project):
    run = Run("demo")
    with pytest.raises(FileNotFoundError) as error:
        require(run.training_jsonl, made_by="02_prepare_jsonl.ipynb", run_name="demo")
    assert str(error.value) == (
        "nemo-experiments/results/demo/dataset/training.jsonl not found. "
        'Run 02_prepare_jsonl.ipynb with run_name = "demo" first.'
    )
    assert require(project / "data", made_by="nobody") == project / "data"


def test_require_tells_how_to_name_the_run_from_outside_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("demo")
    with pytest.raises(FileNotFoundError, match="set experiments_dir to the full path") as error:
        require(run.metrics, made_by="04_evaluate_and_export.ipynb", run_name="demo")
    assert str(run.metrics) in str(error.value)


def test_an_atomic_write_replaces_the_whole_file_or_nothing(tmp_path):
    path = tmp_path / "new" / "report.csv"
    with replace_atomically(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (path.parent, ".csv")
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), replace_atomically(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "exported"
    for content in ("old", "new"):
        with replace_atomically(path) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
        assert [file.name for file in path.iterdir()] == [content]
    rename = os.replace

    def fail_at_the_end(source, target):
        if target == path and not source.name.endswith(".old"):
            raise OSError("disk is gone")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_end)
    with pytest.raises(OSError, match="disk"), replace_atomically(path) as temporary:
        temporary.mkdir()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_preparing_data_does_not_import_the_heavy_libraries():
    code = (
        "import sys, ticketlib\n"
        "assert not [name for name in sys.modules if name.startswith('ticketlib.')]\n"
        "from ticketlib import jsonl, paths, prompts, splits, tickets\n"
        "print(sorted({'torch', 'transformers', 'nemo', 'megatron'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_json_is_whole_or_as_it_was(tmp_path):
    path = write_json(tmp_path / "a" / "b.json", {"queue": "Größe", "share": 0.1})
    assert path.read_bytes() == '{\n  "queue": "Größe",\n  "share": 0.1\n}\n'.encode()
    with pytest.raises(ValueError):
        write_json(path, {"share": float("nan")})
    assert json.loads(path.read_text("utf-8"))["share"] == 0.1


def test_one_process_at_a_time_makes_what_several_share(tmp_path):
    path = tmp_path / "models" / "base"
    with locked(path), pytest.raises(RuntimeError, match="^Later$"):
        with locked(path, busy="Later"):
            pass
    with locked(path, busy="Later"):
        pass
