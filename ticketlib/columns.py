"""Which columns of an export hold the tickets' subject, body, queue and language."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from ticketlib.report import Report

COLUMNS = ("subject", "body", "queue", "language")
# What Zendesk, Jira, ServiceNow, Freshdesk and others call the columns, the likeliest first.
_SYNONYMS = {
    "subject": "subject summary shortdescription title ticketsubject betreff zusammenfassung",
    "body": "body descriptiontext description text message content ticketdescription comment "
    "details beschreibung nachricht",
    "queue": "queue assignmentgroupdisplayvalue assignmentgroup group groupname assignedgroup "
    "components component team department category groupid assignmentgroupvalue gruppe abteilung",
    "language": "language locale lang requesterlocale ticketlanguage sprache",
}


def pick_columns(
    header: list[str], names: Sequence[str], path: Path, report: Report
) -> list[int | None]:
    """Position of the column behind each of COLUMNS, None for an optional one that is missing.

    Args:
        header: Names of all columns.
        names: Names asked for, as long as COLUMNS; only `subject` and `language` may be missing.
        path: The file, for errors.
        report: Gets what is missing or occurs twice.

    Raises:
        ValueError: If a column is missing; all likely names for all missing columns are in it.
    """
    given = [name for name in names if name]
    if twice := [name for name in given if given.count(name) > 1]:
        raise ValueError(f"Column {twice[0]!r} is given twice; give another, or '' for none.")
    picked = [header.index(name) if name in given and name in header else None for name in names]
    likely, missing = {}, []
    for column, name, position in zip(COLUMNS, names, picked, strict=True):
        is_needed = column in ("body", "queue")
        if position is None and (name or is_needed):
            likely[column] = _find_near_names(column, name, header)
            if is_needed or name != column:
                missing.append(repr(name))
    if missing:
        known = list(dict.fromkeys(filter(None, header)))
        hints = ", ".join(f"{column}_column={near[0]!r}" for column, near in likely.items() if near)
        unlike = " or ".join(column for column in ("body", "queue") if likely.get(column) == [])
        others = {near: 0 for names in likely.values() for near in names[1:]}
        raise ValueError(
            f"{path} has no column {' and no column '.join(missing)}; its columns are {known[:60]}"
            + (f" and {len(known) - 60} more." if len(known) > 60 else ".")
            + (f" Try {hints}" + (f" (or {[*others]})." if others else ".") if hints else "")
            + (f" No column looks like {unlike}; pass its name." if unlike else "")
        )
    for column, name, position in zip(COLUMNS, names, picked, strict=True):
        if name and position is None:
            hint = f" Is it {likely[column][0]!r}?" if likely[column] else ""
            report.add(f"no column {name!r}: left empty.{hint}", 0)
    for name in dict.fromkeys(name for name in header if name and header.count(name) > 1):
        places = ", ".join(str(i) for i, other in enumerate(header, start=1) if other == name)
        use = "first used, others ignored" if name in names else "ignored"
        report.add(f"column {name!r} occurs at {places}: {use}", 0)
    return picked


def _find_near_names(column: str, name: str, header: list[str]) -> list[str]:
    """Names in the header that may be meant, the likeliest first."""
    # Of a name with dots, as in JSON, the last part may be enough.
    plain = {_plain(other.rpartition(".")[2]): other for other in reversed(header)}
    plain |= {_plain(other): other for other in reversed(header)}
    wanted = _plain(name)
    keys = [wanted, *_SYNONYMS[column].split(), *difflib.get_close_matches(wanted, plain, n=2)]
    return list(dict.fromkeys(plain[key] for key in keys if key and key in plain))


def _plain(name: str) -> str:
    """Equal for names that differ only by case and signs."""
    return "".join(filter(str.isalnum, name.casefold()))
