"""How fast LoRA on gpt-oss-20b trains on this GPU, beside NeMo as it comes and transformers + peft.

The shape is gpt-oss-20b's, the weights are random, and the tickets are made up: lengths are
log-normal around 131 tokens, and all ways read the same. Tokens are those of tickets, without
padding. A step is about 64 tickets; rates are those of the later half of the steps, with all that
happens in between, since the first steps compile. "start" is the time before the first step.
TFLOP/s are tokens/s x 4 x 3.6e9: two operations forward and two for the gradients of the inputs,
for each parameter that a token meets, with the head at every position, as the plain ways compute
it; ours computes it at the answers only, so its figure is up to 16 % too high. Their share is of
790 TFLOP/s, what an H100 gives for large bf16 products.

    python benchmarks/gpu_lora.py                                # 9 minutes on one H100 80GB
    python benchmarks/gpu_lora.py --layers 2 --steps 6 --only ours

Each way has its own process. One that fails or takes too long is a row with the reason, and the
rates of the steps that it did, if any.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_lora_way import GLOBAL_BATCH, WAYS, read_tickets

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 790  # TFLOP/s


def main() -> None:
    """Make the tickets, run each way in a process of its own, and print a row as it ends."""
    options = parse_options()
    options.tokenizer = options.tokenizer.resolve()
    deadline = time.time() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        mean = make_tickets(options)
        print(
            f"{options.layers} layers, about {GLOBAL_BATCH} tickets a step, {mean:.0f} tokens each"
        )
        print(
            f"{'':36}{'tickets/s':>10}{'tokens/s':>10}{'TFLOP/s':>9}{'share':>7}{'peak GiB':>10}"
            f"{'start s':>9}{'first step s':>14}{'steps':>7}"
        )
        results = []
        for way in options.only or WAYS:
            limit = min(options.timeout, deadline - time.time())
            results.append(run_way(way, options, limit))
            print(show_row(way, results[-1], options), flush=True)
    found = {result["card"]: None for result in results if "card" in result}
    versions = {text: None for result in results for text in result.get("versions", [])}
    print(f"{time.strftime('%Y-%m-%d')}, {', '.join([*found, *versions])}")


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=24, help="fewer for a quick try")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps a way")
    parser.add_argument("--only", nargs="+", choices=WAYS, help="these ways instead of all")
    parser.add_argument("--timeout", type=float, default=240, help="seconds for one way")
    parser.add_argument("--minutes", type=float, default=9, help="for all of them")
    parser.add_argument("--pack-tokens", type=int, default=8192, help="tokens of a row of ours")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "data" / "tiny-gpt-oss")
    parser.add_argument("--logs", type=Path, help="folder to keep what each way printed")
    parser.add_argument("--peft-pythonpath", help="PYTHONPATH for another transformers and peft")
    return parser.parse_args(arguments)


def make_tickets(options: argparse.Namespace) -> float:
    """Write tickets of words from data/tickets.csv, as many as the steps read; give mean tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer, trust_remote_code=False)
    with (ROOT / "data" / "tickets.csv").open(encoding="utf-8", newline="") as file:
        words = " ".join(ticket["body"] for ticket in csv.DictReader(file)).split()[:100_000]
    costs = [len(ids) for ids in tokenizer([f" {word}" for word in words])["input_ids"]]
    draw = random.Random(0)
    for name, count in (("training", (options.steps + 4) * GLOBAL_BATCH), ("validation", 256)):
        with (options.folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(count):
                missing = min(max(draw.lognormvariate(4.79, 0.42), 40), 460) - 16  # Of the frame
                begin = end = draw.randrange(len(words) - 500)
                while missing > 0:
                    missing -= costs[end]
                    end += 1
                prompt = f"Subject: Help\n\nBody: {' '.join(words[begin:end])}\n\nDepartment:"
                queue = draw.choice(["Customer Service", "Technical Support", "Human Resources"])
                file.write(json.dumps({"input": prompt, "output": queue}) + "\n")
    tickets = read_tickets(options)
    return sum(map(len, tickets)) / len(tickets) - 1


def run_way(way: str, options: argparse.Namespace, limit: float) -> dict:
    """Give the last line of figures of a way, with a `reason` where it did not do all steps."""
    log = (options.logs or options.folder) / f"{way}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(options, name) for name in ("layers", "steps", "pack_tokens")}
    settings |= {"way": way, "folder": str(options.folder), "tokenizer": str(options.tokenizer)}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_lora_way.py"), json.dumps(settings)]
    environment = dict(os.environ)
    if way == "peft" and options.peft_pythonpath is not None:
        environment["PYTHONPATH"] = options.peft_pythonpath
    reason = f"{limit:.0f} s were over"
    with log.open("wb") as file:
        streams = {"stdout": file, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
        try:
            code = process.wait(max(limit, 0))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # Compilers may outlive it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    result = json.loads(([line for line in lines if line.startswith('{"steps"')] or ["{}"])[-1])
    if result.get("steps") != options.steps:
        if code is not None:
            errors = [line for line in lines if "Error: " in line] or lines or ["no output"]
            reason = f"ended with {code}: {errors[-1][:150]}"
            print(*lines[-25:], sep="\n", file=sys.stderr)
        result["reason"] = reason
    return result


def show_row(way: str, result: dict, options: argparse.Namespace) -> str:
    """Give a row of the table."""
    row, reason = f"{WAYS[way][0]:36}", result.get("reason", "")
    if "tokens" not in result:
        return f"{row}  {reason}"
    rate = result["tokens"] / result["seconds"]
    tflops = rate * 4 * count_active(options.layers) / 1e12
    return (
        f"{row}{result['tickets'] / result['seconds']:10.1f}{rate:10,.0f}{tflops:9.1f}"
        f"{tflops / LIMIT:7.1%}{result['peak']:10.1f}{result['start']:9.0f}{result['first']:14.1f}"
        f"{result['steps']:7}  {reason}"
    ).rstrip()


def count_active(layers: int) -> int:
    """Parameters of gpt-oss that a token meets, embedding aside: 3.6e9 with 24 layers."""
    hidden, query, keys, chosen, vocabulary = 2880, 64 * 64, 8 * 64, 4, 201_088
    attention = hidden * (query + 2 * keys) + query * hidden
    return layers * (attention + chosen * 3 * hidden * hidden) + hidden * vocabulary


if __name__ == "__main__":
    main()
