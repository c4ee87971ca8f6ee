"""Records fit the limit and lose the end of the body only; queues' tokens are told apart."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketlib.prompts import PROMPT_FORMATS, render_answer, render_prompt
from ticketlib.rendering import count_tokens, fit_prompt, render_records, tokenize_queues

QUEUES = ["Technical Support", "Billing & Payments", "IT", "007", "Größe 👍"]


def frame(*rows):
    columns = ["ticket_id", "subject", "body", "queue"]
    return pd.DataFrame([(n, *row) for n, row in enumerate(rows, 1)], columns=columns)


def test_tokens_are_counted_as_the_tokenizer_does(tokenizer, monkeypatch):
    texts = ["", "Größe", "<|start|>assistant", "👍" * 9, "end"]
    expected = [len(tokenizer.encode(text)) for text in texts]
    assert count_tokens(texts, tokenizer) == expected
    assert count_tokens([], tokenizer) == []
    monkeypatch.setattr("ticketlib.rendering._BATCH", 2)
    assert count_tokens(texts, tokenizer) == expected


@given(data=st.data(), prompt_format=st.sampled_from(PROMPT_FORMATS))
def test_only_the_end_of_the_body_is_cut(tokenizer, data, prompt_format):
    subject, body = data.draw(st.text(max_size=10)), data.draw(st.text(max_size=60)) * 3
    style = {"queues": QUEUES, "prompt_format": prompt_format}
    answers = [render_answer(queue, prompt_format=prompt_format) for queue in QUEUES]
    longest = max(count_tokens(answers, tokenizer)) + 1
    prompts = [render_prompt(subject, text, **style) for text in (body, "")]
    whole, bare = count_tokens(prompts, tokenizer)
    seq_length = data.draw(st.integers(bare - 2, whole + 2)) + longest
    fit = style | {"tokenizer": tokenizer, "seq_length": seq_length}
    if bare + longest > seq_length:
        with pytest.raises(ValueError, match=f"seq_length is {seq_length}, .* {bare + longest} "):
            fit_prompt(subject, body, **fit)
        return
    prompt, cut = fit_prompt(subject, body, **fit)
    now = count_tokens([prompt], tokenizer)[0]
    assert now + longest <= seq_length and cut == whole - now
    if whole + longest <= seq_length:
        assert (prompt, cut) == (prompts[0], 0)
        return
    # The prompt of some beginning of the body, without the space at its end. One character more
    # (and the space before it) does not fit.
    lengths = [n for n in range(len(body) + 1) if body[:n] == body[:n].rstrip() or n == 0]
    beginnings = [render_prompt(subject, body[:n].rstrip(), **style) for n in lengths]
    place = beginnings.index(prompt)
    following = [text for text in beginnings[place + 1 :] if text != prompt]
    assert not following or count_tokens(following[:1], tokenizer)[0] + longest > seq_length


@pytest.mark.parametrize("prompt_format", PROMPT_FORMATS)
def test_records_are_prompts_and_answers_and_needed_is_what_cuts_none(tokenizer, prompt_format):
    tickets = frame(
        ("Größe", "short", "IT"), ("", "long " * 90, "007"), ("x", "mid " * 30, "Größe 👍")
    )
    tickets.index = [7, 3, 5]
    options = {"queues": QUEUES, "tokenizer": tokenizer, "prompt_format": prompt_format}
    whole = render_records(tickets, seq_length=10_000, **options)
    assert list(whole["cut"]) == [0, 0, 0] and list(whole.index) == [7, 3, 5]
    limit = int(whole["needed"].max())
    assert render_records(tickets, seq_length=limit, **options).equals(whole)
    fewer = render_records(tickets, seq_length=limit - 1, **options)
    assert fewer["cut"].gt(0).tolist() == [False, True, False]
    assert fewer["needed"].equals(whole["needed"])
    for i, row in fewer.iterrows():
        ticket = tickets.loc[i]
        fit = options | {"seq_length": limit - 1}
        prompt, cut = fit_prompt(ticket["subject"], ticket["body"], **fit)
        assert (row["input"], row["cut"], row["ticket_id"]) == (prompt, cut, ticket["ticket_id"])
        assert row["output"] == render_answer(ticket["queue"], prompt_format=prompt_format)
        texts = [row["input"], row["output"]]
        assert sum(count_tokens(texts, tokenizer)) + 1 <= limit - 1


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (("a", "b", "Other"), r"in queues \['Other'\]; known are"),
        (("a", "", "IT"), "'body' is ''"),
        ((float("nan"), "b", "IT"), "'subject' is nan"),
    ],
)
def test_unusable_tickets_are_named(byte_tokenizer, row, fault):
    with pytest.raises(ValueError, match=fault):
        render_records(
            frame(("a", "b", "IT"), row), queues=QUEUES, tokenizer=byte_tokenizer, seq_length=999
        )


@pytest.mark.parametrize("prompt_format", PROMPT_FORMATS)
def test_queues_are_shown_as_their_tokens(tokenizer, prompt_format):
    table = tokenize_queues(QUEUES, tokenizer, prompt_format=prompt_format)
    for queue, row in table.iterrows():
        ids = tokenizer.encode(render_answer(queue, prompt_format=prompt_format))
        assert row["length"] == len(row["tokens"]) == len(ids)
        assert row["tokens"] == [tokenizer.decode([i]) for i in ids]
        assert row["continued_by"] == []


def test_a_queue_that_begins_another_is_warned_of(byte_tokenizer):
    queues = ["IT", "IT Support", "Support"]
    with pytest.warns(UserWarning, match=r"end token only: 'IT' begins \['IT Support'\]\. Never"):
        table = tokenize_queues(queues, byte_tokenizer)
    assert table["continued_by"].tolist() == [["IT Support"], [], []]
