"""From a ticket to the text that the model reads and writes, and from its answer to a queue.

Training, evaluation and serving render with these functions, so that all see the same tokens.
A training text is exactly `input + output + eos`.

`harmony` is what a chat server makes of a developer message and a user message with gpt-oss's own
chat template (reasoning low, the date frozen), with the answer in the final channel. `plain` is
the prompt of NVIDIA's tutorial.
"""

import re
from collections.abc import Sequence

PROMPT_FORMATS = ("harmony", "plain")
# The template writes today's date; a model tuned on one date would see another every day.
FROZEN_DATE = "2025-08-05"

SYSTEM = (
    "You are ChatGPT, a large language model trained by OpenAI.\n"
    "Knowledge cutoff: 2024-06\n"
    f"Current date: {FROZEN_DATE}\n\n"
    "Reasoning: low\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
INSTRUCTIONS = (
    "Route the customer's ticket to the queue that should handle it. "
    "Answer with the queue's name only.\n\nQueues:\n"
)
PLAIN = "A customer has submitted a support ticket. Please route it to the correct department."
FINAL = "<|channel|>final<|message|>"

_SPECIAL = re.compile(r"<\|(?=[^\s<>|]+\|>)")
_END = re.compile(r"<\|(?:return|endoftext)\|>")


def render_prompt(
    subject: str, body: str, *, queues: Sequence[str], prompt_format: str = "harmony"
) -> str:
    """What the model reads: `input` of a training record, and the prompt at inference.

    Args:
        subject: Subject line; its line is left out where this is "".
        body: Text of the ticket.
        queues: Names of all queues, in the order in which the prompt lists them (not in `plain`).
        prompt_format: "harmony" or "plain".

    Raises:
        ValueError: If a text is not text, a queue's name is not usable, or the format is unknown.
    """
    ticket = render_ticket(subject, body)
    if _check_format(prompt_format) == "plain":
        return f"{PLAIN}\n\n{ticket}\n\nDepartment:"
    return (
        f"<|start|>system<|message|>{SYSTEM}<|end|>"
        f"<|start|>developer<|message|># Instructions\n\n{render_instructions(queues)}\n\n<|end|>"
        f"<|start|>user<|message|>{ticket}<|end|>"
        "<|start|>assistant"
    )


def render_answer(queue: str, *, prompt_format: str = "harmony") -> str:
    """What the model writes before its end token: `output` of a training record.

    Args:
        queue: Name of the queue.
        prompt_format: "harmony" or "plain".

    Raises:
        ValueError: If the name is not usable, or the format is unknown.
    """
    prefix = " " if _check_format(prompt_format) == "plain" else FINAL
    return prefix + _check_queue(queue)


def render_ticket(subject: str, body: str) -> str:
    """The ticket as the prompt holds it: content of the user message for a chat server.

    Args:
        subject: Subject line; its line is left out where this is "".
        body: Text of the ticket.

    Raises:
        ValueError: If either is not text, such as pandas' NaN.
    """
    for name, text in (("subject", subject), ("body", body)):
        if not isinstance(text, str):
            raise ValueError(f"{name} is {text!r}; it must be text. Read with load_tickets.")
    subject = f"Subject: {neutralize(subject)}\n\n" if subject else ""
    return f"{subject}Body: {neutralize(body)}"


def render_instructions(queues: Sequence[str]) -> str:
    """The task and the queues: content of the developer message for a chat server.

    Args:
        queues: Names of the queues.

    Raises:
        ValueError: If there is none, one is not usable, or one occurs twice.
    """
    if not queues or isinstance(queues, str) or len(set(queues)) < len(queues):
        raise ValueError(f"queues is {queues!r}; give a list of names, each once.")
    return INSTRUCTIONS + "\n".join(f"- {_check_queue(queue)}" for queue in queues)


def render_messages(subject: str, body: str, *, queues: Sequence[str]) -> list[dict[str, str]]:
    """A ticket as the messages of a chat request: the instructions and the ticket.

    Args:
        subject: Of the ticket, "" where it has none.
        body: Of the ticket.
        queues: Names of all queues, in the order in which the prompt lists them.

    Raises:
        ValueError: As `render_prompt`.
    """
    return [
        {"role": "developer", "content": render_instructions(queues)},
        {"role": "user", "content": render_ticket(subject, body)},
    ]


def neutralize(text: str) -> str:
    """The text with a space in all that looks like a special token: `< |end|>` for `<|end|>`.

    A tokenizer makes special tokens of such text wherever it stands; a customer could end the
    message and speak as the system. All else, such as `<name>`, stays.

    Args:
        text: Text of a ticket.
    """
    return _SPECIAL.sub("< |", text)


def parse_answer(text: str, queues: Sequence[str], *, prompt_format: str = "harmony") -> str | None:
    """The queue that an answer names, or None unless it names one queue and says nothing else.

    Case and spacing do not count. In `harmony` the answer is the final channel's message; special
    tokens may have been dropped (`finalBilling`), as NeMo's generate does, and the message may
    stand alone. What follows the end token is no part of the answer.

    Args:
        text: What the model wrote, raw.
        queues: Names of the queues.
        prompt_format: "harmony" or "plain".

    Raises:
        ValueError: If the format is unknown.
    """
    for candidate in _find_messages(text, _check_format(prompt_format)):
        plain = " ".join(candidate.split())
        same = [queue for queue in queues if queue == plain]
        same = same or [q for q in queues if " ".join(q.casefold().split()) == plain.casefold()]
        if len(same) == 1:
            return same[0]
    return None


def read_answer(
    text: str, queues: Sequence[str], *, prompt_format: str = "harmony"
) -> tuple[str | None, str]:
    """The queue that an answer means, and how it says so; wider than `parse_answer`.

    Names are looked for as whole words, longer ones first, so that `Technical Support` is not
    `Support`; case counts only in names of up to three letters, such as `IT`.

    Args:
        text: What the model wrote, raw.
        queues: Names of the queues.
        prompt_format: "harmony" or "plain".

    Returns:
        A queue with "exact" (`parse_answer` agrees) or "named" (one queue among other words), or
        None with "several", "unknown" (no queue, a part of a name, or no final message) or "empty".

    Raises:
        ValueError: If the format is unknown.
    """
    if queue := parse_answer(text, queues, prompt_format=prompt_format):
        return queue, "exact"
    messages = _find_messages(text, prompt_format)
    if not messages:
        return None, "unknown"
    message = " ".join(messages[-1].split())
    if not message:
        return None, "empty"
    patterns = [
        f"(?P<q{i}>{'' if len(queue) < 4 else '(?i:'}{re.escape(' '.join(queue.split()))}"
        f"{'' if len(queue) < 4 else ')'})"
        for i, queue in sorted(enumerate(queues), key=lambda item: -len(item[1]))
    ]
    found = re.finditer(rf"(?<!\w)(?:{'|'.join(patterns)})(?!\w)", message)
    named = {queues[int(match.lastgroup[1:])] for match in found}
    if len(named) == 1:
        return named.pop(), "named"
    return None, "several" if named else "unknown"


def _find_messages(text: str, prompt_format: str) -> list[str]:
    """What may be the answer's message, without special tokens; none if it never came to one."""
    answer = _END.split(text, maxsplit=1)[0]
    if prompt_format == "plain":
        return [answer]
    if FINAL in answer:
        # Two final messages are no answer.
        parts = answer.split(FINAL)
        return [parts[1].strip().removesuffix("<|end|>")] if len(parts) == 2 else []
    if "<|channel|>" in answer:  # It was cut while the model was thinking.
        return []
    return [answer, answer.strip().removeprefix("final")]


def _check_format(prompt_format: str) -> str:
    if prompt_format not in PROMPT_FORMATS:
        raise ValueError(f"prompt_format is {prompt_format!r}; accepted are {PROMPT_FORMATS}.")
    return prompt_format


def _check_queue(queue: str) -> str:
    if not isinstance(queue, str) or not queue or queue != queue.strip() or "\n" in queue:
        raise ValueError(
            f"Queue {queue!r} is not usable; a name is text of one line without space around it."
        )
    if neutralize(queue) != queue:
        raise ValueError(f"Queue {queue!r} looks like a special token of the model; rename it.")
    return queue
