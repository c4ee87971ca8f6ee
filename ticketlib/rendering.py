"""Prompts and answers as tokens: counted, cut to fit, and made records of the training files."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ticketlib.prompts import render_answer, render_prompt
from ticketlib.tickets import check_tickets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 10_000  # Texts that are tokenized at a time; their ids are Python lists.


def count_tokens(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Number of tokens of each text, with none added.

    Args:
        texts: Texts, [n].
        tokenizer: Any Hugging Face tokenizer.
    """
    counts: list[int] = []
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        ids = tokenizer(batch, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        counts += map(len, ids)
    return counts


def tokenize_queues(
    queues: Sequence[str], tokenizer: "PreTrainedTokenizerBase", *, prompt_format: str = "harmony"
) -> pd.DataFrame:
    """The tokens of each queue's answer, on which alone the loss is computed.

    Args:
        queues: Names of the queues.
        tokenizer: Any Hugging Face tokenizer.
        prompt_format: "harmony" or "plain".

    Returns:
        A row for each queue (index `queue`) with its `tokens` (texts), their number `length` and
        `continued_by`, the queues whose answer begins with all of these tokens. A warning names
        the queues that have such.
    """
    answers = [render_answer(queue, prompt_format=prompt_format) for queue in queues]
    ids = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    longer = [
        [
            queue
            for queue, other in zip(queues, ids, strict=True)
            if other[: len(own)] == own != other
        ]
        for own in ids
    ]
    if any(longer):
        pairs = zip(queues, longer, strict=True)
        shown = "; ".join(f"{queue!r} begins {others}" for queue, others in pairs if others)
        warnings.warn(
            f"Told apart by the end token only: {shown}. Never score or generate without it.",
            stacklevel=2,
        )
    tokens = [[tokenizer.decode([i]) for i in own] for own in ids]
    return pd.DataFrame(
        {"tokens": tokens, "length": [*map(len, ids)], "continued_by": longer},
        index=pd.Index(queues, name="queue"),
    )


def fit_prompt(
    subject: str,
    body: str,
    *,
    queues: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    seq_length: int,
    prompt_format: str = "harmony",
) -> tuple[str, int]:
    """The prompt, with the end of the body cut off so that the longest answer still fits.

    NeMo would cut the end of the prompt instead, which is the cue before the answer.

    Args:
        subject: Subject line, never cut.
        body: Text of the ticket.
        queues: Names of all queues.
        tokenizer: Any Hugging Face tokenizer.
        seq_length: Most tokens that prompt, longest answer and end token may have together.
        prompt_format: "harmony" or "plain".

    Returns:
        The prompt, which is `prompts.render_prompt`'s where all fits; and how many tokens it lost.

    Raises:
        ValueError: If the prompt does not fit even with an empty body.
    """

    def render(kept: str) -> str:
        return render_prompt(subject, kept, queues=queues, prompt_format=prompt_format)

    def count(text: str) -> int:
        return count_tokens([text], tokenizer)[0]

    longest = _count_longest(queues, tokenizer, prompt_format)
    room, whole, bare = seq_length - longest, count(render(body)), count(render(""))
    if whole <= room:
        return render(body), 0
    if bare > room:
        raise ValueError(
            f"seq_length is {seq_length}, but this ticket needs {bare + longest} tokens without "
            f"its body. Set seq_length to more than that, or shorten the subject {subject[:60]!r}."
        )
    fits, too_long = 0, len(body)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if count(render(body[:middle].rstrip())) <= room:
            fits = middle
        else:
            too_long = middle
    prompt = render(body[:fits].rstrip())
    return prompt, whole - count(prompt)


def render_records(
    tickets: pd.DataFrame,
    *,
    queues: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    seq_length: int,
    prompt_format: str = "harmony",
) -> pd.DataFrame:
    """Prompt and answer of each ticket, the ends of bodies cut where they are too long.

    Args:
        tickets: Frame with `ticket_id`, `subject`, `body` and `queue`.
        queues: Names of all queues.
        tokenizer: Any Hugging Face tokenizer.
        seq_length: Most tokens that a prompt with the longest answer and the end token may have.
        prompt_format: "harmony" or "plain".

    Returns:
        Columns `input`, `output` and `ticket_id`, as a JSON Lines record has them; `needed`, the
        `seq_length` that would not cut the ticket; `cut`, the number of tokens that were. Index as
        `tickets`.

    Raises:
        ValueError: If a ticket is not usable or of another queue, or does not fit without its body.
    """
    check_tickets(tickets, ("ticket_id", "subject", "body", "queue"))
    if unknown := set(tickets["queue"]) - {*queues}:
        raise ValueError(f"Tickets are in queues {sorted(unknown)}; known are {list(queues)}.")
    style = {"queues": queues, "prompt_format": prompt_format}
    texts = list(zip(tickets["subject"], tickets["body"], strict=True))
    prompts = [render_prompt(subject, body, **style) for subject, body in texts]
    answers = {queue: render_answer(queue, prompt_format=prompt_format) for queue in queues}
    longest = _count_longest(queues, tokenizer, prompt_format)
    needed = np.array(count_tokens(prompts, tokenizer)) + longest
    cut = np.zeros_like(needed)
    fit = style | {"tokenizer": tokenizer, "seq_length": seq_length}
    for i in np.flatnonzero(needed > seq_length):
        prompts[i], cut[i] = fit_prompt(*texts[i], **fit)
    return pd.DataFrame(
        {
            "input": prompts,
            "output": [answers[queue] for queue in tickets["queue"]],
            "ticket_id": tickets["ticket_id"].to_numpy(),
            "needed": needed,
            "cut": cut,
        },
        index=tickets.index,
    )


def _count_longest(
    queues: Sequence[str], tokenizer: "PreTrainedTokenizerBase", prompt_format: str
) -> int:
    """Tokens of the longest answer with its end token."""
    answers = [render_answer(queue, prompt_format=prompt_format) for queue in queues]
    return max(count_tokens(answers, tokenizer)) + 1
