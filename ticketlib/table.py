"""The records of a file as text in columns, with the line on which each begins."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

SURROGATE = re.compile("[\ud800-\udfff]")
_CHUNK = 20_000  # Records that are Python objects at a time.

# Number and line of a record, and its values.
Records = Iterator[tuple[int, int, Sequence[str | None]]]


@dataclass(frozen=True)
class Table:
    """What a file holds.

    Attributes:
        header: Column names in the order of the file; a name may occur twice.
        rows: Text, [records, columns]. The columns are numbers; the index is the number of the
            record in the file, 1 being the first after the header. Missing values are "".
        lines: Line of the file on which each record begins (Parquet: number of the row).
        read_as: Format, encoding and delimiter, in words.
        has_last_line_end: Whether the file ends with a line break, or needs none.
        blank_lines: Lines without a value, which are not in `rows`.
        surrogates: By column, numbers of the records in which surrogates were joined or removed.
    """

    header: list[str]
    rows: pd.DataFrame
    lines: pd.Series
    read_as: str
    has_last_line_end: bool = True
    blank_lines: list[int] = field(default_factory=list)
    surrogates: dict[int, list[int]] = field(default_factory=dict)


def collect_records(records: Records, header: list[str], **attributes: Any) -> Table:
    """The table of records.

    Args:
        records: All records; those shorter than the header lack the last columns.
        header: Column names; more may be added at its end while the records are read.
        attributes: What else `Table` holds.
    """
    numbers, lines, chunks = [], [], []
    surrogates: dict[int, list[int]] = {}
    while chunk := list(islice(records, _CHUNK)):
        numbers += (number for number, _, _ in chunk)
        lines += (line for _, line, _ in chunk)
        columns = {}
        for i in range(len(header)):
            values = [record[i] if i < len(record) else None for _, _, record in chunk]
            try:
                columns[str(i)] = pa.array(values, pa.large_string())
            except UnicodeEncodeError:
                bad = [j for j, value in enumerate(values) if value and SURROGATE.search(value)]
                surrogates.setdefault(i, []).extend(chunk[j][0] for j in bad)
                for j in bad:
                    values[j] = _join_surrogates(values[j])
                columns[str(i)] = pa.array(values, pa.large_string())
        chunks.append(pa.table(columns))
    empty = pa.table({str(i): pa.array([], pa.large_string()) for i in range(len(header))})
    rows = pa.concat_tables([empty, *chunks], promote_options="default")
    index = pd.Index(numbers, dtype=np.int64, name="ticket_id")
    return make_table(rows, index, lines, header=header, surrogates=surrogates, **attributes)


def make_table(rows: pa.Table, index: pd.Index, lines: Sequence[int], **attributes: Any) -> Table:
    """The table of text columns.

    Args:
        rows: Columns of text, [records, columns]; their names do not matter.
        index: Number of each record.
        lines: Line of each record.
        attributes: What else `Table` holds.
    """
    columns = [column.fill_null("").to_pandas().astype("str") for column in rows.columns]
    frame = {i: column.set_axis(index) for i, column in enumerate(columns)}
    return Table(
        rows=pd.DataFrame(frame, index=index),
        lines=pd.Series(lines, index=index, dtype=np.int64, name="line"),
        **attributes,
    )


def _join_surrogates(text: str) -> str:
    """The text with surrogate pairs joined to the character that they mean, and halves removed."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
