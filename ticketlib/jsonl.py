"""The JSON Lines files that NeMo's `FineTuningDataModule` reads, written so that it can.

NeMo 2.7 takes whatever is there: it counts bytes 10 as line ends, keeps an index of them beside
the file and uses it again after the file has changed, and stops somewhere in training at a record
that it cannot use. So records are checked when written and when read, and stale files go.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ticketlib.paths import replace_atomically
from ticketlib.readers import parse_json
from ticketlib.table import SURROGATE

# Line ends to str.splitlines and to some readers, but ordinary characters in JSON.
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def write_jsonl(path: str | Path, records: Iterable[Mapping]) -> Path:
    r"""The file, with one record a line, LF and UTF-8, in place of any older one.

    NeMo's index and packed files of an older version are deleted.

    Args:
        path: File to write, such as `run.training_jsonl`.
        records: Mappings with the texts `input` and `output`, and more keys such as `ticket_id`.

    Raises:
        ValueError: If there is no record, or one that NeMo could not use.
    """
    path, count = Path(path), 0
    with replace_atomically(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for count, record in enumerate(records, start=1):
                if fault := _find_fault(record):
                    raise ValueError(f"Record {count} for {path.name}: {fault}.")
                line = json.dumps(dict(record), ensure_ascii=False, allow_nan=False)
                file.write(line.translate(_LINE_ENDS) + "\n")
        if not count:
            raise ValueError(f"No records for {path.name}; NeMo cannot read an empty file.")
        remove_stale_files(path)
    return path


def read_jsonl(path: str | Path) -> list[dict]:
    """The records of a file, all of them usable by NeMo.

    Args:
        path: File with one record a line.

    Raises:
        ValueError: If any line is not a usable record, with the file, up to five lines and what
            is wrong with each.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}). Write it as UTF-8.") from error
    lines = text.removesuffix("\n").split("\n")
    records, faults = [], []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_parse_record(line))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        shown = "\n  ".join(faults[:5])
        raise ValueError(
            f"{path} has {len(faults)} unusable of {len(lines)} lines. Mend them, or write the "
            f"file again with ticketlib.jsonl.write_jsonl:\n  {shown}"
        )
    return records


def remove_stale_files(path: str | Path) -> list[Path]:
    """The files that NeMo derived from a JSON Lines file, now deleted.

    These are the line index (`training.jsonl.idx.npy` and `.info`), the shuffled sample index
    (`training.jsonl_…_indexmap_….npy`), and the packed sequences and their metadata in
    `packed/<tokenizer>/`; see `_index_fn` and `_get_samples_mapping` in
    nemo/collections/llm/gpt/data/utils.py and `default_pack_path` in fine_tuning.py. The metadata
    is one file for training and validation, so all packed files go together.

    Args:
        path: The JSON Lines file, which need not exist.
    """
    path = Path(path)
    beside = [other for other in path.parent.glob("*") if other.name.startswith(path.name)]
    stale = [other for other in beside if other.name.endswith((".idx.npy", ".idx.info"))]
    stale += [other for other in beside if "_indexmap_" in other.name and other.suffix == ".npy"]
    stale += path.parent.glob("packed/**/*.npy")
    stale += path.parent.glob("packed/**/*_metadata.jsonl")
    for file in stale:
        file.unlink(missing_ok=True)
    return sorted(stale)


def _parse_record(line: str) -> dict:
    """The record of one line, or a ValueError that says why there is none."""
    if not line.strip():
        raise ValueError("is empty")
    if line.startswith("\ufeff"):
        raise ValueError("starts with a byte order mark; write UTF-8 without one")
    if line.endswith("\r"):
        raise ValueError("ends with CR LF; write LF only")
    record = parse_json(line)
    if fault := _find_fault(record):
        raise ValueError(fault)
    return record


def _find_fault(record: object) -> str:
    """Why NeMo could not use a record, or "" where it can."""
    if not isinstance(record, Mapping):
        return f"is {type(record).__name__}; an object with 'input' and 'output' is needed"
    for key in ("input", "output"):
        if key not in record:
            return f"has no {key!r}, only {sorted(record)}"
        text = record[key]
        if not isinstance(text, str):
            return f"{key!r} is {text!r} ({type(text).__name__}); it must be text"
        if not text.strip():
            return f"{key!r} is empty"
        if SURROGATE.search(text):
            return f"{key!r} has half of a surrogate pair, which is no character"
    # NeMo strips spaces and nothing else, so that these would give the answer other tokens than
    # the model sees at inference. A single space between the two is what "plain" joins them with.
    before, answer = record["input"].rstrip(" "), record["output"].strip(" ")
    if before != before.rstrip() or answer != answer.strip():
        return "has a line break or tab between 'input' and 'output' or at the end of 'output'"
    between = (
        record["input"][len(before) :] + record["output"][: -len(record["output"].lstrip(" "))]
    )
    if record["input"].startswith(" ") or record["output"].endswith(" ") or len(between) > 1:
        return "has spaces that NeMo strips: before 'input', between the two or after 'output'"
    return ""
