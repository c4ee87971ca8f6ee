"""Prompts are gpt-oss's own, token for token; no ticket can speak as another; answers read back."""

import json
from pathlib import Path

import pytest
from gptoss_tokenizers import SPECIAL
from hypothesis import given
from hypothesis import strategies as st

from ticketlib.prompts import (
    FROZEN_DATE,
    PROMPT_FORMATS,
    neutralize,
    parse_answer,
    read_answer,
    render_answer,
    render_instructions,
    render_prompt,
    render_ticket,
)

QUEUES = ["Technical Support", "Support", "Billing & Payments", "IT", "007", "Größe 👍"]
# Text of tickets, special tokens and their parts included.
PIECES = st.one_of(st.text(), st.sampled_from([*SPECIAL, "<|", "|>", "<", "|", "<|start", "end|>"]))
TEXTS = st.lists(PIECES, max_size=6).map("".join)


@pytest.fixture(scope="module")
def chat_template():
    """The template of gpt-oss, as the tiny model has it."""
    path = Path(__file__).parents[1] / "data" / "tiny-gpt-oss" / "chat_template.jinja"
    if not path.is_file():
        pytest.skip(f"{path} not found")
    return path.read_text(encoding="utf-8")


def chat(tokenizer, template, messages, **options):
    return tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        reasoning_effort="low",
        strftime_now=lambda form: FROZEN_DATE,
        **options,
    )


@pytest.mark.parametrize("role", ["developer", "system"])
@given(subject=TEXTS, body=TEXTS)
def test_prompts_are_what_a_chat_server_renders(tokenizer, chat_template, role, subject, body):
    messages = [
        {"role": role, "content": render_instructions(QUEUES)},
        {"role": "user", "content": render_ticket(subject, body)},
    ]
    prompt = render_prompt(subject, body, queues=QUEUES)
    options = {"add_generation_prompt": True}
    assert chat(tokenizer, chat_template, messages, tokenize=False, **options) == prompt
    served = chat(tokenizer, chat_template, messages, **options)
    assert served == tokenizer(prompt, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("queue", QUEUES)
def test_a_training_text_is_what_the_template_renders(tokenizer, chat_template, queue):
    messages = [
        {"role": "developer", "content": render_instructions(QUEUES)},
        {"role": "user", "content": render_ticket("Größe", "x\n\ny")},
        {"role": "assistant", "content": queue},
    ]
    prompt, answer = render_prompt("Größe", "x\n\ny", queues=QUEUES), render_answer(queue)
    whole = chat(tokenizer, chat_template, messages, tokenize=False)
    assert prompt + answer + "<|return|>" == whole
    # NeMo tokenizes input and output on their own.
    parts = [*tokenizer(prompt)["input_ids"], *tokenizer(answer)["input_ids"]]
    assert [*parts, tokenizer.eos_token_id] == chat(tokenizer, chat_template, messages)


@given(subject=TEXTS, body=TEXTS, prompt_format=st.sampled_from(PROMPT_FORMATS))
def test_no_ticket_makes_a_special_token(tokenizer, subject, body, prompt_format):
    special = set(tokenizer.get_added_vocab().values())
    options = {"queues": QUEUES, "prompt_format": prompt_format}
    prompts = [render_prompt(subject, body, **options), render_prompt("", "", **options)]
    attacked, harmless = (
        [token for token in tokenizer(prompt)["input_ids"] if token in special]
        for prompt in prompts
    )
    assert attacked == harmless


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|end|>", "< |end|>"),
        ("<|<|start|>|>", "<|< |start|>|>"),
        ("<|im-end_2|><|call|>", "< |im-end_2|>< |call|>"),
        ("<name> a <| b |> c <|| <|d", "<name> a <| b |> c <|| <|d"),
    ],
)
def test_only_what_looks_like_a_special_token_is_changed(text, expected):
    assert neutralize(text) == neutralize(neutralize(text)) == expected


def test_the_plain_prompt_is_nvidias():
    assert render_prompt("Login {0}", "a\n\nb <name>", queues=QUEUES, prompt_format="plain") == (
        "A customer has submitted a support ticket. Please route it to the correct department."
        "\n\nSubject: Login {0}\n\nBody: a\n\nb <name>\n\nDepartment:"
    )
    assert render_answer("IT", prompt_format="plain") == " IT"


@pytest.mark.parametrize("prompt_format", PROMPT_FORMATS)
def test_a_missing_subject_leaves_no_line(prompt_format):
    prompt = render_prompt("", "b", queues=QUEUES, prompt_format=prompt_format)
    assert "Subject" not in prompt and "Body: b" in prompt


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="prompt_format is 'chat'; accepted are"):
        render_prompt("a", "b", queues=QUEUES, prompt_format="chat")
    with pytest.raises(ValueError, match="subject is nan; it must be text"):
        render_prompt(float("nan"), "b", queues=QUEUES)
    for queues in ([], "IT", ["IT", "IT"], ["IT", ""], ["IT", 7], ["<|end|>"], ["a\nb"], [" IT"]):
        with pytest.raises(ValueError, match="[Qq]ueue"):
            render_prompt("a", "b", queues=queues)
    with pytest.raises(ValueError, match="Queue ' IT' is not usable"):
        render_answer(" IT")


@pytest.mark.parametrize("prompt_format", PROMPT_FORMATS)
@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("end", ["", "<|return|>", "<|return|><|endoftext|>", "<|return|> Support"])
def test_an_answer_reads_back(prompt_format, queue, end):
    answer = render_answer(queue, prompt_format=prompt_format)
    assert parse_answer(answer + end, QUEUES, prompt_format=prompt_format) == queue
    assert parse_answer(f"{queue.upper()} \n{end}", QUEUES, prompt_format=prompt_format) == queue


@pytest.mark.parametrize(
    ("text", "queue"),
    [
        ("<|start|>assistant<|channel|>final<|message|>IT<|return|>", "IT"),
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant" + render_answer("IT"), "IT"),
        ("finalTechnical Support", "Technical Support"),
        ("  technical \n support ", "Technical Support"),
        ("", None),
        ("Technical", None),
        ("Technical Suppor", None),
        ("Support / IT", None),
        ("IT.", None),
        ("I would say IT", None),
        ("IT\n\nSubject: next", None),
        ("<|channel|>analysis<|message|>IT<|return|>", None),
        (render_answer("IT") + "<|end|>" + render_answer("Support"), None),
        (render_answer("IT") + "<|end|><|start|>user<|message|>more", None),
        ("Refund Desk", None),
    ],
)
def test_anything_but_one_queue_is_no_answer(text, queue):
    assert parse_answer(text, QUEUES) == queue


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (render_answer("IT") + "<|return|>", ("IT", "exact")),
        ("IT.", ("IT", "named")),
        ("IT\n\nSubject: next", ("IT", "named")),
        ("technical  support: hangs", ("Technical Support", "named")),
        ("Technical Support, not support", (None, "several")),
        ("I would say it", (None, "unknown")),
        ("Technical", (None, "unknown")),
        ("Supporting", (None, "unknown")),
        ("Support / IT", (None, "several")),
        ("billing & payments, please", ("Billing & Payments", "named")),
        ("<|channel|>analysis<|message|>IT, I think<|return|>", (None, "unknown")),
        (render_answer("IT") + "<|end|>" + render_answer("IT"), (None, "unknown")),
        ("final", (None, "empty")),
        ("<|channel|>final<|message|><|return|>", (None, "empty")),
        ("  \n", (None, "empty")),
        ("<|return|>IT", (None, "empty")),
    ],
)
def test_free_answers_are_read_and_told_apart(text, expected):
    assert read_answer(text, QUEUES) == expected


@given(text=TEXTS, prompt_format=st.sampled_from(PROMPT_FORMATS))
def test_no_answer_breaks_the_readers(text, prompt_format):
    queue, kind = read_answer(text, QUEUES, prompt_format=prompt_format)
    parsed = parse_answer(text, QUEUES, prompt_format=prompt_format)
    assert (parsed is not None) == (kind == "exact") and parsed in (None, queue)
    assert (queue in QUEUES) == (kind in ("exact", "named"))


def test_queues_that_differ_by_case_are_told_apart():
    assert parse_answer("it", ["IT", "it"]) == "it"
    assert parse_answer("It", ["IT", "it"]) is None


def test_predictions_with_tails(shared):
    lines = (shared / "cases" / "17-predictions-with-tails.jsonl").read_text().split("\n")
    rows = [json.loads(line) for line in lines if line]
    queues = sorted({row["label"] for row in rows} | {"Product Support"})
    parsed = [parse_answer(row["prediction"], queues) for row in rows]
    hits = [number for number, queue in enumerate(parsed, 1) if queue]
    assert hits == [1, 4, 7] and all(parsed[i - 1] == rows[i - 1]["label"] for i in hits)
    read = [read_answer(row["prediction"], queues) for row in rows]
    hits = [number for number, (queue, _) in enumerate(read, 1) if queue]
    assert hits == [1, 2, 3, 4, 7, 8] and all(read[i - 1][0] == rows[i - 1]["label"] for i in hits)
    assert [kind for queue, kind in read if not queue] == ["unknown", "several", "empty", "unknown"]
