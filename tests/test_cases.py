"""Each kind of broken export is handled: our own example, two variations, and the real file.

The numbers are those of the kinds in the folder of hard cases.
"""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ticketlib.splits import group_paraphrases
from ticketlib.tickets import load_tickets

JIRA = {"subject_column": "Summary", "body_column": "Description", "queue_column": "Component/s"}
H = b"subject,body,queue\n"


def load(path, raw, **options):
    """Columns as lists, and the report as count and examples by change."""
    path.write_bytes(raw)
    tickets, report = load_tickets(path, **options)
    counts = {row.change: (row.rows, row.examples) for row in report.itertuples()}
    return {column: tickets[column].tolist() for column in tickets}, counts


@pytest.fixture
def path(tmp_path):
    return tmp_path / "export.csv"


# Number of the kind, content, options, columns of the tickets, and changes with their counts.
CASES = [
    # 01: not UTF-8.
    (
        *("01", H + "Übergabe,Für 3 € – „später“,Ämter\n".encode("cp1252"), {}),
        {"subject": ["Übergabe"], "body": ["Für 3 € – „später“"], "queue": ["Ämter"]},
        {"read as CSV, cp1252 (not UTF-8: byte 0xdc at offset 19), delimiter ','": 1},
    ),
    (
        *("01", "subject,body,queue\nnaïve,Größe,Füße\n".encode("utf-16-le"), {}),
        {"subject": ["naïve"], "body": ["Größe"], "queue": ["Füße"]},
        {"read as CSV, utf-16-le (no mark, but zeros), delimiter ','": 1},
    ),
    (
        *("01", H + "ログイン,ログインできません。パスワードを再設定,技術\n".encode("cp932"), {}),
        {"subject": ["ログイン"], "queue": ["技術"]},
        {},
    ),
    (
        *("01", H + "Może,Proszę,Żółw\n".encode("cp1250"), {"encoding": "cp1250"}),
        {"subject": ["Może"], "body": ["Proszę"], "queue": ["Żółw"]},
        {"read as CSV, cp1250, delimiter ','": 1},
    ),
    # 02: a byte order mark.
    (
        *("02", b"\xef\xbb\xbf" + H + b"a,b,Q\n", {}),
        {"subject": ["a"]},
        {"read as CSV, utf-8-sig, delimiter ','": 1},
    ),
    (
        *("02", b'\xef\xbb\xbfsep=;\r\n"subject";"body";"queue"\r\na;"b;c";Q\r\n', {}),
        {"subject": ["a"], "body": ["b;c"]},
        {"read as CSV, utf-8-sig, delimiter ';'": 1},
    ),
    (
        *("02", b'\xef\xbb\xbf{"subject": "a", "body": "b", "queue": "Q"}\r\n', {}),
        {"subject": ["a"]},
        {"read as JSON Lines, utf-8-sig": 1},
    ),
    # 04: columns that repeat, line breaks in fields.
    (
        *("04", b'Summary,Description,Comment,Comment,Component/s\na,"b\n\nc",d,"e\nf",Q\n', JIRA),
        {"subject": ["a"], "body": ["b\n\nc"], "queue": ["Q"]},
        {"column 'Comment' occurs at 3, 4: ignored": 0},
    ),
    (
        *("04", b"body,queue,body,queue\nfirst,Q,second,R\n", {}),
        {"body": ["first"], "queue": ["Q"]},
        {
            "column 'body' occurs at 1, 3: first used, others ignored": 0,
            "column 'queue' occurs at 2, 4: first used, others ignored": 0,
        },
    ),
    (
        *("04", b"Summary;Labels;Labels;Labels;Description;Component/s;\na;x;y;z;b;Q;\n", JIRA),
        {"body": ["b"], "queue": ["Q"]},
        {"column 'Labels' occurs at 2, 3, 4: ignored": 0},
    ),
    # 05: no subject.
    (
        *("05", H + b",b,Q\n  ,c,Q\nS,d,Q\n", {}),
        {"subject": ["", "", "S"], "body": ["b", "c", "d"]},
        {"kept: subject empty": 2, "subject: space around the text removed": 1, "kept": 3},
    ),
    (
        *("05", H + "\xa0\u200b,b,Q\n\ufeff,c,Q\n<br>,d,Q\n".encode(), {}),
        {"subject": ["", "", ""]},
        {
            "kept: subject empty": 3,
            "subject: HTML made text": 1,
            "subject: space around the text removed": 2,
        },
    ),
    (
        *("05", b'{"body": "b", "queue": "Q", "subject": null}\n{"body": "c", "queue": "Q"}\n', {}),
        {"subject": ["", ""]},
        {"kept: subject empty": 2},
    ),
    # 06: labels that look like missing values.
    (*("06", H + b"a,b,NA\na,c,None\na,d,null\n", {}), {"queue": ["NA", "None", "null"]}, {}),
    (
        *("06", H + b"nan,NULL,nan\nN/A,#N/A,NULL\n-,<NA>,-\n", {}),
        {"subject": ["nan", "N/A", "-"], "queue": ["nan", "NULL", "-"]},
        {"kept": 3},
    ),
    (
        *("06", b'{"body": "NaN", "queue": "none"}\n{"body": "b", "queue": NaN}\n', {}),
        {"body": ["NaN", "b"], "queue": ["none", "NaN"]},
        {},
    ),
    # 08: HTML.
    (
        *("08", H + b'a,"<p>Dear <name>,</p><style>p{}</style>5&nbsp;&euro; <b>off</b>",Q\n', {}),
        {"body": ["Dear <name>,\n\n5 € off"]},
        {"body: HTML made text": 1},
    ),
    (
        *("08", H + b"R&amp;D &lt;name&gt;,&quot;b&quot;&hellip;,R&amp;D\n", {}),
        {"subject": ["R&D <name>"], "body": ['"b"…'], "queue": ["R&amp;D"]},
        {"subject: HTML made text": 1, "body: HTML made text": 1},
    ),
    (
        *("08", H + b'a,"New<blockquote>old</blockquote>",Q\n', {"drop_quotes": True}),
        {"body": ["New"]},
        {"body: HTML made text": 1},
    ),
    # 09: control characters.
    (
        *("09", H + b"a,one\0two\x08,Q\n", {}),
        {"body": ["onetwo"]},
        {"body: control characters removed": 1},
    ),
    (
        *("09", H + "a,one\x0ctwo\x85,\x7fQ\n\x1a".encode(), {}),
        {"body": ["one\ntwo"], "queue": ["Q"]},
        {
            r"body: line breaks made \n": 1,
            "body: space around the text removed": 1,
            "queue: control characters removed": 1,
        },
    ),
    (
        *("09", b'{"body": "a\\u0000b\\ud800", "queue": "\\ud83d\\ude00"}\n', {}),
        {"body": ["ab"], "queue": ["😀"]},
        {"body: surrogates joined or removed": 1, "body: control characters removed": 1},
    ),
    # 13: labels that look like numbers.
    (*("13", H + b"a,b,007\na,c,12\n", {}), {"queue": ["007", "12"]}, {}),
    (
        *("13", H + b"1.0,1e5,00\n+1,1_000,1.0\nInfinity,0x1,TRUE\n", {}),
        {"subject": ["1.0", "+1", "Infinity"], "queue": ["00", "1.0", "TRUE"]},
        {},
    ),
    (*("13", b'{"body": 1e5, "queue": 1.0}\n', {}), {"body": ["1e5"], "queue": ["1.0"]}, {}),
    # 15: what templates would fill.
    (*("15", H + b'{id},"{{x}} {0} {""a"":1}",Q\n', {}), {"body": ['{{x}} {0} {"a":1}']}, {}),
    (*("15", H + rb"%s %d,$x ${y} \1 \g<0>,{Q}" + b"\n", {}), {"body": [r"$x ${y} \1 \g<0>"]}, {}),
    (*("15", H + b"{{#if}},{% raw %} <%= y %>,Q\n", {}), {"body": ["{% raw %} <%= y %>"]}, {}),
    # 20: columns that give the answer away.
    (
        *("20", b"body,answer,queue\nb,To Tax it goes.,Tax\nc,Now with Law,Law\n", {}),
        {"queue": ["Tax", "Law"]},
        {"column 'answer' names the queue: no text to route by": 2},
    ),
    (
        *("20", b"body,group_id,queue\n" + b"b,71,Tax\nc,72,Law\n" * 20, {}),
        {},
        {"column 'group_id' tells the queue in 100.0%": 40},
    ),
    (
        *("20", H + b"For Tax,b,Tax\nx,Ask the legal team,Legal\n", {}),
        {},
        {"subject: names the queue it is in": 1, "body: names the queue it is in": 1},
    ),
    # 21: rows without values.
    (*("21", H + b"a,b,Q\n,,\n,,\n", {}), {"body": ["b"]}, {"dropped: all fields empty": 2}),
    (
        *("21", H + b'a,b,Q\r\n,,,,,,\r\n\r\n"","",""\r\n , ,\t\r\n""\r\n', {}),
        {"body": ["b"]},
        {"dropped: all fields empty": 5, "kept": 1},
    ),
    (
        *("21", b'{"body": "b", "queue": "Q"}\n{}\n\n{"body": "", "queue": null}\n', {}),
        {"body": ["b"]},
        {"dropped: all fields empty": 3},
    ),
    # 25: the two characters \n for a line break.
    (
        *("25", H + rb"a,Hi.\n\nSee C:\new\x.\nBye,Q" + b"\n", {}),
        {"body": ["Hi.\n\nSee C:\\new\\x.\\nBye"]},
        {r"body: literal \n made line breaks": 1, r"body: literal \n kept, as it may be a path": 1},
    ),
    (
        *("25", H + rb"a,Hi.\r\n\r\nOn \\nas\new now.\r\nBye,Q" + b"\n", {}),
        {"body": ["Hi.\n\nOn \\\\nas\\new now.\nBye"]},
        {r"body: literal \n made line breaks": 1},
    ),
    (
        *("25", H + rb"\new,D:\nina \d+\n,Q" + b"\n", {}),
        {"subject": [r"\new"], "body": [r"D:\nina \d+\n"]},
        {r"subject: literal \n kept, as it may be a path": 1},
    ),
    # 26: one text in several queues.
    (
        *("26", H + b"a,b,Q\na,b,R\na,b,S\n", {}),
        {"queue": ["Q", "R", "S"]},
        {"kept: same text, different queues": 3},
    ),
    (
        *("26", H + b'App slow,It hangs.,Q\napp  SLOW," It  hangs.\n",R\n', {}),
        {"queue": ["Q", "R"]},
        {"kept: same text, different queues": 2, "body: space around the text removed": 1},
    ),
    (
        *("26", H + b"a,<p>b</p>,Q\na,b,Q\na,b&excl;,R\na,b!,Q\n", {}),
        {},
        {
            "kept: same text, different queues": 2,
            "kept: same text, same queue": 2,
            "body: HTML made text": 2,
        },
    ),
    # 30: queues with hardly any ticket.
    (
        *("30", H + b"a,b,Law\n" + b"a,c,Tax\n" * 5, {}),
        {"queue": ["Law"] + ["Tax"] * 5},
        {"kept: queues with fewer than 5 tickets": 1},
    ),
    (
        *("30", H + b"a,b,Law\na,c,law\n" + b"a,d,Tax\n" * 5, {}),
        {},
        {
            "kept: queues with fewer than 5 tickets": 2,
            "kept: queues that differ only by case, spaces or &": 2,
        },
    ),
    (*("30", H + b"a,b,Law\n", {}), {}, {"kept: queues with fewer than 5 tickets": 1}),
    # 32: emoji and CJK.
    (
        *("32", H + "👍🏽,絵文字 😀 ≤,客服\n".encode(), {}),
        {"subject": ["👍🏽"], "body": ["絵文字 😀 ≤"], "queue": ["客服"]},
        {},
    ),
    (
        *("32", (H.decode() + "e\u0301 \u200f,👨\u200d👩 \u202eabc,ﬁ\n").encode("utf-16"), {}),
        {"subject": ["e\u0301 \u200f"], "body": ["👨\u200d👩 \u202eabc"], "queue": ["ﬁ"]},
        {},
    ),
    (
        *("32", b'{"body": "\\ud83d\\ude00 \\u2028 x", "queue": "\\u5ba2"}\n', {}),
        {"body": ["😀 \u2028 x"], "queue": ["客"]},
        {},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "options", "columns", "changes"),
    [case[1:] for case in CASES],
    ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)],
)
def test_a_case_of_our_own(path, raw, options, columns, changes):
    found, counts = load(path, raw, **options)
    assert {column: found[column] for column in columns} == columns
    assert {change: counts[change][0] for change in changes if change in counts} == changes
    repaired = {change for change in counts if "made" in change or "removed" in change}
    assert repaired <= {*changes}


def test_each_kind_has_an_example_and_two_variations():
    kinds = [kind for kind, *_ in CASES]
    assert min(kinds.count(kind) for kind in kinds) >= 3
    assert {*kinds} == {*"01 02 04 05 06 08 09 13 15 20 21 25 26 30 32".split()}


@pytest.mark.parametrize(
    "pairs",
    [
        [("Sync fails since Friday", "Since the update on Friday our tablets no longer sync.")],
        [
            (
                "Syncing fails since Friday",
                "SINCE the update on Friday, our tablets no longer  sync!",
            )
        ],
        [("Fails: sync since Friday", "Since the Friday update our tablets no longer sync.")],
    ],
)
def test_18_near_copies_share_a_group(path, pairs):
    rows = [
        ("Sync fails since Friday", "Since the update on Friday our tablets no longer sync."),
        *pairs,
        ("Payslip", "My payslip shows the wrong tax class."),
    ]
    lines = [f'{subject},"{body}",Q\n' for subject, body in rows]
    path.write_bytes(H + "".join(lines).encode())
    assert group_paraphrases(load_tickets(path)[0]).tolist() == [0, 0, 1]


SCRIPT = """
import sys
from ticketlib.tickets import load_tickets
tickets, report = load_tickets(sys.argv[1])
sys.stdout.buffer.write("|".join(tickets.loc[0, ["subject", "body", "queue"]]).encode())
"""


@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1"])
def test_32_the_locale_does_not_matter(path, locale):
    path.write_bytes(H + "👍,絵文字 – ü,客\n".encode())
    settings = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path],
        env=os.environ
        | settings
        | {"LC_ALL": locale, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
    )
    assert done.stdout.decode() == "👍|絵文字 – ü|客", done.stderr.decode()


REAL = {
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
    "08-html-body.csv": {
        "body": [
            "Hello team,\n\norder #55 came twice.\nOn Mon, Sam wrote:\n\nThanks for your order"
        ]
    },
    "09-nul-byte.csv": {"body": ["The nightly job stopped at 3 am and the report is empty."]},
    "13-numeric-queue-codes.csv": {"queue": ["007", "101", "12"]},
    "15-braces-in-text.csv": {
        "body": ['Mail shows {{customer.name}} and {0} instead of values; JSON was {"a": 1}']
    },
    "18-near-duplicates.csv": {},
    "20-answer-leak.csv": {"queue": ["Billing and Payments", "Technical Support"]},
    "21-trailing-blank-rows.csv": {"subject": ["One", "Two"]},
    "25-literal-backslash-n.csv": {
        "body": ["Hello,\n\nfirst line\nsecond line"] * 2 + [r"Share is at C:\new\reports"]
    },
    "26-same-text-two-queues.csv": {
        "queue": ["Technical Support", "Product Support", "IT Support"]
    },
    "30-single-example-queue.csv": {"queue": ["IT Support"] * 6 + ["Legal"]},
    "32-emoji-and-cjk.csv": {"body": ["絵文字 😀 and ≤ signs"]},
}
REPORTED = {
    "01-cp1252-umlauts.csv": [
        "read as CSV, cp1252 (not UTF-8: byte 0xfc at offset 34), delimiter ','"
    ],
    "04-jira-duplicate-columns.csv": [
        "column 'Labels' occurs at 4, 5: ignored",
        "column 'Comment' occurs at 6, 7: ignored",
    ],
    "05-missing-subject.csv": ["kept: subject empty"],
    "08-html-body.csv": ["body: HTML made text"],
    "09-nul-byte.csv": ["body: control characters removed"],
    "20-answer-leak.csv": ["column 'answer' names the queue: no text to route by"],
    "21-trailing-blank-rows.csv": ["dropped: all fields empty"],
    "25-literal-backslash-n.csv": [
        r"body: literal \n made line breaks",
        r"body: literal \n kept, as it may be a path",
    ],
    "26-same-text-two-queues.csv": ["kept: same text, different queues"],
    "30-single-example-queue.csv": ["kept: queues with fewer than 5 tickets"],
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_a_real_case(shared, name):
    options = JIRA if "jira" in name else {}
    tickets, report = load_tickets(shared / "cases" / name, **options)
    for column, values in REAL[name].items():
        assert tickets[column].tolist() == values
    assert {*REPORTED.get(name, [])} <= {*report["change"]}


def test_08_quotes_can_be_dropped_from_the_real_case(shared):
    tickets, _ = load_tickets(shared / "cases" / "08-html-body.csv", drop_quotes=True)
    assert tickets.loc[0, "body"] == "Hello team,\n\norder #55 came twice."


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
    leaks = [change for change in rows.index if change.startswith("column ")]
    assert leaks in ([], ["column 'tag_1' names the queue: no text to route by"])
    raw = pd.read_csv(shared / "data" / name, dtype=str, keep_default_na=False)
    assert tickets["queue"].tolist() == raw["queue"].tolist()


def test_our_own_tickets_raise_no_alarm():
    _, report = load_tickets(Path(__file__).parents[1] / "data" / "tickets.csv")
    assert list(report["change"].iloc[1:]) == [
        *[r"body: literal \n made line breaks", "kept: subject empty", "kept"]
    ]
