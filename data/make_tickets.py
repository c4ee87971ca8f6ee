"""Generate the support tickets of this project: `make_tickets.py` rewrites tickets.csv beside it.

A ticket has a hidden topic, and the topic decides its queue. The sentences come from the phrase
banks beside this file; sentences about other topics are mixed in, some labels are wrong on purpose.
Only `random.Random.random()` is used, which Python keeps equal across versions, so that the same
seed gives the same bytes everywhere. Tickets of other seeds serve to pre-train the tiny model.
"""

import argparse
import csv
import random
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).resolve().parent
SHIPPED_SEED, SHIPPED_ROWS = 20250805, 2400
COLUMNS = [
    *["subject", "body", "answer", "type", "queue", "priority", "language", "version"],
    *[f"tag_{i}" for i in range(1, 9)],
]
HIDDEN_COLUMNS = ["topic", "true_queue", "group"]
QUEUE_COUNTS = {  # rows of the Kaggle file that gives the proportions
    "Technical Support": 8362,
    "Product Support": 5252,
    "Customer Service": 4268,
    "IT Support": 3433,
    "Billing and Payments": 2788,
    "Returns and Exchanges": 1437,
    "Service Outages and Maintenance": 1148,
    "Sales and Pre-Sales": 918,
    "Human Resources": 576,
    "General Inquiry": 405,
}
MISLABELED = {  # queue: ((wrong queue, probability), ...)
    "Technical Support": (("Product Support", 0.075),),
    "Product Support": (("Technical Support", 0.095),),
    "IT Support": (("Technical Support", 0.05), ("Product Support", 0.02)),
    "Customer Service": (("General Inquiry", 0.01), ("Returns and Exchanges", 0.03)),
}
PRIORITIES = {
    "Incident": "high high high medium medium low",
    "Problem": "high high medium medium medium low",
    "Change": "high medium medium low",
    "Request": "high medium medium low low",
}
P_GERMAN, P_NO_SUBJECT, P_NEWLINES, P_SIGNED = 0.43, 0.13, 0.45, 0.035
P_PARAPHRASED, P_THIRD, P_OTHER_LABEL = 0.13, 0.3, 0.02
P_SECOND, P_ASIDE, P_QUOTE, P_VAGUE = 0.55, 0.35, 0.16, 0.3
P_CONTEXT, P_TRIED, P_IMPACT = 0.45, 0.3, 0.5


@cache
def read_banks() -> tuple[dict, list[dict]]:
    """Give the general phrases and the list of topics."""
    phrases = tomllib.loads((HERE / "phrases.toml").read_text(encoding="utf-8"))
    topics = []
    for path in sorted(HERE.glob("topics_*.toml")):
        topics += tomllib.loads(path.read_text(encoding="utf-8"))["topic"]
    return phrases, topics


def draw_ticket_group(rng: random.Random) -> list[dict[str, str]]:
    """Draw one ticket, or 2-3 paraphrases of one, each with `COLUMNS`, `topic` and `true_queue`."""
    phrases, topics = read_banks()
    language = "de" if rng.random() < P_GERMAN else "en"
    bank = phrases[language]
    queue = _pick(rng, list(QUEUE_COUNTS), list(QUEUE_COUNTS.values()))
    own = [t for t in topics if t["queue"] == queue]
    topic = _pick(rng, own, [t["weight"] for t in own])
    plan = _plan_ticket(rng, topic, topics, bank, language)
    label = _mislabel(rng, queue)
    kind = _pick(rng, topic["types"].split())
    tags = _shuffle(rng, topic["tags"])[: 3 + int(rng.random() * 3)]
    size = 1
    if rng.random() < P_PARAPHRASED:
        size = 3 if rng.random() < P_THIRD else 2
    group = []
    for _ in range(size):
        subject, body = _write_ticket(rng, plan, bank, topic[language])
        answer = _fill(rng, _pick(rng, bank["answers"]), plan["slots"], topic[language])
        shown = (
            _pick(rng, list(QUEUE_COUNTS)) if rng.random() < P_OTHER_LABEL * (size > 1) else label
        )
        row = dict.fromkeys(COLUMNS, "") | {f"tag_{i}": tag for i, tag in enumerate(tags, 1)}
        row |= {"subject": subject, "body": body, "answer": answer, "type": kind, "queue": shown}
        row |= {"priority": _pick(rng, PRIORITIES[kind].split()), "language": language}
        group.append(row | {"version": "1", "topic": topic["name"], "true_queue": queue})
    return group


def draw_tickets(n: int, *, seed: int) -> list[dict[str, str]]:
    """Draw exactly `n` tickets in random order, each with `COLUMNS` and `HIDDEN_COLUMNS`.

    Raises:
        ValueError: if `n` is not positive.
    """
    if n < 1:
        raise ValueError(f"n = {n}: ask for at least 1 ticket.")
    rng, rows, seen, number = random.Random(seed), [], set(), 0
    while len(rows) < n:
        for row in draw_ticket_group(rng):
            if row["body"] not in seen:
                seen.add(row["body"])
                rows.append(row | {"group": str(number)})
        number += 1
    return _shuffle(rng, rows[:n])


def generate_tickets(n: int, seed: int) -> "pd.DataFrame":
    """Give `draw_tickets` as a DataFrame of strings, hidden columns included (`group` is int).

    Raises:
        ValueError: if `n` is not positive.
    """
    import pandas as pd

    rows = draw_tickets(n, seed=seed)
    return pd.DataFrame(rows, columns=COLUMNS + HIDDEN_COLUMNS).astype({"group": int})


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    """Write the 16 public columns of `rows` as UTF-8 with line feeds at line ends."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _plan_ticket(rng, topic, topics, bank, language) -> dict:
    """Choose what all paraphrases of a ticket have in common."""
    others = [t for t in _shuffle(rng, topics)[:4] if t is not topic]
    draw = rng.random()
    if draw < P_QUOTE:
        side = _pick(rng, bank["quote"]).replace("{said}", _pick(rng, others[0][language]["says"]))
    elif draw < P_QUOTE + P_ASIDE:
        side = _pick(rng, bank["aside"])
    else:
        side = ""
    says = _shuffle(rng, topic[language]["says"])[: 1 + (rng.random() < P_SECOND)]
    return {
        "slots": {"bank": bank, "others": [_pick(rng, t[language]["about"]) for t in others]},
        "side": side,
        "side_slots": {"bank": bank, "others": [_pick(rng, t[language]["about"]) for t in others]},
        "side_first": rng.random() < 0.3,
        "says": says,
        "context": _pick(rng, bank["context"])
        if rng.random() < (P_CONTEXT if side else 0.7)
        else "",
        "tried": _pick(rng, bank["tried"]) if rng.random() < P_TRIED else "",
        "impact": _pick(rng, bank["impact"]) if rng.random() < P_IMPACT else "",
        "ask": _pick(rng, _pick(rng, [topic[language]["asks"], bank["asks"]], [0.5, 0.5])),
    }


def _write_ticket(rng, plan, bank, words) -> tuple[str, str]:
    """Write subject and body of one paraphrase."""
    slots = plan["slots"]
    told = [_fill(rng, s, slots, words) for s in _shuffle(rng, plan["says"])]
    for part in ("tried", "impact", "ask"):
        if plan[part] and rng.random() < 0.8:
            told.append(_fill(rng, plan[part], slots, words))
    if plan["context"]:
        told.insert(0, _fill(rng, plan["context"], slots, words))
    if plan["side"]:
        told.insert(
            0 if plan["side_first"] else len(told),
            _fill(rng, plan["side"], plan["side_slots"], words),
        )
    newlines = rng.random() < P_NEWLINES
    gap = r"\n\n" if newlines else " "
    parts = [" ".join(told)]
    if newlines and len(told) > 2:
        cut = 1 + int(rng.random() * (len(told) - 1))
        parts = [" ".join(told[:cut]), " ".join(told[cut:])]
    greeted = rng.random() < (0.75 if newlines else 0.3)
    if greeted:
        parts.insert(
            0, _fill(rng, _pick(rng, bank["greetings"][: None if newlines else -1]), slots, words)
        )
    signed = rng.random() < P_SIGNED
    if signed or len(parts) == 1 and newlines or rng.random() < (0.6 if newlines else 0.15):
        closing = _fill(rng, _pick(rng, bank["closings"]), slots, words)
        if signed:
            closing += (r",\n" if newlines else ", ") + _fill(
                rng, _pick(rng, bank["signed"]), slots, words
            )
        parts.append(closing)
    if rng.random() < P_NO_SUBJECT:
        return "", gap.join(parts)
    pattern = _pick(rng, bank["vague"] if rng.random() < P_VAGUE else bank["subjects"])
    return _fill(rng, pattern, slots, words), gap.join(parts)


def _fill(rng, text: str, slots: dict, words: dict) -> str:
    """Resolve the `[a|b]` choices anew and the `{slot}`s once per `slots`."""
    together = rng.random()

    def choose(match: re.Match) -> str:
        options = match[2].split("|")
        return options[int((together if match[1] else rng.random()) * len(options))]

    text = re.sub(r"\[(&?)([^][]*)\]", choose, text)
    about = _pick(rng, words["about"])
    text = text.replace("{about}", about).replace("{About}", about[0].upper() + about[1:])
    while slot := re.search(r"\{(\w+)\}", text):
        text = text[: slot.start()] + _fill_slot(rng, slot[1], slots) + text[slot.end() :]
    return re.sub(r" +([.,;?!]|$)", r"\1", re.sub(r"  +", " ", text)).strip()


def _fill_slot(rng, name: str, slots: dict) -> str:
    """Give the value of a slot, drawing it at its first use."""
    if name not in slots:
        phrases, bank = read_banks()[0], slots["bank"]
        number = lambda low, high: str(low + int(rng.random() * (high - low)))  # noqa: E731
        draw = {
            "app": lambda: _pick(rng, phrases["apps"]),
            "dev": lambda: _pick(rng, phrases["devices"]),
            "city": lambda: _pick(rng, phrases["cities"]),
            "thing": lambda: slots.get("dev") or slots.get("app") or slots.get("order") or "{app}",
            "trade": lambda: _pick(rng, bank["trades"]),
            "role": lambda: _pick(rng, bank["roles"]),
            "person": lambda: _pick(rng, bank["titles"]) + " " + _pick(rng, phrases["surnames"]),
            "team": lambda: _pick(rng, bank["teams"]),
            "day": lambda: _pick(rng, bank["days"]),
            "month": lambda: _pick(rng, bank["months"]),
            "period": lambda: _pick(rng, bank["periods"]),
            "amt": lambda: _pick(rng, bank["amounts"]).replace("{n3}", number(12, 990)),
            "ver": lambda: number(1, 12) + "." + number(0, 10),
            "num": lambda: number(10, 90),
            "num2": lambda: number(4, 10),
            "time": lambda: number(7, 20) + ":" + _pick(rng, ["00", "15", "30", "45"]),
            "host": lambda: _pick(rng, ["srv", "db", "node", "nas", "web"]) + "-" + number(2, 60),
            "drive": lambda: _pick(rng, list("GHKLMPRSTX")) + ":",
            "code": lambda: _pick(rng, ["E-", "ERR ", "0x", "code "]) + number(100, 1000),
            "order": lambda: _pick(rng, ["A-", "#", "PO ", "B"]) + number(1000, 10000),
            "inv": lambda: _pick(rng, ["R-", "INV-", "RE "]) + number(1000, 10000),
            "cust": lambda: _pick(rng, ["K-", "C", "#"]) + number(1000, 10000),
            "when": lambda: _pick(rng, bank["when"]),
            "when_cap": lambda: _pick(rng, bank["when_cap"]),
            "ago": lambda: _pick(rng, bank["ago"]),
            "other": lambda: slots["others"][0],
        }
        draw |= {"other2": lambda: slots["others"][1], "inv2": draw["inv"]}
        draw |= {"dev2": draw["dev"], "app2": draw["app"]}
        slots[name] = draw[name]()
    return slots[name]


def _mislabel(rng, queue: str) -> str:
    """Give the queue that the ticket is labeled with: nearly always its own."""
    draw = rng.random()
    for wrong, probability in MISLABELED.get(queue, ()):
        if draw < probability:
            return wrong
        draw -= probability
    return queue


def _pick(rng, options, weights=None):
    """Draw one of `options`, with equal or the given weights."""
    if weights is None:
        return options[int(rng.random() * len(options))]
    draw = rng.random() * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        draw -= weight
        if draw < 0:
            return option
    return options[-1]


def _shuffle(rng, items) -> list:
    """Give the items in random order."""
    return [item for _, _, item in sorted((rng.random(), i, x) for i, x in enumerate(items))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Rewrite tickets.csv.")
    parser.add_argument("--output", type=Path, default=HERE / "tickets.csv")
    parser.add_argument("--rows", type=int, default=SHIPPED_ROWS)
    parser.add_argument("--seed", type=int, default=SHIPPED_SEED)
    args = parser.parse_args()
    write_csv(args.output, draw_tickets(args.rows, seed=args.seed))
    print(f"wrote {args.rows} tickets to {args.output}")
