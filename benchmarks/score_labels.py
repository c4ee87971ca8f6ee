"""How long it takes to score all queues of a ticket, beside other ways to the same end.

    python benchmarks/score_labels.py                                   # the shipped tiny model
    python benchmarks/score_labels.py --model nemo-experiments/results/demo/exported --tickets 500

"one by one" runs prompt and answer through the model for each queue, as a loop over queues does;
"one pass" is `score_labels`; "first tokens" is the same with answers cut where they first differ,
which decides between queues but gives no exact probability; "generated" writes the answer.
"""

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ticketlib import prompts, scoring  # noqa: E402
from ticketlib.tickets import load_tickets  # noqa: E402


def main() -> None:
    """Time each way on the same tickets, warmed up, and print tickets a second."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(ROOT / "data" / "tiny-gpt-oss"))
    parser.add_argument("--csv", default=str(ROOT / "data" / "tickets.csv"))
    parser.add_argument("--tickets", type=int, default=200)
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    options = parser.parse_args()
    model, tokenizer = scoring.load_model(options.model)
    tickets, _ = load_tickets(options.csv)
    queues = sorted(tickets["queue"].unique())
    tickets = tickets.sample(min(options.tickets, len(tickets)), random_state=0)
    texts = [
        prompts.render_prompt(subject, body, queues=queues)
        for subject, body in zip(tickets["subject"], tickets["body"], strict=True)
    ]
    answers = [prompts.render_answer(queue) for queue in queues]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"{device}, {os.cpu_count()} cores, {len(texts)} tickets, {len(queues)} queues")

    scoring.score_labels(model, tokenizer, texts[:8], answers)
    seconds, exact = {}, {}
    for limit in options.batch_tokens:
        name = f"one pass, {limit:,} tokens a batch"
        seconds[name], exact[name] = timed(
            lambda limit=limit: scoring.score_labels(
                model, tokenizer, texts, answers, max_batch_tokens=limit
            )
        )
    best = min(seconds, key=seconds.get)
    limit = options.batch_tokens[list(seconds).index(best)]
    seconds["first tokens"], first = timed(
        lambda: score_first(model, tokenizer, texts, answers, limit)
    )
    seconds["one by one"], naive = timed(lambda: score_one_by_one(model, tokenizer, texts, answers))
    seconds["generated"], _ = timed(
        lambda: scoring.generate_answers(model, tokenizer, texts, max_new_tokens=16)
    )
    for name, value in seconds.items():
        rate, ratio = len(texts) / value, value / seconds[best]
        print(f"{name:32}{value:8.2f} s {rate:8.1f} tickets/s {ratio:6.2f} x the time of the best")
    scores = exact[best]
    print(f"one by one differs by up to {abs(naive - scores).max():.1e}")
    same = (first.argmax(axis=1) == scores.argmax(axis=1)).mean()
    print(f"first tokens give the same queue for {same:.1%}")


def timed(function) -> tuple[float, object]:
    """Seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def score_first(model, tokenizer, texts, answers, limit) -> np.ndarray:
    """Log-probability of each answer up to where it differs from all others."""
    ids = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    ids = [[*own, tokenizer.eos_token_id] for own in ids]
    cut = []
    for own in ids:
        length = next(n for n in range(1, len(own) + 1) if sum(o[:n] == own[:n] for o in ids) == 1)
        cut.append(own[:length])
    tree = scoring.build_answer_tree(cut)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    lengths = [len(row) + len(tree.tokens) for row in rows]
    scores = np.empty((len(texts), len(answers)))
    for batch in scoring._batch_by_length(lengths, lambda longest, n: longest * n <= limit):
        scores[batch] = scoring._score_batch(model, [rows[row] for row in batch], tree)
    return scores


@torch.inference_mode()
def score_one_by_one(model, tokenizer, texts, answers) -> np.ndarray:
    """Log-probability of each answer, one forward pass of one ticket and one answer at a time."""
    scores = np.empty((len(texts), len(answers)))
    for row, text in enumerate(texts):
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        for column, answer in enumerate(answers):
            ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
            ids = [*ids, tokenizer.eos_token_id]
            tokens = torch.tensor([prompt + ids], device=model.device)
            logits = model(tokens, logits_to_keep=len(ids) + 1).logits[0, :-1].float()
            chosen = logits.log_softmax(-1)[range(len(ids)), ids]
            scores[row, column] = chosen.double().sum().item()
    return scores


if __name__ == "__main__":
    main()
