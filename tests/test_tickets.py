r"""Any text survives, faults are repaired once and counted, columns are found or named."""

import csv
import io
import sys
import types

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cleaning import MESSY
from test_readers import as_json_lines, as_parquet, as_zip

from ticketlib import tickets as module
from ticketlib.cleaning import strip_space
from ticketlib.tickets import (
    COLUMNS,
    KAGGLE_FILE,
    check_tickets,
    download_kaggle_tickets,
    load_tickets,
)

HEADER = "subject,body,queue,language\n"
CHANGES = ("made", "removed", "cut", "dropped", "joined")


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Tickets, and the rows of the report by change, of a file with this content."""
    path = tmp_path_factory.mktemp("tickets") / "tickets.csv"

    def load(raw, **options):
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        tickets, report = load_tickets(path, **options)
        assert list(tickets.columns) == ["ticket_id", *COLUMNS]
        assert list(report.columns) == ["change", "rows", "examples"]
        assert all(type(value) is str for column in COLUMNS for value in tickets[column])
        assert report["change"].iloc[-1] == "kept"
        return tickets, report.groupby("change", sort=False)["rows"].sum().to_dict()

    return load


def as_csv(rows, delimiter=",", line_end="\n"):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=line_end).writerows([COLUMNS, *rows])
    return text.getvalue()


def values_of(tickets):
    return [tuple(row) for row in tickets[list(COLUMNS)].to_numpy()]


# What no repair touches: no control characters, literal \n, HTML or space around.
CLEAN = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\\<&"))
CLEAN = CLEAN.map(strip_space)
ROWS = st.lists(
    st.tuples(CLEAN, CLEAN.filter(bool), CLEAN.filter(bool), CLEAN), min_size=1, max_size=4
)


@settings(max_examples=15)
@given(
    ROWS, st.sampled_from(",;\t"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
)
def test_any_text_is_the_same_from_any_file(load, rows, delimiter, encoding):
    text = as_csv(rows, delimiter)
    files = [
        *[text.encode(encoding), as_csv(rows, delimiter, "\r\n").encode(encoding)],
        *[as_zip(text.encode(encoding)), as_json_lines(rows).encode(), as_parquet(rows)],
    ]
    for raw in files:
        tickets, report = load(raw)
        assert values_of(tickets) == rows
        assert list(tickets["ticket_id"]) == list(range(1, len(rows) + 1))
        assert not [change for change in report if any(word in change for word in CHANGES)]
        assert report["kept"] == len(rows)


@settings(max_examples=30)
@given(st.lists(st.tuples(MESSY, MESSY, MESSY, MESSY), min_size=1, max_size=4))
def test_loading_loaded_tickets_changes_nothing(load, rows):
    first, report = load(as_csv([("s", "b", "Q", ""), *rows]))
    again, report_again = load(as_csv(values_of(first)))
    assert values_of(again) == values_of(first)
    assert not [change for change in report_again if any(word in change for word in CHANGES)]
    dropped = sum(rows for change, rows in report.items() if change.startswith("dropped"))
    assert next(iter(report.values())) == dropped + report["kept"] == 1 + len(rows)


def test_repairs_are_counted(load):
    rows = [
        ("a\0b", "c\r\nd\re\x0b\x07f", " Q ", "en"),
        ("a", "one.\\ntwo", "Q\nR", "en"),
        ("&uuml;", "<p>x\\n<b>Y</b></p>", "Q", "\x1a"),
        ("\u200b", "<p>x\n\\n y</p>", "Q", " en"),
    ]
    tickets, report = load(as_csv(rows))
    assert values_of(tickets) == [
        *[("ab", "c\nd\ne\nf", "Q", "en"), ("a", "one.\ntwo", "Q R", "en")],
        *[("ü", "x Y", "Q", ""), ("", "x \n y", "Q", "en")],
    ]
    assert {
        change: n for change, n in report.items() if any(word in change for word in CHANGES)
    } == {
        "subject: control characters removed": 1,
        "subject: HTML made text": 1,
        "subject: space around the text removed": 1,
        r"body: line breaks made \n": 1,
        "body: control characters removed": 1,
        r"body: literal \n made line breaks": 2,
        "body: HTML made text": 2,
        r"body: literal \n in HTML made line breaks": 1,
        "queue: space around the text removed": 1,
        "queue: line breaks made spaces": 1,
        "language: control characters removed": 1,
        "language: space around the text removed": 1,
    }


def test_surrogates_are_counted(load):
    line = '{"subject": "a\\ud83d", "body": "\\ud83d\\ude00", "queue": "\\ude00Q"}\n'
    tickets, report = load(line)
    assert values_of(tickets) == [("a", "😀", "Q", "")]
    assert report["subject: surrogates joined or removed"] == 1
    assert report["queue: surrogates joined or removed"] == 1


def test_examples_show_the_place_and_the_line(tmp_path):
    path = tmp_path / "tickets.csv"
    rows = [("s", "real\nline", "Q", "en"), ("s", "x" * 50 + "<br>y", "Q", "en")]
    path.write_text("sep=,\n" + as_csv(rows), encoding="utf-8")
    examples = load_tickets(path)[1].set_index("change")["examples"]
    assert examples["body: HTML made text"] == f"line 5: '…{'x' * 15}<br>y'"


def test_drops_are_counted_and_others_keep_their_number(load):
    rows = "a,b,Q,en\n,,,\n\n  , ,,\nx,\u200b,Q,en\ny,b,  ,en\n,b,Q,en\n\x1a"
    tickets, report = load(HEADER + rows)
    assert list(tickets["ticket_id"]) == [1, 7]
    assert report["dropped: all fields empty"] == 4
    assert report["dropped: body empty"] == report["dropped: queue empty"] == 1
    assert report["kept: subject empty"] == 1 and report["kept"] == 2
    assert report["read as CSV, utf-8, delimiter ','"] == 8


def test_a_cut_file_is_an_error_or_whole_up_to_the_cut(load):
    text = HEADER + '"a","one ""quoted""\nline",A,en\n"b","two, three",B,de\n"c","four",C,en\n'
    whole, _ = load(text)
    for length in range(len(text)):
        try:
            tickets, report = load(text[:length])
        except ValueError as error:
            assert "tickets.csv" in str(error)
            continue
        kept = len(tickets) - (not text[:length].endswith("\n"))
        assert tickets.head(kept).equals(whole.head(kept))
        assert ("the last line has no end; if the file was cut, it is short" in report) == (
            kept < len(tickets)
        )


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", "column names"), (HEADER, "no ticket"), (HEADER + "a,,Q,en\n", "no ticket with a body")],
)
def test_a_file_without_tickets_is_an_error(load, tmp_path, text, fault):
    with pytest.raises(ValueError, match=f"tickets.csv.*{fault}"):
        load(text)
    with pytest.raises(FileNotFoundError, match="nothing.csv not found. Set tickets_csv"):
        load_tickets(tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match="is a folder. Set tickets_csv"):
        load_tickets(tmp_path)


EXPORTS = {
    "Zendesk, JSON": (
        "url id external_id created_at updated_at type subject raw_subject description priority "
        "status recipient requester_id submitter_id assignee_id organization_id group_id tags via",
        {"body": "description", "queue": "group_id"},
    ),
    "Zendesk, view": (
        "Id,Requester,Requester id,Submitter,Assignee,Group,Subject,Description,Tags,Status,"
        "Priority,Via,Ticket type,Created at,Group stations,Assignee stations,Locale",
        {"body": "Description", "queue": "Group", "subject": "Subject", "language": "Locale"},
    ),
    "Jira, CSV": (
        "Summary,Issue key,Issue id,Issue Type,Status,Project key,Project name,Priority,Assignee,"
        "Reporter,Created,Component/s,Labels,Labels,Description,Environment,Comment,Comment",
        {"body": "Description", "queue": "Component/s", "subject": "Summary"},
    ),
    "Jira, JSON": (
        "expand id key fields.summary fields.issuetype.name fields.project.key fields.description "
        "fields.components fields.status.name fields.comment.total",
        {"body": "fields.description", "queue": "fields.components", "subject": "fields.summary"},
    ),
    "Jira, data pipeline": (
        "id,instance_url,key,project_key,issue_type,summary,description,status,component_names,"
        "component",
        {"body": "description", "queue": "component", "subject": "summary"},
    ),
    "ServiceNow, names": (
        "number,caller_id,short_description,category,subcategory,priority,state,assignment_group,"
        "assigned_to,description,close_notes,sys_updated_on",
        {"body": "description", "queue": "assignment_group", "subject": "short_description"},
    ),
    "ServiceNow, labels": (
        "Number,Opened,Short description,Caller,Priority,State,Category,Assignment group,"
        "Assigned to,Updated,Description",
        {"body": "Description", "queue": "Assignment group", "subject": "Short description"},
    ),
    "ServiceNow, JSON": (
        "number short_description description assignment_group.link assignment_group.value "
        "assignment_group.display_value category",
        {
            "body": "description",
            "queue": "assignment_group.display_value",
            "subject": "short_description",
        },
    ),
    "Freshdesk, CSV": (
        "Ticket ID,Subject,Description,Status,Priority,Source,Type,Agent,Group,Created time,"
        "Due by Time,Resolved time,Tags,Product,Full name,Email",
        {"body": "Description", "queue": "Group", "subject": "Subject"},
    ),
    "Freshdesk, JSON": (
        "id subject description description_text status priority source type requester_id "
        "responder_id group_id company_id",
        {"body": "description_text", "queue": "group_id"},
    ),
}


@pytest.mark.parametrize("export", EXPORTS)
def test_the_hint_names_all_columns_at_once_and_works(load, export):
    header, columns = EXPORTS[export]
    header = header.split("," if "," in header else " ")
    values = [f"value of {name}" for name in header]
    text = io.StringIO()
    csv.writer(text).writerows([header, values])
    with pytest.raises(ValueError, match="no column 'body' and no column 'queue'; ") as caught:
        load(text.getvalue())
    message = str(caught.value)
    for column, name in columns.items():
        assert f"{column}_column={name!r}" in message
    given = {f"{column}_column": name for column, name in columns.items()}
    tickets, _ = load(text.getvalue(), **given)
    assert tickets.loc[0, "body"] == f"value of {columns['body']}"
    assert tickets.loc[0, "queue"] == f"value of {columns['queue']}"


def test_missing_columns_are_named_with_near_ones(load):
    with pytest.raises(ValueError, match=r"no column 'Que'; .*Try queue_column='Queue'"):
        load("subject,body,Queue\na,b,c\n", queue_column="Que")
    # A name that was asked for must be there; only the default may be missing.
    with pytest.raises(ValueError, match="no column 'Lang'.*language_column="):
        load("subject,body,queue,language\na,b,c,d\n", language_column="Lang")
    with pytest.raises(ValueError, match=r"Try queue_column='x.Queue' \(or "):
        load("body,x.Queue,y.queue\na,b,c\n", queue_column="queues")
    with pytest.raises(ValueError, match="Try queue_column='Group'.* No column looks like body"):
        load("Id,Group\n1,a\n")
    with pytest.raises(ValueError, match="'c59'] and 40 more.*No column looks like body or queue"):
        load(",".join(f"c{i}" for i in range(100)))
    with pytest.raises(ValueError, match="Column 'text' is given twice"):
        load("text,queue\na,b\n", body_column="text", subject_column="text")


def test_subject_and_language_are_optional(load):
    tickets, report = load("body;queue;Subject\nb;c;d\n", language_column="")
    assert values_of(tickets) == [("", "b", "c", "")]
    assert "no column 'subject': left empty. Is it 'Subject'?" in report
    assert not any("language" in change for change in report)
    assert "no column 'language': left empty." in load("body,queue\nb,c\n")[1]


def test_repeated_column_names_are_reported(load):
    text = "subject,body,body,queue,tag,tag,language\na,first,second,c,x,y,en\n"
    tickets, report = load(text)
    assert tickets.loc[0, "body"] == "first"
    assert report["column 'body' occurs at 2, 3: first used, others ignored"] == 0
    assert report["column 'tag' occurs at 5, 6: ignored"] == 0


def test_drop_quotes_cuts_quoted_mails(load):
    rows = [
        ("Re", "New.\n\nOn Mon, Feb 3, 2025 at 10:00 Sam <s@x.example> wrote:\n> old", "Q", "en"),
        ("Re", '<div>New.</div><div class="gmail_quote">Old</div>', "Q", "en"),
    ]
    tickets, report = load(as_csv(rows), drop_quotes=True)
    assert list(tickets["body"]) == ["New.", "New."]
    assert report["body: quoted mails cut"] == report["body: HTML made text"] == 1
    tickets, _ = load(as_csv(rows))
    assert list(tickets["body"]) == [rows[0][1], "New.\nOld"]


def test_check_tickets_names_what_is_wrong():
    good = pd.DataFrame(
        {"ticket_id": [1, 2], "subject": "", "body": "b", "queue": ["A", "B C"], "language": ""}
    )
    assert check_tickets(good).equals(good)
    for change, fault in [
        ({"body": ["b", ""]}, "'body' is '' in row 1"),
        ({"queue": ["A", " B"]}, "'queue' is ' B' in row 1"),
        ({"ticket_id": [1, 1]}, "'ticket_id' is 1"),
        ({"subject": [None, "x"]}, "'subject' is"),
    ]:
        with pytest.raises(ValueError, match=f"Not usable as tickets: {fault}"):
            check_tickets(good.assign(**change))
    with pytest.raises(ValueError, match="no column 'queue'.*load_tickets"):
        check_tickets(good.drop(columns="queue"))
    assert check_tickets(good[["body"]], ["body"]).equals(good[["body"]])


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
