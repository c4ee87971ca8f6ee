r"""Any text survives reading, faults are repaired and counted, cut files are errors."""

import csv
import io
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketlib import tickets as module
from ticketlib.tickets import COLUMNS, KAGGLE_FILE, download_kaggle_tickets, load_tickets, text_key

HEADER = "subject,body,queue,language\n"


def write(folder, text, encoding="utf-8"):
    path = folder / "tickets.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def load(folder, text, written_as="utf-8", **options):
    """Tickets, and the rows of the report by change."""
    tickets, report = load_tickets(write(folder, text, written_as), **options)
    assert list(tickets.columns) == ["ticket_id", *COLUMNS]
    assert list(report.columns) == ["change", "rows", "examples"]
    assert all(type(value) is str for column in COLUMNS for value in tickets[column])
    return tickets, dict(zip(report["change"], report["rows"], strict=True))


# What no repair touches: no control characters, no literal \n, no space around.
CLEAN = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\\\ufeff"))
CLEAN = CLEAN.map(str.strip)
ROWS = st.lists(
    st.tuples(CLEAN, CLEAN.filter(bool), CLEAN.filter(bool), CLEAN), min_size=1, max_size=4
)


@settings(max_examples=40)
@given(
    rows=ROWS,
    delimiter=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
def test_any_text_is_read_as_it_was_written(tmp_path_factory, rows, delimiter, encoding, line_end):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=line_end)
    writer.writerows([COLUMNS, *rows])
    tickets, report = load(tmp_path_factory.mktemp("csv"), text.getvalue(), encoding)
    assert [tuple(row) for row in tickets[list(COLUMNS)].to_numpy()] == rows
    assert list(tickets["ticket_id"]) == list(range(1, len(rows) + 1))
    assert report[f"read as {encoding}, delimiter {delimiter!r}"] == report["kept"] == len(rows)


FULL = HEADER + '"a","one ""quoted""\nline",A,en\n"b","two, three",B,de\n"c","four",C,en\n'


@pytest.mark.parametrize("length", range(len(HEADER), len(FULL) + 1))
def test_a_cut_file_is_an_error_or_whole_up_to_the_cut(tmp_path, length):
    whole, _ = load(tmp_path, FULL)
    try:
        tickets, report = load(tmp_path, FULL[:length])
    except ValueError as error:
        assert "tickets.csv" in str(error)
        return
    assert tickets.iloc[:-1].equals(whole.iloc[: len(tickets) - 1])
    if not FULL[:length].endswith("\n"):
        assert "the last line has no end; if the file was cut, it is short" in report
    else:
        assert tickets.equals(whole.iloc[: len(tickets)])


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ('a,b,C,en\na,"b,C,en\na,b,C,en\n', "starts on line 3 .*end of data"),
        ('a,b,C,en\na,"b" x,C,en\n', "starts on line 3 .*expected after"),
        ("a,b,C,en\n\na,b,C\n", "line 4: 3 fields, but the header has 4"),
        ('a,"b\nb",C,en\na,b,C,en,more\n', "line 4: 5 fields"),
    ],
)
def test_a_corrupt_file_is_an_error_with_its_line(tmp_path, rows, fault):
    with pytest.raises(ValueError, match=fault):
        load(tmp_path, HEADER + rows)


@pytest.mark.parametrize(("text", "fault"), [("", "no column|column names"), (HEADER, "no ticket")])
def test_a_file_without_tickets_is_an_error(tmp_path, text, fault):
    with pytest.raises(ValueError, match=fault):
        load(tmp_path, text)
    with pytest.raises(FileNotFoundError, match="nothing.csv"):
        load_tickets(tmp_path / "nothing.csv")


def test_values_that_look_like_numbers_or_nothing_are_text(tmp_path):
    queues = ["007", "NA", "None", "null", "1e5", "TRUE", "2024-01-01"]
    rows = "".join(f"nan,NULL,{queue},N/A\n" for queue in queues)
    tickets, _ = load(tmp_path, HEADER + rows)
    assert list(tickets["queue"]) == queues
    assert set(tickets["subject"] + tickets["body"] + tickets["language"]) == {"nanNULLN/A"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_the_encoding_is_found_and_named(tmp_path, encoding):
    tickets, report = load(tmp_path, HEADER + "Größe,„Maß“ – 5 €,Café,de\n", encoding)
    assert list(tickets.loc[0, list(COLUMNS)]) == ["Größe", "„Maß“ – 5 €", "Café", "de"]
    assert next(iter(report)).startswith(f"read as {encoding}")


def test_cp1252_names_the_byte_and_another_encoding_can_be_given(tmp_path):
    text = HEADER + "Größe,Maß,A,de\n"
    _, report = load(tmp_path, text, "cp1252")
    assert "read as cp1252 (not UTF-8: byte 0xf6 at offset 30), delimiter ','" in report
    tickets, _ = load(tmp_path, HEADER + "Размер,тест,A,ru\n", "koi8-r", encoding="koi8-r")
    assert tickets.loc[0, "subject"] == "Размер"
    with pytest.raises(ValueError, match="byte 0xf6 at offset 30 .* is not ascii"):
        load(tmp_path, text, "cp1252", encoding="ascii")
    with pytest.raises(ValueError, match="'utf-99' is no encoding"):
        load(tmp_path, text, encoding="utf-99")


def test_corrupt_utf8_is_not_taken_for_cp1252(tmp_path):
    raw = (HEADER + "Größe,„Maß“,A,de\n").encode() + b"x,\xff,A,de\n"
    with pytest.raises(ValueError, match="byte 0xff at offset .* corrupt or cut UTF-8"):
        load(tmp_path, raw)
    with pytest.raises(ValueError, match="byte 0x81 at offset .* neither"):
        load(tmp_path, HEADER.encode() + b"x,\x81,A,de\n")


def test_missing_columns_are_named_with_near_ones(tmp_path):
    with pytest.raises(ValueError, match=r"no column 'body'.*'Body text'.*Near: \['Body text'\]"):
        load(tmp_path, "Subject,Body text,Queue\na,b,c\n")
    with pytest.raises(ValueError, match=r"no column 'Que'.*Near: \['Queue'\].*queue_column="):
        load(tmp_path, "subject,body,Queue\na,b,c\n", queue_column="Que")
    # A name that was asked for must be there; only the default may be missing.
    with pytest.raises(ValueError, match="no column 'Lang'.*language_column="):
        load(tmp_path, "subject,body,queue\na,b,c\n", language_column="Lang")


def test_subject_and_language_are_optional(tmp_path):
    tickets, report = load(tmp_path, "body;queue;Subject\nb;c;d\n", language_column="")
    assert list(tickets.loc[0, list(COLUMNS)]) == ["", "b", "c", ""]
    assert "no column 'subject': left empty. Near: ['Subject']." in report
    assert not any("language" in change for change in report)


def test_repeated_column_names_are_reported(tmp_path):
    text = "subject,body,body,queue,tag,tag,language\na,first,second,c,x,y,en\n"
    tickets, report = load(tmp_path, text)
    assert tickets.loc[0, "body"] == "first"
    assert "column 'body' occurs at 2, 3: first used, others ignored" in report
    assert "column 'tag' occurs at 5, 6: ignored" in report


def test_repairs_are_counted(tmp_path):
    rows = '"a\x00b","c\r\nd\re\x0b\x07f"," Q ",en\na,b,Q,en\n'
    tickets, report = load(tmp_path, HEADER + rows)
    assert list(tickets.loc[0, list(COLUMNS)]) == ["ab", "c\nd\ne\nf", "Q", "en"]
    for change in (
        "subject: control characters removed",
        "body: control characters removed",
        r"body: line breaks made \n",
        "queue: space around the text removed",
    ):
        assert report[change] == 1


def test_drops_are_counted_and_others_keep_their_number(tmp_path):
    rows = "a,b,Q,en\n,,,\n\n  , ,,\nx,,Q,en\ny,b,  ,en\n,b,Q,en\n"
    tickets, report = load(tmp_path, HEADER + rows)
    assert list(tickets["ticket_id"]) == [1, 7]
    assert report["dropped: all fields empty"] == 3
    assert report["dropped: body empty"] == report["dropped: queue empty"] == 1
    assert report["kept: subject empty"] == 1 and report["kept"] == 2
    dropped = sum(rows for change, rows in report.items() if change.startswith("dropped"))
    assert report["read as utf-8, delimiter ','"] == dropped + report["kept"] == 7


@pytest.mark.parametrize(
    ("literal", "expected"),
    [
        (r"Hello,\n\nfirst line\nsecond line", "Hello,\n\nfirst line\nsecond line"),
        (r"Hello.\r\nBye", "Hello.\nBye"),
        (r"Hello\n- one\n- two", "Hello\n- one\n- two"),
        (r"Hallo\nÜber uns", "Hallo\nÜber uns"),
        (r"The end.\n", "The end."),
        (r"Hi,\n\nsee C:\new\reports or \\nas\new.\n\nBye", None),
        (r"see C:\new", r"see C:\new"),
        (r"see:\nC:\new\notes\n\nBye", "see:\nC:\\new\\notes\n\nBye"),
        (r"share\new", r"share\new"),
        (r"docs\sub\new. Bye", r"docs\sub\new. Bye"),
        ("real\nline, then print('a.\\n')", "real\nline, then print('a.\\n')"),
        (r"the pattern \d+\n.", r"the pattern \d+\n."),
    ],
)
def test_literal_newlines_become_real_and_paths_stay(tmp_path, literal, expected):
    if expected is None:
        expected = "Hi,\n\nsee C:\\new\\reports or \\\\nas\\new.\n\nBye"
    tickets, report = load(tmp_path, f'{HEADER}a,"{literal}",Q,en\n')
    assert tickets.loc[0, "body"] == expected
    changed, left = literal != expected, r"\n" in expected
    assert report.get(r"body: literal \n made line breaks", 0) == changed
    assert report.get(r"kept: literal \n that may be a path", 0) == left


def test_oddities_are_reported_and_kept(tmp_path):
    rows = (
        "App slow,It hangs.,A & B,en\napp  slow,It hangs. ,C,en\nApp slow,It hangs.,C,en\n"
        "x,y,a and b,en\nx,y,a and b,en\nz,z,D,en\n"
    )
    tickets, report = load(tmp_path, HEADER + rows)
    assert len(tickets) == report["kept"] == 6
    assert report["kept: same text, different queues"] == 3
    assert report["kept: same text, same queue"] == 2
    assert report["kept: queues that differ only by case, spaces or &"] == 3
    assert text_key(tickets).nunique() == 3


def test_long_fields_are_read_and_the_limit_of_csv_is_restored(tmp_path):
    limit = csv.field_size_limit()
    tickets, _ = load(tmp_path, f"{HEADER}a,{'long ' * 100_000},Q,en\n")
    assert len(tickets.loc[0, "body"]) == 499_999
    assert csv.field_size_limit() == limit


def test_the_kaggle_file_is_downloaded_once(tmp_path, monkeypatch):
    source = tmp_path / "cache" / "5"
    source.mkdir(parents=True)
    (source / KAGGLE_FILE).write_text("tickets")
    calls = []
    fake = types.SimpleNamespace(dataset_download=lambda name: calls.append(name) or str(source))
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name == "kagglehub")
    for _ in range(2):
        assert download_kaggle_tickets(tmp_path / "data").read_text() == "tickets"
    assert calls == ["tobiasbueck/multilingual-customer-support-tickets"]


def test_the_kaggle_command_is_the_other_way(tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install kagglehub"):
        download_kaggle_tickets(tmp_path / "data")
    command = tmp_path / "kaggle"
    command.write_text(f'#!/bin/sh\necho tickets > "$6/{KAGGLE_FILE}"\n')
    command.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda name: str(command))
    assert download_kaggle_tickets(tmp_path / "data").read_text() == "tickets\n"
    command.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(RuntimeError, match="kaggle command failed"):
        download_kaggle_tickets(tmp_path / "other")


CASES = {
    "01-cp1252-umlauts.csv": {"subject": ["Rechnung für März prüfen", "Café POS offline"]},
    "02-utf8-bom.csv": {"subject": ["Printer queue stuck"]},
    "04-jira-duplicate-columns.csv": {
        "body": [
            "Steps:\n1. open portal\n2. sign in\n\n{code}HTTP 302{code}",
            "Invoice 0007; second reminder",
        ]
    },
    "05-missing-subject.csv": {"subject": ["", "", "Invoice copy"]},
    "06-label-NA-None-null.csv": {"queue": ["NA", "EMEA", "None", "null"]},
    "09-nul-byte.csv": {"body": ["The nightly job stopped at 3 am and the report is empty."]},
    "13-numeric-queue-codes.csv": {"queue": ["007", "101", "12"]},
    "15-braces-in-text.csv": {
        "body": ['Mail shows {{customer.name}} and {0} instead of values; JSON was {"a": 1}']
    },
    "21-trailing-blank-rows.csv": {"subject": ["One", "Two"]},
    "25-literal-backslash-n.csv": {
        "body": ["Hello,\n\nfirst line\nsecond line"] * 2 + [r"Share is at C:\new\reports"]
    },
    "26-same-text-two-queues.csv": {
        "queue": ["Technical Support", "Product Support", "IT Support"]
    },
    "32-emoji-and-cjk.csv": {"body": ["絵文字 😀 and ≤ signs"]},
}


@pytest.mark.parametrize("name", CASES)
def test_cases(shared, name):
    jira = {"subject_column": "Summary", "body_column": "Description"}
    options = {**jira, "queue_column": "Component/s"} if "jira" in name else {}
    tickets, _ = load_tickets(shared / "cases" / name, **options)
    for column, values in CASES[name].items():
        assert list(tickets[column]) == values


@pytest.mark.parametrize(
    ("name", "kept", "no_subject", "unescaped", "languages"),
    [
        ("aa_dataset-tickets-multi-lang-5-2-50-version.head.csv", 1872, 89, 846, 2),
        ("dataset-tickets-multi-lang3-4k.head.csv", 1167, 126, 1, 5),
    ],
)
def test_real_files(shared, name, kept, no_subject, unescaped, languages):
    tickets, report = load_tickets(shared / "data" / name)
    rows = report.set_index("change")["rows"]
    assert len(tickets) == rows["kept"] == kept and tickets["queue"].nunique() == 10
    assert rows["kept: subject empty"] == no_subject
    assert rows[r"body: literal \n made line breaks"] == unescaped
    assert tickets["language"].nunique() == languages
    assert not tickets["body"].str.contains(r"\n", regex=False).any()
