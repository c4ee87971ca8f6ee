"""CSV with any delimiter as a table of text.

pandas and pyarrow read faster, but pad a record that is cut and take what follows a stray quote
for text without a word. Python's own `csv`, told to be strict, does neither.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from ticketlib.encoding import Encoding
from ticketlib.table import SURROGATE, Records, Table, collect_records

DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r'"?sep=([^"\r\n])"?(?:\r\n|\r|\n)', re.IGNORECASE)
_NO_NAME = re.compile(f"[\x00-\x1f\x7f-\x9f\ufeff{SURROGATE.pattern[1:-1]}]")


def read_delimited(
    open_text: Callable[[], io.TextIOBase], name: str, names: Sequence[str], found: Encoding
) -> Table:
    """The table of a CSV file.

    Args:
        open_text: Opens the file for reading text, its line ends as they are.
        name: What errors call the file.
        names: Columns that are looked for; they help to find the delimiter.
        found: How the file is decoded.

    Raises:
        ValueError: If there is no header, or a record is cut or has fields too many.
    """
    blank: list[int] = []

    def records() -> Records:
        with open_text() as text:
            lines = _split_csv(text, delimiter, name)
            next(lines)
            for number, (line, record) in enumerate(lines, start=1):
                if not "".join(record).strip().strip("\x1a"):  # DOS ends files with Ctrl-Z.
                    blank.append(line)
                elif len(record) != len(header):
                    raise ValueError(
                        f"{name}, line {line}: {len(record)} fields, but the header has "
                        f"{len(header)}. The file is cut there, or quotes are missing around "
                        "a field; mend it."
                    )
                else:
                    yield number, line, record

    limit = csv.field_size_limit(2**31 - 1)
    try:
        header, delimiter = _find_header(open_text, name, names)
        return collect_records(
            records(),
            header,
            read_as=f"{'TSV' if delimiter == chr(9) else 'CSV'}, {found.how}, "
            f"delimiter {delimiter!r}",
            has_last_line_end=found.has_last_line_end,
            blank_lines=blank,
        )
    finally:
        csv.field_size_limit(limit)


def _split_csv(text: io.TextIOBase, delimiter: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line on which it begins; Excel's `sep=;` line is skipped."""
    first = text.readline().lstrip("\ufeff")
    skipped = bool(_SEPARATOR_LINE.fullmatch(first))
    reader = csv.reader(text if skipped else chain([first], text), delimiter=delimiter, strict=True)
    line = 1 + skipped
    try:
        for record in reader:
            yield line, record
            line = 1 + skipped + reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{name}: the record that starts on line {line} cannot be read ({error}, line "
            f"{skipped + reader.line_num}). The file is cut, or a quote is not closed or not "
            "doubled."
        ) from error


def _find_header(
    open_text: Callable[[], io.TextIOBase], name: str, names: Sequence[str]
) -> tuple[list[str], str]:
    """Column names, and the delimiter that shows most of the names asked for, or most columns."""
    with open_text() as text:
        stated = _SEPARATOR_LINE.fullmatch(text.readline().lstrip("\ufeff"))
    best: tuple[list[str], str] = ([], ",")
    fault = ValueError(f"{name} does not begin with a line of column names. Add a header.")
    for delimiter in stated[1] if stated else DELIMITERS:
        try:
            with open_text() as text:
                _, record = next(_split_csv(text, delimiter, name), (1, []))
        except ValueError as error:  # Quotes that only another delimiter explains.
            fault = error
            continue
        header = [_NO_NAME.sub("", column).strip() for column in record]
        scores = [(len({*names} & {*columns}), len(columns)) for columns in (header, best[0])]
        if scores[0] > scores[1]:
            best = (header, delimiter)
    if not any(best[0]):
        raise fault
    return best
