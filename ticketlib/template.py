"""The base's chat template, frozen to the prompt that the model was tuned on.

gpt-oss's own template writes today's date and, unless told otherwise, medium reasoning. A server
that renders chats with `routing.jinja` sends the model exactly what `prompts.render_prompt` gives.
"""

from ticketlib import prompts

TEMPLATE_FILE = "routing.jinja"
# As openai/gpt-oss-20b and -120b have them in chat_template.jinja -> what stands in training texts.
_FROZEN = {
    'strftime_now("%Y-%m-%d")': f'"{prompts.FROZEN_DATE}"',
    '"Reasoning: " + reasoning_effort': '"Reasoning: low"',
}


def render_template(base_template: str) -> str:
    """A chat template that renders a ticket as `prompts.render_prompt` does, on any day.

    It is meant for `render_messages` with `add_generation_prompt`; a system message does as well as
    a developer's. A `reasoning_effort` changes nothing.

    Args:
        base_template: Text of the base's `chat_template.jinja`.

    Raises:
        ValueError: If the base's template is not gpt-oss's as we know it, so that what it renders
            cannot be frozen to the prompt of the training.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    template = base_template
    for changing, frozen in _FROZEN.items():
        if template.count(changing) != 1:
            raise ValueError(
                f"The base's chat template has {changing} {template.count(changing)} times; 1 is "
                "accepted, as in openai/gpt-oss-20b. Take the base's own chat_template.jinja."
            )
        template = template.replace(changing, frozen)
    ticket, queues = ("Invoice", "Where is it?\n\nThanks"), ["Billing", "IT Support"]
    expected = prompts.render_prompt(*ticket, queues=queues)
    (rendered,), _ = render_jinja_template(
        [prompts.render_messages(*ticket, queues=queues)],
        chat_template=template,
        add_generation_prompt=True,
    )
    if rendered != expected:
        raise ValueError(
            f"The base's chat template renders {rendered!r}, not {expected!r}, which is accepted. "
            "Take the chat_template.jinja of openai/gpt-oss-20b, or send prompts.render_prompt."
        )
    return template
