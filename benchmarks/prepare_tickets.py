"""How long it takes from a CSV file of tickets to the JSON Lines files, beside the plain way.

The plain way is pandas.read_csv, dropna, a random split and a loop over rows, as in most tutorials.
It drops tickets without a subject, counts no tokens, and its test split holds near copies of
training tickets; the times tell what it costs to do better.

    python benchmarks/prepare_tickets.py                    # 28,587 tickets, as many as Kaggle's
    python benchmarks/prepare_tickets.py --rows 1000000     # a few minutes, after making the file
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KAGGLE_ROWS = 28_587


def main() -> None:
    """Make the tickets, run both ways, each in its own process, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=KAGGLE_ROWS, help="number of tickets")
    parser.add_argument("--csv", type=Path, help="a file to use instead of generated tickets")
    parser.add_argument("--tokenizer", default=str(ROOT / "data" / "tiny-gpt-oss"))
    parser.add_argument("--seq-length", type=int, default=512)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        csv = options.csv or make_csv(Path(folder) / "tickets.csv", options.rows)
        print(f"{csv.stat().st_size / 2**20:,.0f} MiB of CSV")
        for way in (run_plain, run_ticketlib):
            arguments = (way.__name__, csv, Path(folder), options.tokenizer, options.seq_length)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pool.apply(measure, arguments)


def make_csv(path: Path, rows: int) -> Path:
    """Write generated tickets in the proportions of the Kaggle file."""
    spec = importlib.util.spec_from_file_location("make_tickets", ROOT / "data/make_tickets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_csv(path, module.draw_tickets(rows, seed=7))
    return path


def measure(way: str, csv: Path, folder: Path, tokenizer: str, seq_length: int) -> None:
    """Print seconds, peak memory so far and a remark for each step of a way, as it ends."""
    sys.path.insert(0, str(ROOT))
    steps = globals()[way](csv, folder / way, tokenizer, seq_length)
    next(steps)  # Imports are not measured.
    print(f"\n{way.removeprefix('run_'):10}{'seconds':>9}{'peak GiB':>10}")
    total, start = 0.0, time.perf_counter()
    for name, remark in steps:
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name:10}{seconds:9.1f}{peak:10.1f}  {remark}", flush=True)
        total += seconds
        start = time.perf_counter()
    print(f"{'all':10}{total:9.1f}")


def run_plain(csv: Path, folder: Path, tokenizer: str, seq_length: int):
    """Read, drop, split at random, write."""
    import pandas as pd
    from sklearn.model_selection import train_test_split

    folder.mkdir()
    yield
    tickets = pd.read_csv(csv)
    yield "load", f"{len(tickets):,} rows"
    tickets = tickets.dropna(subset=["subject", "body", "queue"])
    training, rest = train_test_split(tickets, train_size=0.8, random_state=0)
    yield "split", f"{len(tickets):,} rows left"
    for name, part in (("training", training), ("rest", rest)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for _, row in part.iterrows():
                prompt = f"Subject: {row['subject']}\n\nBody: {row['body']}\n\nDepartment:"
                file.write(json.dumps({"input": prompt, "output": row["queue"]}) + "\n")
    yield "write", ""


def run_ticketlib(csv: Path, folder: Path, tokenizer: str, seq_length: int):
    """Load, group, split, render and write, as notebook 02 does."""
    from transformers import AutoTokenizer

    from ticketlib import jsonl, rendering, splits
    from ticketlib.tickets import load_tickets

    folder.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    yield
    tickets, report = load_tickets(csv)
    yield "load", f"{len(tickets):,} rows, {len(report)} lines of report"
    groups = splits.group_paraphrases(tickets)
    yield "group", f"{groups.nunique():,} groups, largest {groups.value_counts().max()}"
    split = splits.split_tickets(tickets, groups)
    yield "split", f"{(split == 'training').mean():.1%} training"
    limits = {"tokenizer": tokenizer, "seq_length": seq_length}
    queues = sorted(tickets["queue"].unique())
    records = rendering.render_records(tickets, queues=queues, **limits)
    yield "render", f"{records['needed'].sum():,} tokens, {(records['cut'] > 0).sum()} cut"
    for name in splits.SPLITS:
        part = records.loc[split == name, ["input", "output", "ticket_id"]].to_dict("records")
        jsonl.write_jsonl(folder / f"{name}.jsonl", part)
    yield "write", ""


if __name__ == "__main__":
    main()
