r"""Tickets of any helpdesk, as a clean DataFrame and a report of all that was changed.

Every value is read as text, so that the queues `007`, `NA` and `None` stay what they are. A file
that is cut or corrupt is an error with its line, never a shorter result.
"""

import csv
import difflib
import importlib.util
import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd

from ticketlib.paths import replace_atomically, resolve

COLUMNS = ("subject", "body", "queue", "language")
KAGGLE_DATASET = "tobiasbueck/multilingual-customer-support-tickets"
KAGGLE_FILE = "aa_dataset-tickets-multi-lang-5-2-50-version.csv"

# Byte order marks; UTF-32's begins with UTF-16's, so it comes first.
_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
_LINE_BREAK = re.compile("\r\n|[\r\v\f\x85]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# A literal \n between words may be a newline (`one\ntwo`) or a path (`share\new`). Never touched:
# drive and network paths, and words with a backslash before another letter (`\d+\n`).
_LITERAL = re.compile(
    r"(?P<keep>(?:(?<![^\W\d_])|(?<=\\n))[A-Za-z]:\\(?:(?!\\n\\n)\S)*"
    r"|\\\\(?:(?!\\n\\n)\S)*|(?<!\S)(?=\S*\\[a-mo-qs-zA-Z\d])\S+)|(?:\\r)?\\n"
)
# Surely newlines: two in a row, after punctuation, or before a space, capital, bullet or the end.
_SURE = re.compile(r"\\n(?:\\r)?\\n|[\s.,;:!?)](?:\\r)?\\n|\\n(?:$|[\s*•\d-]|[^\W\d_a-zß-ÿ])")


def load_tickets(
    path: str | Path,
    *,
    subject_column: str = "subject",
    body_column: str = "body",
    queue_column: str = "queue",
    language_column: str = "language",
    encoding: str = "",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    r"""Clean tickets, and a report of what reading them changed or found.

    The delimiter (comma, semicolon, tab) is found in the header. Line breaks become `\n`; control
    characters and the space around a field go; rows without body or queue are dropped. The two
    characters `\n` become a line break in a field that uses them so: one without real line
    breaks, and with at least one `\n` that is doubled, follows punctuation or a space, or comes
    before a space, capital, digit, bullet or the end. Paths such as `C:\new` stay.

    Args:
        path: CSV file with a header.
        subject_column: Column of the subject line; "" or a missing `subject`: none.
        body_column: Column of the ticket's text.
        queue_column: Column of the label.
        language_column: Column of the language; "" or a missing `language`: none.
        encoding: Encoding of the file; "" finds it: byte order mark, else UTF-8, else cp1252.

    Returns:
        The tickets with the columns `ticket_id` (record number in the file, 1 is the first after
        the header), `subject`, `body`, `queue`, `language`, all text; and the report with the
        columns `change`, `rows` and `examples`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be decoded, has no column of a name given, is cut or
            corrupt, or holds no usable ticket.
    """
    path = resolve(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found. Set tickets_csv to your CSV file of tickets.")
    text, used = _decode(path.read_bytes(), path, encoding)
    report: list[tuple[str, int, str]] = []
    names = (subject_column, body_column, queue_column, language_column)
    header, delimiter = _read_header(text, names, path)
    picked = _pick_columns(header, names, path, report)

    rows, blank = [], []
    limit = csv.field_size_limit(2**31 - 1)
    try:
        for number, (line, record) in enumerate(_read_records(text, delimiter, path)):
            if not any(field.strip() for field in record):
                blank.append(number)
            elif len(record) != len(header):
                raise ValueError(
                    f"{path}, line {line}: {len(record)} fields, but the header has {len(header)}."
                    " The file is cut there, or quotes are missing around a field; mend it."
                )
            elif number:
                rows.append((number, *("" if i is None else record[i] for i in picked)))
    finally:
        csv.field_size_limit(limit)
    report.insert(0, (f"read as {used}, delimiter {delimiter!r}", len(rows) + len(blank), ""))
    if blank:
        examples = "; ".join(f"record {number}" for number in blank[:3])
        report.append(("dropped: all fields empty", len(blank), examples))
    if not text.endswith(("\n", "\r")):
        report.append(("the last line has no end; if the file was cut, it is short", 1, ""))

    tickets = pd.DataFrame(rows, columns=["ticket_id", *COLUMNS])
    tickets = _clean(tickets.astype(dict.fromkeys(COLUMNS, "str")), report)
    if tickets.empty:
        raise ValueError(f"{path} holds no ticket with a body and a queue. Look at its columns.")
    _find_oddities(tickets, report)
    report.append(("kept", len(tickets), ""))
    return tickets, pd.DataFrame(report, columns=["change", "rows", "examples"])


def text_key(tickets: pd.DataFrame) -> pd.Series:
    """Subject and body without case and spacing: equal for tickets that say the same.

    Args:
        tickets: Frame with `subject` and `body`.
    """
    pairs = zip(tickets["subject"], tickets["body"], strict=True)
    keys = [" ".join(f"{subject}\n{body}".casefold().split()) for subject, body in pairs]
    return pd.Series(keys, index=tickets.index, name="text_key", dtype=object)


def download_kaggle_tickets(folder: str | Path) -> Path:
    """The CSV of Kaggle's multilingual customer support tickets, downloaded if need be.

    Uses kagglehub where installed, else the `kaggle` command. Both find your Kaggle token
    themselves; see https://www.kaggle.com/docs/api.

    Args:
        folder: Where the file goes.

    Raises:
        RuntimeError: If neither way is there, or if the download does not bring the file.
    """
    target = Path(folder) / KAGGLE_FILE
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory() as temporary:
        if importlib.util.find_spec("kagglehub"):
            import kagglehub

            source = Path(kagglehub.dataset_download(KAGGLE_DATASET))
        elif command := shutil.which("kaggle"):
            source = Path(temporary)
            arguments = ["datasets", "download", "-d", KAGGLE_DATASET, "-p", temporary, "--unzip"]
            if subprocess.run([command, *arguments]).returncode:
                raise RuntimeError("The kaggle command failed; its message is above.")
        else:
            raise RuntimeError("Needs kagglehub or the kaggle command: pip install kagglehub.")
        found = next(source.rglob(KAGGLE_FILE), None)
        if found is None:
            raise RuntimeError(f"{KAGGLE_DATASET} came without {KAGGLE_FILE}.")
        with replace_atomically(target) as part:
            shutil.copyfile(found, part)
    return target


def _decode(raw: bytes, path: Path, encoding: str) -> tuple[str, str]:
    """The text, and the encoding that was used, in words for the report."""
    marked = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), "")
    chosen = encoding or marked or "utf-8"
    try:
        return raw.decode(chosen).removeprefix("\ufeff"), chosen
    except LookupError as error:
        raise ValueError(f"{encoding!r} is no encoding; try 'utf-8' or 'cp1252'.") from error
    except UnicodeDecodeError as error:
        where = f"byte {raw[error.start]:#04x} at offset {error.start} of {path}"
        advice = "Pass its encoding, such as encoding='cp1252', or save the file as UTF-8."
        if encoding or marked:
            raise ValueError(f"{where} is not {chosen}. {advice}") from error
        # In cp1252 text hardly any bytes happen to be valid UTF-8 beyond ASCII.
        valid = raw.decode("utf-8", errors="ignore")
        invalid = len(raw) - len(valid.encode("utf-8"))
        if sum(character > "\x7f" for character in valid) > invalid:
            raise ValueError(f"{where} is corrupt or cut UTF-8. {advice}") from error
        try:
            text = raw.decode("cp1252")
        except UnicodeDecodeError as other:
            where = f"byte {raw[other.start]:#04x} at offset {other.start} of {path}"
            raise ValueError(f"{where} is neither UTF-8 nor cp1252. {advice}") from other
        return text, f"cp1252 (not UTF-8: byte {raw[error.start]:#04x} at offset {error.start})"


def _read_records(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each record of a CSV text, with the line that it starts on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for record in reader:
            yield line, record
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}: the record that starts on line {line} cannot be read ({error}, line "
            f"{reader.line_num}). The file is cut, or a quote is not closed or not doubled."
        ) from error


def _read_header(text: str, names: Iterable[str], path: Path) -> tuple[list[str], str]:
    """Column names, and the delimiter that shows most of the names asked for, or most columns."""
    best = ([], ",")
    for delimiter in ",;\t":
        try:
            _, record = next(_read_records(text, delimiter, path), (1, []))
        except ValueError:  # Quotes that only another delimiter explains.
            continue
        header = [_CONTROL.sub("", name).strip() for name in record]
        scores = [(len(set(names) & set(columns)), len(columns)) for columns in (header, best[0])]
        if scores[0] > scores[1]:
            best = (header, delimiter)
    if not any(best[0]):
        raise ValueError(f"{path} does not begin with a line of column names. Add a header.")
    return best


def _pick_columns(header: list, names: tuple, path: Path, report: list) -> list[int | None]:
    """Position of the column behind each of COLUMNS, None for an optional one that is missing."""
    picked: list[int | None] = []
    for column, name in zip(COLUMNS, names, strict=True):
        if name and name in header:
            picked.append(header.index(name))
            continue
        known = {other.casefold(): other for other in header if other}
        close = difflib.get_close_matches(name.casefold(), known)
        near = f" Near: {[known[other] for other in close]}." if close else ""
        if column in ("body", "queue") or name not in ("", column):
            raise ValueError(
                f"{path} has no column {name!r}; its columns are {list(known.values())}.{near} "
                f"Pass {column}_column=... with the right one."
            )
        picked.append(None)
        if name:
            report.append((f"no column {name!r}: left empty.{near}", 0, ""))
    for name in dict.fromkeys(name for name in header if name and header.count(name) > 1):
        places = ", ".join(str(i) for i, other in enumerate(header, start=1) if other == name)
        use = "first used, others ignored" if name in names else "ignored"
        report.append((f"column {name!r} occurs at {places}: {use}", 0, ""))
    return picked


def _clean(tickets: pd.DataFrame, report: list) -> pd.DataFrame:
    """The tickets with every repair made and noted."""
    repairs: list[tuple[str, Callable[[str], str], tuple]] = [
        (r"line breaks made \n", lambda text: _LINE_BREAK.sub("\n", text), COLUMNS),
        ("control characters removed", lambda text: _CONTROL.sub("", text), COLUMNS),
        ("space around the text removed", str.strip, COLUMNS),
        (r"literal \n made line breaks", _unescape, COLUMNS[:2]),
    ]
    for change, repair, columns in repairs:
        for column in columns:
            new = pd.Series(map(repair, tickets[column]), index=tickets.index, dtype="str")
            _note(report, f"{column}: {change}", tickets[new != tickets[column]], column)
            tickets = tickets.assign(**{column: new})
    for column in ("body", "queue"):
        empty = tickets[column] == ""
        _note(report, f"dropped: {column} empty", tickets[empty], "subject")
        tickets = tickets[~empty]
    return tickets.reset_index(drop=True)


def _unescape(text: str) -> str:
    r"""The text with each literal `\n` that `load_tickets` takes for one as a line break."""
    if r"\n" not in text or "\n" in text:
        return text
    without_paths = _LITERAL.sub(lambda match: "path" if match["keep"] else match[0], text)
    if not _SURE.search(without_paths):
        return text
    return _LITERAL.sub(lambda match: match["keep"] or "\n", text).strip()


def _find_oddities(tickets: pd.DataFrame, report: list) -> None:
    """Notes what is kept as it is, but should be known."""
    literal = tickets["body"].str.contains(r"\n", regex=False)
    same = tickets["queue"].groupby(text_key(tickets))
    queues, again = same.transform("nunique"), same.transform("size") > 1
    _note(report, "kept: subject empty", tickets[tickets["subject"] == ""], "body")
    _note(report, r"kept: literal \n that may be a path", tickets[literal], "body")
    _note(report, "kept: same text, different queues", tickets[queues > 1], "queue")
    _note(report, "kept: same text, same queue", tickets[again & (queues == 1)], "queue")
    spelling = tickets["queue"].map(
        lambda queue: "".join(queue.casefold().replace("&", "and").split())
    )
    for _, alike in tickets["queue"].groupby(spelling):
        if alike.nunique() > 1:
            counts = ", ".join(f"{queue!r}: {n}" for queue, n in alike.value_counts().items())
            change = "kept: queues that differ only by case, spaces or &"
            report.append((change, len(alike), counts))


def _note(report: list, change: str, rows: pd.DataFrame, column: str) -> None:
    """Adds the rows to the report, if any, with up to three of them as examples."""
    if len(rows):
        shown = rows.head(3)[["ticket_id", column]].itertuples(index=False)
        examples = "; ".join(f"record {number}: {text[:40]!r}" for number, text in shown)
        report.append((change, len(rows), examples))
