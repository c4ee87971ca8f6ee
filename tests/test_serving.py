"""A chat request to an OpenAI-compatible server gives the queue that score_labels gives.

The server is the one of transformers, unchanged, on a CPU; the client is OpenAI's; the messages are
those that `prompts` renders. The model is the shipped one after it has learned ten tickets of ten
queues by heart, so that each answer is another one.
"""

import openai
import pandas as pd
import pytest
import torch
from conftest import ROOT
from openai_server import install_server, serve
from torch.nn.utils.rnn import pad_sequence

from ticketlib import checkpoint, prompts, scoring
from ticketlib.template import TEMPLATE_FILE, render_template

TINY = ROOT / "data" / "tiny-gpt-oss"
ANSWER = {"max_tokens": 20, "temperature": 0}


@pytest.fixture(scope="module")
def tickets():
    """The first short ticket of each queue."""
    table = pd.read_csv(ROOT / "data" / "tickets.csv", keep_default_na=False)
    return table[table["body"].str.len().between(1, 159)].groupby("queue", as_index=False).head(1)


@pytest.fixture(scope="module")
def queues(tickets):
    return sorted(tickets["queue"])


@pytest.fixture(scope="module")
def texts(tickets, queues):
    """The prompt of each ticket, as for training."""
    pairs = zip(tickets["subject"], tickets["body"], strict=True)
    return [prompts.render_prompt(*ticket, queues=queues) for ticket in pairs]


@pytest.fixture(scope="module")
def messages(tickets, queues):
    pairs = zip(tickets["subject"], tickets["body"], strict=True)
    return [prompts.render_messages(*ticket, queues=queues) for ticket in pairs]


@pytest.fixture(scope="module")
def learned(tickets, texts):
    """The model that knows the tickets, and its tokenizer."""
    torch.manual_seed(0)
    model, tokenizer = scoring.load_model(TINY, dtype="float32")
    asked = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ends = [prompts.render_answer(queue) + tokenizer.eos_token for queue in tickets["queue"]]
    answered = tokenizer(ends, add_special_tokens=False)["input_ids"]
    rows = list(zip(asked, answered, strict=True))
    tokens = pad_sequence([torch.tensor(a + b) for a, b in rows], batch_first=True)
    labels = [torch.tensor([-100] * len(a) + b) for a, b in rows]
    labels = pad_sequence(labels, batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        loss = model(input_ids=tokens, labels=labels).loss
        if loss < 0.005:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.005
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def scored(learned, texts, queues):
    """The queue of each ticket, without a server."""
    answers = [prompts.render_answer(queue) for queue in queues]
    best = scoring.score_labels(*learned, texts, answers).argmax(axis=1)
    return [queues[column] for column in best]


@pytest.fixture(scope="module")
def folder(learned, tmp_path_factory):
    """The model as `export` writes it; only that its chat_template.jinja fails.

    No answer can come from that one, then.
    """
    folder = tmp_path_factory.mktemp("exported")
    model, _ = learned
    description = checkpoint.describe_model(model.config, torch.float32)
    checkpoint.write_folder(folder, TINY, description, model.state_dict().__getitem__)
    template = render_template((TINY / "chat_template.jinja").read_text("utf-8"))
    (folder / TEMPLATE_FILE).write_text(template, "utf-8")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('not this one') }}", "utf-8")
    return folder


@pytest.fixture(scope="module")
def client(folder, request):
    packages = install_server(request.config.cache.mkdir("serving"))
    template = (folder / TEMPLATE_FILE).read_text("utf-8")
    with serve(folder, packages, chat_template=template) as client:
        yield client


def test_a_chat_gives_the_queue_that_score_labels_gives(
    client, folder, learned, messages, texts, scored, queues
):
    assert set(scored) == set(queues) and len(queues) == 10
    for conversation, text, queue in zip(messages, texts, scored, strict=True):
        reply = client.chat.completions.create(model=str(folder), messages=conversation, **ANSWER)
        choice = reply.choices[0]
        assert prompts.parse_answer(choice.message.content, queues) == queue
        assert choice.finish_reason == "stop"  # at the end token
        assert reply.usage.prompt_tokens == len(learned[1](text)["input_ids"])


def test_a_completion_takes_the_prompt_as_it_is(client, folder, texts, scored, queues):
    for text, queue in zip(texts[:3], scored, strict=False):
        reply = client.completions.create(model=str(folder), prompt=text, **ANSWER)
        assert prompts.parse_answer(reply.choices[0].text, queues) == queue


def test_streams_and_system_messages_give_the_same(client, folder, messages, scored, queues):
    system, user = messages[0]
    request = {"model": str(folder), "messages": [system | {"role": "system"}, user], **ANSWER}
    chunks = client.chat.completions.create(stream=True, **request)
    answer = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert prompts.parse_answer(answer, queues) == scored[0]


def test_the_template_of_the_folder_was_not_in_play(client, folder, messages):
    broken = (folder / "chat_template.jinja").read_text("utf-8")
    extra = {"chat_template_kwargs": {"chat_template": broken}}
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(
            model=str(folder), messages=messages[0], extra_body=extra, **ANSWER
        )
