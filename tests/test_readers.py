"""Every format gives the same table, with lines of the file; cut and corrupt files are errors."""

import csv
import io
import json
import re
import zipfile

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from ticketlib.readers import parse_json, read_table

HEADER = ["subject", "body", "queue", "language"]
ANY = st.characters(exclude_categories=["Cs"])
CP1252 = bytes(range(256)).decode("cp1252", errors="ignore")


def rows_of(characters):
    """Records of which none is blank, as blank ones are counted instead."""
    row = st.tuples(*[st.text(characters, max_size=8)] * 4)
    return st.lists(
        row.filter(lambda row: "".join(row).strip(" \n\r\t\x1a")), min_size=1, max_size=4
    )


def as_csv(rows, delimiter=",", line_end="\n", quoting=csv.QUOTE_ALL):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=quoting).writerows(rows)
    return text.getvalue()


def as_json_lines(rows, **options):
    return "".join(json.dumps(dict(zip(HEADER, row)), **options) + "\n" for row in rows)  # noqa: B905


def as_parquet(rows, **options):
    columns = zip(*rows, strict=True)
    table = pa.table({name: pa.array(values, pa.string()) for name, values in zip(HEADER, columns)})  # noqa: B905
    raw = io.BytesIO()
    parquet.write_table(table, raw, **options)
    return raw.getvalue()


def as_zip(raw, names=("tickets.csv",), method=zipfile.ZIP_DEFLATED):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name in names:
            archive.writestr(name, raw)
    return packed.getvalue()


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Reads bytes as a file whose name tells nothing."""
    path = tmp_path_factory.mktemp("readers") / "tickets.dat"

    def read(raw, **options):
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        return read_table(path, **options)

    return read


def values_of(table):
    assert all(table.rows[i].dtype == "str" for i in table.rows)
    return [tuple(row) for row in table.rows.to_numpy()]


@settings(max_examples=40)
@given(
    rows=rows_of(ANY),
    delimiter=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    packed=st.booleans(),
)
def test_any_text_in_csv(read, rows, delimiter, encoding, line_end, packed):
    raw = as_csv([HEADER, *rows], delimiter, line_end).encode(encoding)
    table = read(as_zip(raw) if packed else raw)
    assert table.header == HEADER
    assert values_of(table) == rows
    assert list(table.rows.index) == list(range(1, len(rows) + 1))
    assert table.read_as.startswith(f"{'TSV' if delimiter == chr(9) else 'CSV'}, {encoding}")
    assert table.read_as.endswith(f", delimiter {delimiter!r}")


@settings(max_examples=30)
@given(rows_of(CP1252), st.sampled_from(",;"))
def test_any_text_in_cp1252(read, rows, delimiter):
    raw = as_csv([HEADER, *rows], delimiter).encode("cp1252")
    assert values_of(read(raw, encoding="cp1252")) == rows


@settings(max_examples=40)
@given(rows_of(ANY), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"]), st.booleans())
def test_any_text_in_json_lines(read, rows, encoding, ascii_only):
    raw = as_json_lines(rows, ensure_ascii=ascii_only).encode(encoding)
    for table in (read(raw), read(as_zip(raw))):
        assert table.header == HEADER and values_of(table) == rows
        assert table.read_as.startswith(f"JSON Lines, {encoding}")


@settings(max_examples=30)
@given(rows_of(ANY), st.sampled_from(["none", "snappy", "zstd"]), st.booleans())
def test_any_text_in_parquet(read, rows, compression, packed):
    raw = as_parquet(rows, compression=compression)
    table = read(as_zip(raw) if packed else raw)
    assert table.header == HEADER and values_of(table) == rows and table.read_as == "Parquet"


def in_lines(text):
    return re.split("\r\n|\r|\n", text)


@settings(max_examples=40)
@given(
    texts=st.lists(st.text('a\n\r" ,;{}', max_size=6), min_size=1, max_size=6),
    blanks=st.lists(st.sampled_from(["", ";;", " ;", '""', "\t", ";;;;;;"]), max_size=6),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    stated=st.sampled_from(["", "sep=;", '"SEP=;"']),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_numbers_and_lines_are_those_of_the_csv_file(
    read, texts, blanks, line_end, stated, encoding
):
    records = [[*HEADER[:2]], *([f"id{i}", text] for i, text in enumerate(texts))]
    pieces = [as_csv([record], ";", line_end) for record in records]
    pieces[2:2] = [blank + line_end for blank in blanks]
    text = (stated + line_end if stated else "") + "".join(pieces)
    table = read(text.encode(encoding))
    lines = in_lines(text)
    for i, (number, line) in enumerate(table.lines.items()):
        assert lines[line - 1].startswith(f'"id{i}"')
        assert number == i + 1 + (len(blanks) if i else 0)
    assert len(table.blank_lines) == len(blanks)
    assert all(not lines[line - 1].strip('"; \t') for line in table.blank_lines)


@settings(max_examples=30)
@given(st.lists(st.sampled_from([None, "\r", " ", "\ufeff", "{}", '{"a": ""}', '{"a": null}'])))
def test_numbers_and_lines_are_those_of_the_json_lines_file(read, blanks):
    lines = [f'{{"a": "id{i}"}}' if blank is None else blank for i, blank in enumerate(blanks)]
    lines.append('{"a": "last"}')
    table = read("\n".join(lines))
    for number, line in table.lines.items():
        assert number == line and json.loads(lines[line - 1])["a"] == table.rows.loc[number, 0]
    assert len(table.rows) + len(table.blank_lines) == len(lines)


WHOLE = as_csv(
    [HEADER, ("ä", 'one "q"\nline', "A", "en"), ("b", "two, 3", "B", ""), ("c", "4", "C", "d")]
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
def test_csv_that_is_cut_anywhere(read, encoding, quoting):
    raw = as_csv(csv.reader(io.StringIO(WHOLE)), quoting=quoting).encode(encoding)
    whole = values_of(read(raw))
    for length in range(len(raw)):
        try:
            table = read(raw[:length])
        except ValueError as error:
            assert "tickets.dat" in str(error)
            continue
        values = values_of(table)
        assert values[:-1] == whole[: len(values[:-1])]
        # The last record may have lost its end, which the report says.
        assert not table.has_last_line_end or values == whole[: len(values)]


@pytest.mark.parametrize("pack", [bytes, as_zip])
def test_json_lines_that_are_cut_anywhere(read, pack):
    whole = [("ä", "one\n", "A", "en"), ("b", "two", "B", "")]
    raw = as_json_lines(whole, ensure_ascii=False).encode()
    packed = pack(raw)
    for length in range(len(packed)):
        try:
            table = read(packed[:length])
        except ValueError as error:
            assert "tickets.dat" in str(error)
        else:
            assert values_of(table) == whole[: raw[: length + 1].count(b"\n")] * (pack is bytes)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_that_is_cut_or_has_a_flipped_bit_is_an_error_or_the_same(read, method):
    packed = as_zip(WHOLE.encode(), method=method)
    whole = values_of(read(packed))
    for length in range(4, len(packed)):  # Shorter ones are a name of a column without tickets.
        with pytest.raises(ValueError, match="tickets.dat"):
            read(packed[:length])
    for bit in range(32, len(packed) * 8, 5):  # The first four bytes tell what it is.
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert values_of(read(bytes(flipped))) == whole
        except ValueError as error:
            assert "tickets.dat" in str(error)


def test_parquet_that_is_cut_or_has_a_flipped_bit_is_an_error_or_the_same(read):
    rows = [("ä", "one two", "A", "en"), ("b", "two two", "B", "")]
    packed = as_parquet(rows, write_page_checksum=True, compression="none")
    for length in range(4, len(packed), 7):
        with pytest.raises(ValueError, match="tickets.dat"):
            read(packed[:length])
    for bit in range(32, len(packed) * 8, 17):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            table = read(bytes(flipped))
        except ValueError as error:
            assert "tickets.dat" in str(error)
        else:  # Names of columns have no checksum.
            assert values_of(table) == rows


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ('a,b\na,"b\na,b\n', "starts on line 3 .*end of data"),
        ('a,b\na,"b" x\n', "starts on line 3 .*expected after"),
        ('a,b\na,"b \\"x\\" y"\n', "starts on line 3 .*expected after"),
        ("a,b\n\na\n", "line 4: 1 fields, but the header has 2"),
        ('a,"b\nb"\na,b,more\n', "line 4: 3 fields"),
        ("a,b\n\0\0\0", "line 3: 1 fields"),
    ],
)
def test_corrupt_csv_is_an_error_with_its_line(read, rows, fault):
    with pytest.raises(ValueError, match=f"tickets.dat.*{fault}"):
        read("subject,body\n" + rows)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        *[('{"a": 1', "is not JSON"), ("[1]", r"is '\[1\]', not an object"), ("7", "is '7', not")],
        *[('{"a": 1, "a": 2}', "has the key 'a' twice"), ('{"a": 1} {}', "Extra data")],
        ('{"a.b": 1, "a": {"b": 2}}', "has the key 'a.b' twice"),
        ('{"a":' * 9_000 + "1" + "}" * 9_000, "nested too deeply|recursion"),
    ],
)
def test_corrupt_json_is_an_error_with_its_line(read, line, fault):
    with pytest.raises(ValueError, match=f"tickets.dat, line 3: .*(?:{fault}).*Mend that line"):
        read(f'{{"a": 1}}\n\n{line}\n{{"a": 2}}\n')


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        *[
            (b"", "column names"),
            (b"\n\na,b\n", "column names"),
            (b'"a","b', "line 1 cannot be read"),
        ],
        *[(b'[{"a": 1}]', "one JSON array.*read_json"), (b"<html><table>", "is HTML or XML")],
        *[
            (b"\x1f\x8b\x08\0", "gzip; unpack it"),
            (b"%PDF-1.7", "is a PDF"),
            (b"PARE", "encrypted"),
        ],
        *[(b"\xd0\xcf\x11\xe0\xa1\xb1", "old Excel"), (b"PK\x05\x06" + b"\0" * 18, "empty .zip")],
        (as_zip(b"x", ["[Content_Types].xml", "xl/a.xml"]), "is an Excel workbook"),
        (as_zip(b"x", ["a.csv", "b.csv"]), r"holds 2 files: \['a.csv', 'b.csv'\]"),
        *[(as_zip(b"x", ["folder/"]), "holds 0 files"), (as_zip(as_zip(b"x")), "within a .zip")],
        (as_zip(b"x").replace(b"\0\0\x08\0", b"\x01\0\x08\0"), "cannot be unpacked.*encrypted"),
    ],
)
def test_what_is_no_table_is_refused_with_what_to_do(read, raw, fault):
    with pytest.raises(ValueError, match=f"tickets.dat.*{fault}"):
        read(raw)


def test_hidden_files_of_macos_do_not_count(read):
    raw = as_zip(b"a,b\n1,2\n", ["x/t.csv", "__MACOSX/x/._t.csv", "x/.DS_Store"])
    assert values_of(read(raw)) == [("1", "2")]


def test_values_are_the_text_that_stands_there(read):
    values = ["007", "NA", "None", "null", "1e5", "1.0", "00", "TRUE", "nan", "-", "2024-01-01"]
    assert values_of(read("\n".join(["a,b", *(f"x,{value}" for value in values)]))) == [
        ("x", value) for value in values
    ]
    lines = ['{"a": 1e5, "b": 1.0}', '{"a": -0, "b": true}', '{"a": null, "b": NaN, "c": "d"}']
    assert values_of(read("\n".join(lines))) == [
        *[("1e5", "1.0", ""), ("-0", "true", ""), ("", "NaN", "d")]
    ]


def test_objects_in_json_become_columns(read):
    record = {"fields": {"summary": "s", "components": [{"name": "Ü"}], "none": {}}, "key": "K"}
    table = read(json.dumps(record))
    assert table.header == ["fields.summary", "fields.components", "key"]
    assert values_of(table) == [("s", '[{"name": "Ü"}]', "K")]


def test_parquet_of_other_types(read, tmp_path):
    table = pa.table(
        {"queue": [7, None], "body": ["a", None], "raw": [b"\xff", b""], "l": [["ä"], []]}
    )
    raw = io.BytesIO()
    parquet.write_table(table, raw)
    found = read(raw.getvalue(), names=["queue", "body"])
    assert values_of(found) == [("7", "a", "", '["ä"]'), ("", "", "", "[]")]
    assert found.read_as == "Parquet; 'queue' was int64; 'raw' is not text, so not looked at"
    with pytest.raises(ValueError, match="column 'raw' is not text"):
        read(raw.getvalue(), names=["raw"])


def test_parquet_that_is_corrupt_in_other_ways(read):
    """Text that is not UTF-8; a changed byte where only the .zip around it has a checksum."""
    not_utf8 = pa.array([b"\xff"]).cast(pa.string(), safe=False)
    raw = io.BytesIO()
    parquet.write_table(pa.table({"a": not_utf8}), raw)
    with pytest.raises(ValueError, match="tickets.dat is cut or corrupt Parquet.*UTF8"):
        read(raw.getvalue())
    packed = as_zip(as_parquet([("text", "", "", "")], compression="none"), method=0)
    with pytest.raises(ValueError, match="tickets.dat is cut or corrupt .*wrong checksum"):
        read(packed.replace(b"text", b"next", 1))


def test_surrogates_are_joined_or_removed_and_named(read):
    table = read(b'{"a": "\\ud83d\\ude00", "b": "x"}\n{"a": "h\\ud83d", "b": "\\ude00"}\n')
    assert values_of(table) == [("😀", "x"), ("h", "")]
    assert table.surrogates == {0: [2], 1: [2]}
    table = read(b"a,b\nok,x\n" + "h\ud83d\ude00,\ud83dy\n".encode(errors="surrogatepass"))
    assert values_of(table) == [("ok", "x"), ("h😀", "y")]
    assert table.surrogates == {0: [2], 1: [2]}


@pytest.mark.parametrize("mark", ["", "\ufeff", "\ufeff\ufeff", "\ufeffsep=;\n", "SEP=;\r\n"])
def test_marks_and_the_separator_line_are_no_text(read, mark):
    table = read(f'{mark}"a\0";"b, c"\n1,5;2\n')
    assert table.header == ["a", "b, c"] and values_of(table) == [("1,5", "2")]


@pytest.mark.parametrize(
    ("header", "names", "delimiter"),
    [
        *[("a;b,c,d", ["a"], ";"), ("a;b,c,d", [], ","), ("id\tSubject, short\tbody", [], "\t")],
        *[('"a,b";"c"', [], ";"), ("body", [], ","), ("a|b", [], "|"), ("a b;c d", ["body"], ";")],
    ],
)
def test_the_delimiter_is_the_one_that_explains_the_header(read, header, names, delimiter):
    assert read(header, names=names).read_as.endswith(f"SV, utf-8, delimiter {delimiter!r}")


def test_long_fields_are_read_and_the_limit_of_csv_is_restored(read):
    before = csv.field_size_limit(1_000)
    assert len(read(f"a,b\nx,{'long ' * 100_000}\n").rows.loc[1, 1]) == 500_000
    assert csv.field_size_limit(before) == 1_000


def test_records_are_read_in_chunks_of_which_later_ones_may_have_more_columns(read):
    lines = ['{"a": "x"}'] * 20_001 + ['{"b": "y", "a": "\\ud800z"}']
    table = read("\n".join(lines))
    assert table.header == ["a", "b"] and table.rows.shape == (20_002, 2)
    assert table.rows.loc[1].tolist() == ["x", ""] and table.rows.loc[20_002].tolist() == ["z", "y"]
    assert table.surrogates == {0: [20_002]}


def test_parse_json_passes_options():
    assert parse_json('{"a": 1.50}', parse_float=str) == {"a": "1.50"}
    with pytest.raises(ValueError, match="is not JSON: .* at character 6"):
        parse_json('{"a" 1}')
