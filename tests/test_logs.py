"""Chatter goes to the file, progress and exceptions reach the reader, and handlers are put back."""

import logging
import sys
import warnings

import pytest

from ticketlib.logs import console, quiet


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
