"""Send the chatter of NeMo, Megatron-Core and Lightning to a file; keep the notebook readable."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO


class _Chatter(io.TextIOBase):
    """A stream into the file while it is quiet, and to the reader otherwise.

    Libraries keep the stream that they find when they are imported, so one closed file would break
    them for good.
    """

    file: TextIO | None = None

    def write(self, text: str) -> int:  # noqa: D102
        return (self.file or sys.stderr).write(text)

    def flush(self) -> None:  # noqa: D102
        (self.file or sys.stderr).flush()


_chatter = _Chatter()
_console: list[TextIO] = []


def console() -> TextIO:
    """Give the stream that the reader sees, also inside `quiet`: for progress."""
    return _console[-1] if _console else sys.stdout


@contextmanager
def quiet(log_file: Path) -> Iterator[None]:
    """Append everything that is printed, logged or warned in the block to a file.

    Exceptions pass through; `console()` still reaches the reader.

    Args:
        log_file: Made with its folder where it does not exist.
    """
    Path(log_file).parent.mkdir(parents=True, exist_ok=True)
    with open(log_file, "a", encoding="utf-8", buffering=1) as file:
        _console.append(console())
        before, _chatter.file = _chatter.file, file
        moved = [(handler, handler.setStream(_chatter)) for handler in _stream_handlers()]
        try:
            with (
                redirect_stdout(_chatter),
                redirect_stderr(_chatter),
                _standard_error_to(file),
                _without_display(),
            ):
                yield
        finally:
            _console.pop()
            _chatter.file = before
            for handler, stream in moved:
                if stream is not None:
                    handler.setStream(stream)


@contextmanager
def _standard_error_to(file: TextIO) -> Iterator[None]:
    """Also what compiled code and child processes write, past `sys.stderr`."""
    saved = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _without_display():
    """Also what NeMo shows as rich output in a notebook, past `sys.stdout`."""
    try:
        from IPython.utils.capture import capture_output
    except ImportError:
        return nullcontext()
    return capture_output(stdout=False, stderr=False, display=True)


def _stream_handlers() -> list[logging.StreamHandler]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = [handler for each in loggers for handler in getattr(each, "handlers", [])]
    return [
        handler
        for handler in dict.fromkeys(handlers)
        if isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
        and "stream" in vars(handler)  # Not those that look up sys.stderr each time
    ]
