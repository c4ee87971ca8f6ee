"""routing.jinja renders what the model was tuned on: any ticket, any day, whatever effort is asked.

Against `prompts.render_prompt`, through the tokenizer that a server uses.
"""

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from ticketlib.prompts import FROZEN_DATE, render_messages, render_prompt
from ticketlib.template import render_template

TINY = ROOT / "data" / "tiny-gpt-oss"
BASE = (TINY / "chat_template.jinja").read_text("utf-8")
TEMPLATE = render_template(BASE)
QUEUES = ["IT Support", "Billing and Payments"]
TOKENIZER = AutoTokenizer.from_pretrained(TINY)
TICKET = ("Login", "Größe\n\n問題")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def render(template, ticket=TICKET, tokenizer=TOKENIZER, role="", **options):
    messages = render_messages(*ticket, queues=QUEUES)
    messages[0]["role"] = role or messages[0]["role"]
    return tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True, **options
    )


@given(subject=TEXTS | st.just(""), body=TEXTS)
def test_any_ticket_is_rendered_as_for_training(subject, body):
    assert render(TEMPLATE, (subject, body)) == render_prompt(subject, body, queues=QUEUES)


@pytest.mark.parametrize("options", [{}, {"role": "system"}, {"reasoning_effort": "high"}], ids=str)
def test_no_role_and_no_effort_changes_it(options):
    expected = render_prompt(*TICKET, queues=QUEUES)
    assert render(TEMPLATE, **options) == expected
    assert render(BASE, **options) != expected


def test_no_day_changes_it(monkeypatch):
    class Later(chat_template_utils.datetime):
        @classmethod
        def now(cls):
            return cls(2031, 1, 2)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    chat_template_utils._compile_jinja_template.cache_clear()
    assert "Current date: 2031-01-02" in render(BASE)
    assert f"Current date: {FROZEN_DATE}" in render(TEMPLATE)
    chat_template_utils._compile_jinja_template.cache_clear()


def test_the_real_tokenizer_sees_the_same_tokens(gptoss_tokenizer):
    options = {"tokenizer": gptoss_tokenizer}
    prompt = render_prompt(*TICKET, queues=QUEUES)
    assert render(TEMPLATE, **options) == prompt
    (ids,) = gptoss_tokenizer([render(TEMPLATE, **options)], add_special_tokens=False)["input_ids"]
    assert gptoss_tokenizer.decode(ids) == prompt and ids[0] == 200006  # <|start|>


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("strftime_now", "now"), "strftime_now.* 0 times"),
        (('"Reasoning: " + reasoning_effort', '"Effort: low"'), "Reasoning.* 0 times"),
        (("Knowledge cutoff: 2024-06", "Knowledge cutoff: 2025-06"), "renders .*2025-06"),
        (("# Instructions", "# Task"), "renders .*# Task"),
        (("<|start|>assistant\n", "<|start|>assistant<|channel|>\n"), "send prompts.render_prompt"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_template_that_is_not_gptoss_is_refused(change, message):
    assert change[0] in BASE
    with pytest.raises(ValueError, match=message):
        render_template(BASE.replace(*change))
