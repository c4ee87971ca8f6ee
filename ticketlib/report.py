"""The report on an export: what was changed, and what whoever trains on it should know."""

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

import pandas as pd

from ticketlib.table import Table

# A queue with fewer tickets stays in training: one for validation and one for the test would leave
# less than three to learn from.
MIN_ROWS = 5
_LOST = "\ufffd|[ÃÂâ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_SPACING = ("Cc", "Cf", "Pc", "Pd", "Zl", "Zp", "Zs")  # Unicode's categories.
_LEAK_SAMPLE = 50_000  # Rows in which columns that nobody asked for are looked at.


class Report:
    """Rows of the report; examples are shown with the line of the file."""

    columns = ("change", "rows", "examples")

    def __init__(self, table: Table) -> None:
        """Begins with how the file was read."""
        self.lines = table.lines
        self.rows: list[tuple[str, int, str]] = []
        blank = table.blank_lines
        self.add(f"read as {table.read_as}", len(table.rows) + len(blank))
        if blank:
            examples = "; ".join(f"line {line}" for line in blank[:3])
            self.add("dropped: all fields empty", len(blank), examples)
        if not table.has_last_line_end:
            self.add("the last line has no end; if the file was cut, it is short", 1)

    def add(self, change: str, rows: int, examples: str = "") -> None:
        """Adds a row.

        Args:
            change: What was done or found.
            rows: Number of records.
            examples: Text to show.
        """
        self.rows.append((change, rows, examples))

    def note(self, change: str, ids: Sequence[int], texts: Iterable[str] = ()) -> None:
        """Adds the records, if there are any.

        Args:
            change: What was done or found.
            ids: Numbers of the records (`ticket_id`).
            texts: Examples for the first three.
        """
        if len(ids):
            lines = [f"line {self.lines[number]}" for number in ids[:3]]
            shown = [f": {text[:40]!r}" for text, _ in zip(texts, lines, strict=False)]
            shown += [""] * (len(lines) - len(shown))
            examples = "; ".join(map("".join, zip(lines, shown, strict=True)))
            self.add(change, len(ids), examples)

    def note_rows(self, change: str, tickets: pd.DataFrame, column: str) -> None:
        """Adds tickets, if there are any, with a column's texts as examples.

        Args:
            change: What was done or found.
            tickets: The tickets meant, with `ticket_id`.
            column: Column to show.
        """
        self.note(change, tickets["ticket_id"].tolist(), tickets[column])

    def note_queues(self, change: str, tickets: pd.DataFrame, counts: pd.Series) -> None:
        """Adds queues and their number of tickets, if there are any, up to nine by name.

        Args:
            change: What was found.
            tickets: All tickets, for the line of each queue's first.
            counts: Tickets by queue, of those meant.
        """
        if len(counts):
            firsts = tickets.drop_duplicates("queue").set_index("queue")["ticket_id"]
            shown = counts.head(9).items()
            names = [f"{queue!r}: {n} (line {self.lines[firsts[queue]]})" for queue, n in shown]
            self.add(change, int(counts.sum()), ", ".join(names))


def text_key(tickets: pd.DataFrame) -> pd.Series:
    """Subject and body without case and spacing: equal for tickets that say the same.

    Args:
        tickets: Frame with `subject` and `body`.
    """
    pairs = zip(tickets["subject"], tickets["body"], strict=True)
    keys = [" ".join(f"{subject}\n{body}".casefold().split()) for subject, body in pairs]
    return pd.Series(keys, index=tickets.index, name="text_key", dtype=object)


def find_oddities(tickets: pd.DataFrame, report: Report) -> None:
    """Notes what is kept as it is, but should be known.

    Args:
        tickets: Clean tickets.
        report: Gets the rows.
    """
    report.note_rows("kept: subject empty", tickets[tickets["subject"] == ""], "body")
    for column in ("subject", "body", "queue"):
        texts = tickets[column]
        literal = texts.str.contains(r"\n", regex=False)
        change = rf"{column}: literal \n kept, as it may be a path"
        report.note_rows(change, tickets[literal], column)
        lost = texts.str.contains(_LOST)
        report.note_rows(f"{column}: letters lost before the export (Ã¼, �)", tickets[lost], column)
    same = tickets["queue"].groupby(text_key(tickets))
    queues, again = same.transform("nunique"), same.transform("size") > 1
    report.note_rows("kept: same text, different queues", tickets[queues > 1], "queue")
    report.note_rows("kept: same text, same queue", tickets[again & (queues == 1)], "queue")
    counts = tickets["queue"].value_counts()
    few = counts[counts < MIN_ROWS]
    report.note_queues(f"kept: queues with fewer than {MIN_ROWS} tickets", tickets, few)
    for _, alike in counts.groupby(counts.index.map(_spelling_key)):
        if len(alike) > 1:
            report.note_queues("kept: queues that differ only by case, spaces or &", tickets, alike)


def _spelling_key(queue: str) -> str:
    """Equal for names that differ only by case, spaces, dashes, `&` or compatibility form."""
    plain = unicodedata.normalize("NFKC", html.unescape(queue)).casefold()
    plain = re.sub(r"\s+(?:and|und|et|y|e)\s+", "&", plain)
    kept = (char for char in plain if unicodedata.category(char) not in _SPACING)
    return "".join(kept) or queue


def find_leaks(tickets: pd.DataFrame, table: Table, picked: list, report: Report) -> None:
    """Notes columns in which the answer can be read.

    Args:
        tickets: Clean tickets.
        table: The file with all its columns.
        picked: Numbers of the columns that the tickets come from; None for none.
        report: Gets the rows.
    """
    for column in ("subject", "body"):
        named = _names_its_queue(tickets[column], tickets["queue"])
        report.note_rows(f"{column}: names the queue it is in", tickets[named], column)
    sample = tickets.sample(min(len(tickets), _LEAK_SAMPLE), random_state=0).sort_index()
    queue = sample["queue"]
    top = queue.value_counts(normalize=True).iloc[0]
    telling = max(0.98, 1 - 0.2 * (1 - top))
    where = "" if len(sample) == len(tickets) else f" (of {len(sample):,} looked at)"
    for i in sorted({*range(len(table.header))} - {*picked}):
        values = table.rows.loc[sample["ticket_id"], i].set_axis(sample.index)
        if not values.any():
            continue
        named = _names_its_queue(values, queue)
        if named.mean() >= 0.2:
            change = f"column {table.header[i]!r} names the queue: no text to route by{where}"
            report.note(change, sample.loc[named, "ticket_id"].tolist(), values[named])
            continue
        pairs = pd.DataFrame({"value": values, "queue": queue})[values != ""].value_counts()
        by_value = pairs.groupby("value").agg(["sum", "max"])
        by_value = by_value[by_value["sum"] > 1]
        known = values.isin(by_value.index)
        share = by_value["max"].sum() / max(1, known.sum())
        if known.sum() >= max(20, len(sample) / 2) and share >= telling and top < 1:
            change = f"column {table.header[i]!r} tells the queue in {share:.1%}{where}"
            report.note(change, sample.loc[known, "ticket_id"].tolist(), values[known])


def _names_its_queue(texts: pd.Series, queues: pd.Series) -> pd.Series:
    """Which texts hold the name of their own queue as words; case counts in short names (`IT`)."""
    found = []
    for queue, part in texts.groupby(queues):
        is_short = len(queue) < 4
        # pandas is fast, but takes `ü` for the end of a word.
        part = part[part.str.contains(queue, case=is_short, regex=False)]
        case = re.NOFLAG if is_short else re.IGNORECASE
        words = re.compile(rf"(?<!\w){re.escape(queue)}(?!\w)", case)
        found += [index for index, text in part.items() if words.search(text)]
    return pd.Series(texts.index.isin(found), index=texts.index)
