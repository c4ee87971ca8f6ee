r"""JSON Lines: any Unicode round-trips, each unusable line is named, NeMo's stale files go."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketlib.jsonl import read_jsonl, remove_stale_files, write_jsonl

RECORD = {"input": "Body: b\n\nDepartment:", "output": " IT Support", "ticket_id": 1}
TEXTS = st.text().map(str.strip).filter(bool)
RECORDS = st.builds(
    lambda prompt, answer, number: {"input": prompt, "output": answer, "ticket_id": number},
    TEXTS,
    TEXTS,
    st.integers(1, 10**6),
)


@settings(max_examples=40)
@given(records=st.lists(RECORDS, min_size=1, max_size=5))
def test_any_unicode_round_trips_one_record_a_line(tmp_path_factory, records):
    path = write_jsonl(tmp_path_factory.mktemp("jsonl") / "training.jsonl", records)
    assert read_jsonl(path) == records
    raw = path.read_bytes()
    assert raw.count(b"\n") == len(records) and b"\r" not in raw
    # Readers that split at every Unicode line end see the same records.
    assert [json.loads(line) for line in raw.decode("utf-8").splitlines()] == records


def test_text_stays_readable(tmp_path):
    path = write_jsonl(tmp_path / "test.jsonl", [{**RECORD, "input": "Größe 絵文字 👍"}])
    assert "Größe 絵文字 👍" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"", "is empty"),
        (b"  ", "is empty"),
        (b'{"input": "a", "output": "b"', "is not JSON"),
        (b'{"input": "a", "output": "b"} {"input": "c", "output": "d"}', "is not JSON"),
        (b'{"input": "a", "output": "b"}\r', "CR LF"),
        (b'["a", "b"]', "is list"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"input": "a"}', "has no 'output'"),
        (b'{"prompt": "a", "output": "b"}', "has no 'input'"),
        (b'{"input": "a", "output": 7}', r"'output' is 7 \(int\)"),
        (b'{"input": null, "output": "b"}', "'input' is None"),
        (b'{"input": "a", "output": " "}', "'output' is empty"),
        (b'{"input": "a", "output": "b", "output": "c"}', "key 'output' twice"),
        (b'{"input": "a\\ud800", "output": "b"}', "surrogate"),
        (b'{"input": "Department:\\n", "output": "b"}', "line break"),
        (b'{"input": "Department:", "output": "b\\n"}', "line break"),
        (b'{"input": " Department:", "output": "b"}', "spaces that NeMo strips"),
        (b'{"input": "Department:", "output": "b "}', "spaces that NeMo strips"),
        (b'{"input": "Department:", "output": "  b"}', "spaces that NeMo strips"),
        (b'{"input": "Department: ", "output": " b"}', "spaces that NeMo strips"),
    ],
)
def test_an_unusable_line_is_named(tmp_path, line, fault):
    good = json.dumps(RECORD).encode()
    path = tmp_path / "training.jsonl"
    path.write_bytes(b"\n".join([good, line, good, b""]))
    with pytest.raises(ValueError, match=rf"(?s)training\.jsonl has 1 .* line 2: .*{fault}"):
        read_jsonl(path)


def test_wrong_encodings_are_named(tmp_path):
    path = tmp_path / "training.jsonl"
    path.write_bytes(json.dumps({**RECORD, "input": "Größe"}, ensure_ascii=False).encode("cp1252"))
    with pytest.raises(ValueError, match=r"not UTF-8 \(byte 1\d\)"):
        read_jsonl(path)
    path.write_text(json.dumps(RECORD), encoding="utf-8-sig")
    with pytest.raises(ValueError, match="line 1: starts with a byte order mark"):
        read_jsonl(path)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [RECORD, {**RECORD, "output": 7}],
        [RECORD, {**RECORD, "output": "\ud800"}],
        [RECORD, {"input": "a"}],
        [RECORD, {**RECORD, "ticket_id": float("nan")}],
    ],
)
def test_a_failed_write_keeps_the_old_file(tmp_path, records):
    path = write_jsonl(tmp_path / "training.jsonl", [RECORD])
    with pytest.raises(ValueError):
        write_jsonl(path, records)
    assert read_jsonl(path) == [RECORD]
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_nemo_derived_go_with_the_old_version(tmp_path):
    stale = [
        "training.jsonl.idx.npy",
        "training.jsonl.idx.info",
        "training.jsonl_training.jsonl_indexmap_64mns_510msl_0.00ssp_1234s.npy",
        "packed/openai--gpt-oss-20b/training_4096.npy",
        "packed/openai--gpt-oss-20b/validation_4096.npy",
        "packed/openai--gpt-oss-20b/4096_metadata.jsonl",
    ]
    others = ["validation.jsonl", "validation.jsonl.idx.npy", "tickets.parquet", "notes.npy"]
    for name in [*stale, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"old")
    write_jsonl(tmp_path / "training.jsonl", [RECORD])
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {*others, "training.jsonl"}
    assert remove_stale_files(tmp_path / "training.jsonl") == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("12-crlf-and-blank-line.jsonl", "(?s)3 unusable of 3 .*line 1: .*CR LF.*line 2: is empty"),
        ("13-numeric-output.jsonl", "line 1: 'output' is 7"),
        ("24-boundary-whitespace.jsonl", "(?s)1 unusable of 4 .*line 4: .*line break"),
    ],
)
def test_unusable_cases(shared, name, fault):
    with pytest.raises(ValueError, match=fault):
        read_jsonl(shared / "cases" / name)


def test_usable_cases(shared, tmp_path):
    assert len(read_jsonl(shared / "cases" / "11-u2028-inside-string.jsonl")) == 2
    old, new = (read_jsonl(shared / "cases" / f"23-training-v{i}.jsonl") for i in (1, 2))
    path = write_jsonl(tmp_path / "training.jsonl", old)
    (tmp_path / "training.jsonl.idx.npy").write_bytes(b"index of the old version")
    assert read_jsonl(write_jsonl(path, new)) == new
    assert list(tmp_path.iterdir()) == [path]
