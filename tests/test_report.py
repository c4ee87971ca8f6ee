"""The report counts what an independent count finds, and names the lines of the file."""

import re
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketlib.report import MIN_ROWS, Report, find_leaks, find_oddities, text_key
from ticketlib.table import Table

QUEUES = ["Fees & Co", "fees and co", "IT", "it", "R\xa0D", "R-D", "C#", "C++", "Büro", "कि", "का"]
TEXTS = ["App slow", "app  slow", "It hangs", r"see C:\new", "Ã¼ber", "lost \ufffd", "im Büro"]
ROW = st.tuples(st.sampled_from(["", *TEXTS]), st.sampled_from(TEXTS), st.sampled_from(QUEUES))


def make(rows, header=(), more=()):
    """Tickets of (subject, body, queue), and a table in which they begin on every third line."""
    tickets = pd.DataFrame(rows, columns=["subject", "body", "queue"]).astype("str")
    tickets.insert(0, "ticket_id", range(1, len(rows) + 1))
    index = pd.Index(tickets["ticket_id"])
    columns = {i: pd.Series(values, index, dtype="str") for i, values in enumerate(more)}
    lines = pd.Series([3 * number for number in index], index)
    return tickets, Table([*header], pd.DataFrame(columns, index=index), lines, "CSV")


def leaks_of(rows, header=(), more=()):
    """Rows of the report on columns that give the answer away, by change."""
    tickets, table = make(rows, header, more)
    report = Report(table)
    find_leaks(tickets, table, [], report)
    return {change: (count, examples) for change, count, examples in report.rows[1:]}


@settings(max_examples=100)
@given(st.lists(ROW, min_size=1, max_size=25))
def test_oddities_are_counted(rows):
    tickets, table = make(rows)
    report = Report(table)
    find_oddities(tickets, report)
    found = Counter()
    for change, count, _ in report.rows[1:]:
        found[change] += count
    subjects, bodies, queues = zip(*rows, strict=True)
    texts = [" ".join(f"{row[0]} {row[1]}".casefold().split()) for row in rows]
    plain = [re.sub("[ \xa0-]", "", queue.casefold().replace("and", "&")) for queue in queues]

    def count_other(keys, values):
        """For each key, the number of different values of rows with that key."""
        return [len({v for k, v in zip(keys, values, strict=True) if k == key}) for key in keys]

    labels = count_other(texts, queues)
    masks = {
        "kept: subject empty": [not subject for subject in subjects],
        r"subject: literal \n kept, as it may be a path": [r"\n" in text for text in subjects],
        r"body: literal \n kept, as it may be a path": [r"\n" in text for text in bodies],
        "subject: letters lost before the export (Ã¼, �)": [
            "Ã¼" in text or "\ufffd" in text for text in subjects
        ],
        "body: letters lost before the export (Ã¼, �)": [
            "Ã¼" in text or "\ufffd" in text for text in bodies
        ],
        "kept: same text, different queues": [n > 1 for n in labels],
        "kept: same text, same queue": [
            n == 1 and texts.count(text) > 1 for n, text in zip(labels, texts, strict=True)
        ],
        f"kept: queues with fewer than {MIN_ROWS} tickets": [
            queues.count(queue) < MIN_ROWS for queue in queues
        ],
        "kept: queues that differ only by case, spaces or &": [
            n > 1 for n in count_other(plain, queues)
        ],
    }
    assert found == Counter({change: sum(mask) for change, mask in masks.items() if any(mask)})
    for change, _, examples in report.rows[1:]:
        shown = [int(line) for line in re.findall(r"(?:^|; |\()line (\d+)", examples)]
        lines = [3 * (i + 1) for i, is_odd in enumerate(masks[change]) if is_odd]
        assert {*shown} <= {*lines} and (shown == lines[:3] or "(line" in examples)


def test_examples_are_three_and_short():
    tickets, table = make([(f"s{i}", "x" * 99, "Q") for i in range(5)])
    report = Report(table)
    report.note_rows("all", tickets, "body")
    report.note("no texts", [2, 4])
    report.note("none", [])
    short = "x" * 40
    assert report.rows[1:] == [
        ("all", 5, f"line 3: {short!r}; line 6: {short!r}; line 9: {short!r}"),
        ("no texts", 2, "line 6; line 12"),
    ]


def test_the_report_begins_with_how_the_file_was_read():
    _, table = make([("s", "b", "Q")])
    table = Table([], table.rows, table.lines, "CSV", False, [4, 5, 6, 7])
    assert Report(table).rows == [
        ("read as CSV", 5, ""),
        ("dropped: all fields empty", 4, "line 4; line 5; line 6"),
        ("the last line has no end; if the file was cut, it is short", 1, ""),
    ]


@pytest.mark.parametrize(
    ("text", "queue", "is_named"),
    [
        *[("passed to Billing and Payments.", "Billing and Payments", True)],
        *[("BILLING", "Billing", True), ("rebilling", "Billing", False), ("Fees2", "Fees", False)],
        *[("it fails", "IT", False), ("the IT team", "IT", True), ("üIT", "IT", False)],
        *[("das Büro", "ro", False), ("(C++)", "C++", True), ("a.b", "a+b", False)],
    ],
)  # fmt: skip
def test_texts_that_name_their_queue(text, queue, is_named):
    found = leaks_of([(text, "other text", queue), ("x", "y", "Another")])
    assert found == (
        {"subject: names the queue it is in": (1, f"line 3: {text!r}")} if is_named else {}
    )


def test_columns_that_name_or_tell_the_queue():
    queues = ["Billing", "Technical", "Sales"] * 20
    rows = [("s", f"body {i}", queue) for i, queue in enumerate(queues)]
    more = {
        "answer": [f"Passed to {queue}." for queue in queues],
        "assignee_group_id": [str(len(queue)) for queue in queues],
        "priority": ["high", "low"] * 30,
        "id": [str(i) for i in range(60)],
        "empty": [""] * 60,
        "constant": ["x"] * 60,
        "half": ["" if i % 2 else queue[:3] for i, queue in enumerate(queues)],
    }
    found = leaks_of(rows, more, more.values())
    assert set(found) == {
        "column 'answer' names the queue: no text to route by",
        *(f"column {name!r} tells the queue in 100.0%" for name in ("assignee_group_id", "half")),
    }
    assert found["column 'answer' names the queue: no text to route by"][0] == 60
    assert found["column 'half' tells the queue in 100.0%"] == (
        30,
        "line 3: 'Bil'; line 9: 'Sal'; line 15: 'Tec'",
    )


def test_a_column_has_to_tell_more_than_the_largest_queue_does():
    rows = [("s", "b", queue) for queue in ["A"] * 95 + ["B"] * 5]
    columns = {"same": ["x"] * 100, "mixed": ["x", "y"] * 50, "telling": ["x"] * 95 + ["y"] * 5}
    assert set(leaks_of(rows, columns, columns.values())) == {
        "column 'telling' tells the queue in 100.0%"
    }
    assert not leaks_of(rows[:95], ["c"], [["x"] * 95])
    assert not leaks_of([("s", "b", "A"), ("s", "b", "B")] * 5, ["c"], [["x", "y"] * 5])


def test_equal_text_has_an_equal_key():
    tickets, _ = make([("App", "slow", "A"), ("APP ", "slow\n", "B"), ("App slow", "", "A")])
    assert text_key(tickets).tolist() == ["app slow"] * 3
