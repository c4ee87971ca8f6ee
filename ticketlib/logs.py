"""Send the chatter of NeMo, Megatron-Core and Lightning to a file; keep the notebook readable.

What is for the reader, such as progress and a plot that grows, still comes through.
"""

import io
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm


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


class _Reader(NamedTuple):
    """What reaches the reader: printed text and, in a notebook, what is displayed."""

    stream: TextIO
    publisher: object


_chatter = _Chatter()
_readers: list[_Reader] = []


def _reader() -> _Reader:
    return (
        _readers[-1] if _readers else _Reader(sys.stdout, getattr(_kernel(), "display_pub", None))
    )


def _kernel():
    """IPython's shell in a notebook; None in a terminal or a script."""
    ipython = sys.modules.get("IPython")  # A notebook has it, others need not
    shell = ipython and ipython.get_ipython()
    return shell if hasattr(shell, "kernel") else None


def console() -> TextIO:
    """Give the stream that the reader sees, also inside `quiet`: for progress."""
    return _reader().stream


def can_show() -> bool:
    """Tell whether there is a notebook in which `show` shows something.

    With `TICKETLIB_BATCH` in the environment nobody looks at it while it runs: `make tutorial` sets
    it where its output goes to a file.
    """
    return _reader().publisher is not None and not os.environ.get("TICKETLIB_BATCH")


def show(thing: object, name: str, *, update: bool = False) -> None:
    """Display something in the notebook, also inside `quiet`; nothing happens where there is none.

    Args:
        thing: What IPython can display.
        name: To replace it by later.
        update: Replace what was shown under this name.
    """
    if can_show():
        data, metadata = _kernel().display_formatter.format(thing)
        _reader().publisher.publish(data, metadata, transient={"display_id": name}, update=update)


def progress(items: Iterable | None = None, what: str | None = None, **options: Any) -> tqdm:
    """Go through items and show the reader how far it is and the time left, also inside `quiet`.

    A terminal and a notebook see a line that changes each second, a log file one a minute.

    Args:
        items: A sequence, or None to count with `update`.
        what: Begins the line.
        options: Of `tqdm`, such as `total`, `unit`, or `delay` in seconds for what may be short.
    """
    seconds = 1 if can_show() or console().isatty() else 60
    return tqdm(
        items,
        what,
        file=console(),
        mininterval=seconds,
        maxinterval=max(10, seconds),
        position=0,  # Also after a bar that an error left open
        **options,
    )


@contextmanager
def quiet(log_file: Path) -> Iterator[None]:
    """Append everything that is printed, logged or warned in the block to a file.

    Exceptions pass through; `console()` still reaches the reader.

    Args:
        log_file: Made with its folder where it does not exist.
    """
    Path(log_file).parent.mkdir(parents=True, exist_ok=True)
    with open(log_file, "a", encoding="utf-8", buffering=1) as file:
        _readers.append(_reader())
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
            _readers.pop()
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
    if not _kernel():
        return nullcontext()
    from IPython.utils.capture import capture_output

    return capture_output(stdout=False, stderr=False)


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
