"""Files of any helpdesk as a table of text, with the line on which each record begins."""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from ticketlib.delimited import read_delimited
from ticketlib.encoding import Encoding, find_encoding
from ticketlib.table import SURROGATE, Records, Table, collect_records, make_table

_NOT_TEXT = {
    b"\xd0\xcf\x11\xe0": "is an old Excel workbook; save it as CSV UTF-8",
    b"PK\x03\x04": "is a workbook or a .zip within a .zip; save it as CSV UTF-8",
    b"PK\x05\x06": "is an empty .zip; pack the tickets again",
    b"\x1f\x8b": "is packed with gzip; unpack it",
    b"BZh": "is packed with bzip2; unpack it",
    b"\xfd7zX": "is packed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "is packed with zstd; unpack it",
    b"7z\xbc\xaf": "is packed with 7-Zip; unpack it",
    b"Rar!": "is packed with RAR; unpack it",
    b"%PDF": "is a PDF; export the tickets as CSV",
    b"PARE": "is encrypted Parquet; decrypt it",
}


def read_table(path: Path, *, names: Sequence[str] = (), encoding: str = "") -> Table:
    """All records of a CSV, JSON Lines or Parquet file, or of the one file in a .zip.

    The content tells the format, not the file's name. Values are the text that stands there:
    `007`, `NA` and `1e5` too. Objects in JSON become columns with a dot: `fields.summary`.

    Args:
        path: The file.
        names: Columns that are looked for; they help to find the delimiter.
        encoding: Of a text file; "" finds it (`ticketlib.encoding`).

    Raises:
        ValueError: If the file is of another kind, is cut or corrupt, or cannot be decoded.
            Changed values in Parquet are seen only if its writer put checksums on the pages.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"PK\x03\x04":
        return _read_any(lambda: path.open("rb"), str(path), names, encoding)
    try:
        with zipfile.ZipFile(path) as archive:
            member = _find_member(archive, path)
            return _read_any(lambda: archive.open(member), f"{path}, {member}", names, encoding)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path} is cut or corrupt ({error}). Get it again.") from error
    except (RuntimeError, NotImplementedError) as error:  # A password; a rare compression.
        raise ValueError(f"{path} cannot be unpacked ({error}). Unpack it yourself.") from error


def parse_json(line: str, **options: Any) -> object:
    """The value of one line of JSON Lines.

    Args:
        line: Text without its line end.
        options: For `json.loads`.

    Raises:
        ValueError: If it is not JSON, or an object has a key twice, of which `json.loads` would
            keep the last without a word.
    """
    try:
        return json.loads(line, object_pairs_hook=_reject_duplicate_keys, **options)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.colno}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _find_member(archive: zipfile.ZipFile, path: Path) -> str:
    """The one file in an archive, whose checksum is right."""
    files = [name for name in archive.namelist() if not name.endswith("/")]
    if "[Content_Types].xml" in files:
        raise ValueError(f"{path} is an Excel workbook. Save it as CSV UTF-8 and give that.")
    # macOS adds hidden ones.
    files = [name for name in files if not Path(name).name.startswith(".")]
    if len(files) != 1:
        raise ValueError(f"{path} holds {len(files)} files: {files[:9]}. Unpack it and give one.")
    if archive.testzip():
        raise zipfile.BadZipFile(f"wrong checksum of {files[0]}")
    return files[0]


def _read_any(
    open_file: Callable[[], BinaryIO], name: str, names: Sequence[str], encoding: str
) -> Table:
    """The table of a file that is not packed."""
    with open_file() as file:
        start = file.read(4)
        if start == b"PAR1":
            file.seek(0)
            return _read_parquet(file, name, names)
    for mark, what in _NOT_TEXT.items():
        if start.startswith(mark):
            raise ValueError(f"{name} {what} and give that.")
    found = find_encoding(open_file, name, encoding)

    def open_text(newline: str = "") -> io.TextIOWrapper:
        return io.TextIOWrapper(open_file(), found.codec, found.errors, newline)

    with open_text() as text:
        first = text.read(1024).lstrip("\ufeff \t\r\n")
    if first.startswith("{"):
        return _read_json_lines(open_text, name, found)
    if re.match(r"\[\s*[\[{]", first):
        raise ValueError(
            f"{name} is one JSON array; JSON Lines has one record a line. Convert it: pandas."
            "read_json(path, dtype=False).to_json('tickets.jsonl', orient='records', lines=True)."
        )
    if first.startswith("<"):
        raise ValueError(f"{name} is HTML or XML, whatever its name. Export the tickets as CSV.")
    return read_delimited(open_text, name, names, found)


def _read_json_lines(open_text: Callable, name: str, found: Encoding) -> Table:
    """The table of a JSON Lines file; its columns are all keys that occur."""
    header: list[str] = []
    known: set[str] = set()
    blank: list[int] = []

    def records() -> Records:
        with open_text("\n") as text:
            for line, content in enumerate(text, start=1):
                content = content.strip("\ufeff \t\r\n\x1a")
                try:
                    record = parse_json(content, parse_int=str, parse_float=str) if content else {}
                    if not isinstance(record, dict):
                        raise ValueError(f"is {content[:40]!r}, not an object")
                    values = _reject_duplicate_keys(list(_flatten(record)))
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{name}, line {line}: {error}. Mend that line.") from error
                if not any(value and value.strip() for value in values.values()):
                    blank.append(line)
                    continue
                header.extend(key for key in values if key not in known)
                known.update(values)
                yield line, line, [values.get(key) for key in header]

    return collect_records(
        records(),
        header,
        read_as=f"JSON Lines, {found.how}",
        has_last_line_end=found.has_last_line_end,
        blank_lines=blank,
    )


def _flatten(record: dict, prefix: str = "") -> Iterator[tuple[str, str | None]]:
    """Names and texts of all values in a JSON object."""
    for key, value in record.items():
        name = SURROGATE.sub("", prefix + key)
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}.")
        elif value is None or isinstance(value, str):
            yield name, value
        else:  # Numbers are text already.
            yield name, json.dumps(value, ensure_ascii=False)


def _reject_duplicate_keys(pairs: list[tuple]) -> dict:
    """The pairs as a dict."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"has the key {twice!r} twice")
    return dict(pairs)


def _read_parquet(file: BinaryIO, name: str, names: Sequence[str]) -> Table:
    """The table of a Parquet file."""
    try:
        table = parquet.read_table(file, page_checksum_verification=True)
        table.validate(full=True)
        header = list(table.column_names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is cut or corrupt Parquet: {error}. Write it again.") from error
    columns, notes = [], []
    for column, values in zip(header, table.columns, strict=True):
        try:
            columns.append(_to_text(values))
            if column in names and pa.types.is_primitive(values.type):
                notes.append(f"; {column!r} was {values.type}")
        except (pa.ArrowException, ValueError) as error:
            if column in names:
                raise ValueError(f"{name}: column {column!r} is not text: {error}.") from error
            columns.append(pa.nulls(table.num_rows, pa.large_string()))
            notes.append(f"; {column!r} is not text, so not looked at")
    rows = pa.table(columns, names=[str(i) for i in range(len(header))])
    index = pd.RangeIndex(1, table.num_rows + 1, name="ticket_id")
    return make_table(rows, index, index, header=header, read_as="Parquet" + "".join(notes))


def _to_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of any type as text."""
    if not pa.types.is_nested(values.type):
        return values.cast(pa.large_string())
    texts = [
        None if value is None else json.dumps(value, ensure_ascii=False, default=str)
        for value in values.to_pylist()
    ]
    return pa.chunked_array([pa.array(texts, pa.large_string())])
