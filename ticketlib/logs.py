"""Send the chatter of NeMo, Megatron-Core and Lightning to a file; keep the notebook readable."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

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
        moved = [(handler, handler.setStream(file)) for handler in _stream_handlers()]
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            _console.pop()
            for handler, stream in moved:
                handler.setStream(stream or sys.stderr)
            for handler in _stream_handlers():  # Made inside the block, on the redirected stream
                if handler.stream is file:
                    handler.setStream(sys.stderr)


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
