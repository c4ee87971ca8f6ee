"""Chatter goes to the file, progress and exceptions reach the reader, and handlers are put back."""

import io
import logging
import sys
import warnings

import nbformat
import pytest
from nbclient import NotebookClient

from ticketlib import logs
from ticketlib.logs import console, progress, quiet


def test_prints_logs_and_warnings_go_to_the_file(tmp_path, capsys):
    log_file = tmp_path / "folder" / "log.txt"
    handler = logging.StreamHandler(sys.stdout)
    logger = logging.getLogger("chatty")
    logger.addHandler(handler)
    with quiet(log_file):
        print("printed")
        logger.warning("logged")
        warnings.warn("warned", stacklevel=1)
        print("progress", file=console())
    print("after")
    logger.warning("logged after")
    logger.removeHandler(handler)
    assert {"printed", "logged"} <= set(log_file.read_text().splitlines())
    shown = capsys.readouterr().out
    assert "progress" in shown and "after" in shown and "logged after" in shown
    assert "printed" not in shown


def test_handlers_made_inside_survive_the_block(tmp_path, capsys):
    logger = logging.getLogger("made-inside")
    with quiet(tmp_path / "log.txt"):
        handler = logging.StreamHandler()
        logger.addHandler(handler)
    logger.warning("still works")
    logger.removeHandler(handler)
    assert "still works" in capsys.readouterr().err


def test_exceptions_pass_and_the_file_grows(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="seen"), quiet(tmp_path / "log.txt"):
            print("before the fault")
            raise ValueError("seen")
    assert (tmp_path / "log.txt").read_text().count("before the fault") == 2
    assert console() is sys.stdout


def test_progress_reaches_the_reader_and_not_the_file(tmp_path, capsys):
    with quiet(tmp_path / "log.txt"):
        assert list(progress([1, 2, 3], "Counting", unit="sheep")) == [1, 2, 3]
        list(progress([1, 2, 3], "Soon over", delay=100))
    shown = capsys.readouterr().out
    assert "Counting" in shown and "3/3" in shown and "sheep/s" in shown
    assert "Soon over" not in shown and not (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_log_file_gets_few_lines_of_progress(monkeypatch, is_terminal):
    class Stream(io.StringIO):
        def isatty(self):
            return is_terminal

    monkeypatch.setattr(sys, "stdout", Stream())
    clock = iter(range(10_000))
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))  # A second each time it is asked
    list(progress(range(100)))
    lines = sys.stdout.getvalue().count("\r")
    assert lines > 50 if is_terminal else 2 <= lines < 10


def test_a_script_shows_no_plot(capsys):
    logs.show("a plot", "name")
    assert not logs.can_show() and capsys.readouterr().out == ""


def test_a_notebook_keeps_the_last_of_what_is_shown_in_one_place(tmp_path):
    code = f"""
from pathlib import Path
from IPython.display import Markdown, display
from ticketlib.logs import can_show, console, quiet, show
with quiet(Path({str(tmp_path / "log.txt")!r})):
    display(Markdown("chatter"))
    show(Markdown("first"), "plot")
    print("below", file=console())
    show(Markdown("second"), "plot", update=True)
    print(can_show())
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    plot, text = notebook.cells[0].outputs
    assert plot.data["text/markdown"] == "second" and text.text == "below\n"
    assert (tmp_path / "log.txt").read_text() == "True\n"
