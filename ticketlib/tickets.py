"""Tickets of any helpdesk, as a clean DataFrame and a report of all that was changed.

Every value is read as text, so that the queues `007`, `NA` and `None` stay what they are. A file
that is cut or corrupt is an error with its line, never a shorter result.
"""

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from os.path import commonprefix
from pathlib import Path

import pandas as pd
import pandera.pandas as pandera

from ticketlib import cleaning
from ticketlib.columns import COLUMNS, pick_columns
from ticketlib.paths import replace_atomically, resolve
from ticketlib.readers import read_table
from ticketlib.report import Report, find_leaks, find_oddities

KAGGLE_DATASET = "tobiasbueck/multilingual-customer-support-tickets"
KAGGLE_FILE = "aa_dataset-tickets-multi-lang-5-2-50-version.csv"

SCHEMA = pandera.DataFrameSchema(
    {
        "ticket_id": pandera.Column(int, unique=True),
        "subject": pandera.Column(str),
        "body": pandera.Column(str, pandera.Check.str_length(min_value=1)),
        "queue": pandera.Column(str, pandera.Check.str_matches(r"^\S(.*\S)?$")),
        "language": pandera.Column(str),
    }
)


def load_tickets(
    path: str | Path,
    *,
    subject_column: str = "subject",
    body_column: str = "body",
    queue_column: str = "queue",
    language_column: str = "language",
    encoding: str = "",
    drop_quotes: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    r"""Clean tickets, and a report of what reading them changed or found.

    Line breaks become `\n`, control characters go, HTML becomes text, the two characters `\n`
    become a line break where they stand for one, the space around a field goes
    (`ticketlib.cleaning`). Rows without body or queue are dropped. All else is kept and reported.

    Args:
        path: CSV with commas, semicolons, tabs or bars, JSON Lines or Parquet; or a .zip of one.
        subject_column: Column of the subject line; "" or a missing `subject`: none.
        body_column: Column of the ticket's text.
        queue_column: Column of the label.
        language_column: Column of the language; "" or a missing `language`: none.
        encoding: Encoding of a text file; "" finds it.
        drop_quotes: Cut the older mails that a mail quotes (`cleaning.remove_quotes`).

    Returns:
        The tickets with the columns `ticket_id` (number of the record in the file, blank ones
        counted; 1 is the first after the header), `subject`, `body`, `queue`, `language`, all
        text; and the report with the columns `change`, `rows` and `examples` (up to three, with
        their lines in the file).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read or decoded, has no column of a name given, is cut or
            corrupt, or holds no usable ticket.
    """
    path = resolve(path)
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "not found"
        raise FileNotFoundError(f"{path} {fault}. Set tickets_csv to your file of tickets.")
    names = (subject_column, body_column, queue_column, language_column)
    table = read_table(path, names=names, encoding=encoding)
    report = Report(table)
    picked = pick_columns(table.header, names, path, report)
    tickets = pd.DataFrame({"ticket_id": table.rows.index.to_numpy()})
    for column, i in zip(COLUMNS, picked, strict=True):
        values = pd.Series("", tickets.index, dtype="str") if i is None else table.rows[i]
        tickets[column] = values.array
        report.note(f"{column}: surrogates joined or removed", table.surrogates.get(i, []))
    tickets = _clean(tickets, report, drop_quotes)
    if tickets.empty:
        raise ValueError(f"{path} holds no ticket with a body and a queue. Look at its columns.")
    find_oddities(tickets, report)
    find_leaks(tickets, table, picked, report)
    report.add("kept", len(tickets))
    return check_tickets(tickets), pd.DataFrame(report.rows, columns=report.columns)


def check_tickets(tickets: pd.DataFrame, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The tickets, if they are as `SCHEMA` says; for frames that `load_tickets` did not make.

    Args:
        tickets: Frame with the columns of `SCHEMA`; others are not looked at.
        columns: Names of those that are needed; none: all.

    Raises:
        ValueError: If a column is missing or holds what it must not, with up to three examples.
    """
    schema = SCHEMA.select_columns(list(columns)) if columns else SCHEMA
    try:
        return schema.validate(tickets, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases.head(3)
        faults = [
            f"no column {case.failure_case!r}"
            if case.check == "column_in_dataframe"
            else f"{case.column!r} is {case.failure_case!r} in row {case.index} ({case.check})"
            for case in cases.itertuples()
        ]
        raise ValueError(
            f"Not usable as tickets: {'; '.join(faults)}. Read them with load_tickets, or give "
            "text in each row, a body and a queue that are not empty, each ticket_id once."
        ) from error


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


def _clean(tickets: pd.DataFrame, report: Report, drop_quotes: bool) -> pd.DataFrame:
    """The tickets with every repair made and noted."""
    texts, labels = COLUMNS[:2], COLUMNS[2:]
    remove_html = partial(cleaning.remove_html, drop_quotes=drop_quotes)
    repairs: list[tuple[str, Callable[[str], str], Sequence[str]]] = [
        (r"line breaks made \n", cleaning.normalize_line_breaks, COLUMNS),
        ("control characters removed", cleaning.remove_controls, COLUMNS),
        (r"literal \n made line breaks", cleaning.unescape_newlines, texts),
        ("HTML made text", remove_html, texts),
        (r"literal \n in HTML made line breaks", cleaning.unescape_newlines, texts),
        ("space around the text removed", cleaning.strip_space, COLUMNS),
        ("line breaks made spaces", cleaning.join_lines, labels),
    ]
    if drop_quotes:
        repairs.append(("quoted mails cut", cleaning.remove_quotes, ("body",)))
    for column in COLUMNS:
        values = tickets[column].tolist()
        for change, repair, columns in repairs:
            if column in columns:
                new = [repair(value) for value in values]
                changed = [i for i, value in enumerate(values) if new[i] != value]
                ids = tickets["ticket_id"].to_numpy()[changed]
                report.note(
                    f"{column}: {change}",
                    ids,
                    [_show_change(values[i], new[i]) for i in changed[:3]],
                )
                values = new
        tickets[column] = pd.Series(values, index=tickets.index, dtype="str")
    for column in ("body", "queue"):
        empty = tickets[column] == ""
        report.note_rows(f"dropped: {column} empty", tickets[empty], "subject")
        tickets = tickets[~empty]
    return tickets.reset_index(drop=True)


def _show_change(old: str, new: str) -> str:
    """The old text from a little before the first place that is changed."""
    start = max(0, len(commonprefix([old, new])) - 15)
    return "…" * bool(start) + old[start:]
