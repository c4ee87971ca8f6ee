"""Widgets show what the plain functions give, for the choice made, and nothing becomes HTML."""

import ipywidgets
import pandas as pd
import pytest

from ticketlib import widgets

TICKETS = pd.DataFrame(
    {
        "ticket_id": [1, 2, 5, 7],
        "subject": ["Invoice", "", "<b>bold</b> & co", "VPN"],
        "body": ["Too\nhigh", "<script>alert(1)</script>", "Hi <name>, übel", "down"],
        "queue": ["Billing", "IT", "Billing", "IT <Support>"],
        "language": ["en", "en", "de", ""],
    },
    index=[3, 2, 1, 0],
)


def find(widget, kind):
    """All widgets of a kind, in the order in which they are shown."""
    if isinstance(widget, kind):
        return [widget]
    return [found for child in getattr(widget, "children", ()) for found in find(child, kind)]


def test_ticket_is_shown_escaped():
    html = widgets.show_ticket(TICKETS, 5)
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; co" in html
    assert "Hi &lt;name&gt;, übel" in html and "Billing · de" in html
    assert "<script" not in widgets.show_ticket(TICKETS, 2)
    assert "(no subject)" in widgets.show_ticket(TICKETS, 2)
    assert "IT &lt;Support&gt; · no language" in widgets.show_ticket(TICKETS, 7)
    assert "Too\nhigh" in widgets.show_ticket(TICKETS, 1)


def test_unknown_ticket_is_an_error():
    with pytest.raises(ValueError, match="ticket_id = 3 occurs 0 times.*1 to 7"):
        widgets.show_ticket(TICKETS, 3)


def test_browser_shows_the_chosen_ticket():
    browser = widgets.ticket_browser(TICKETS)
    queue, language = find(browser, ipywidgets.Dropdown)
    (number,) = find(browser, ipywidgets.IntSlider)
    (output,) = find(browser, ipywidgets.HTML)
    assert output.value == widgets.show_ticket(TICKETS, 1) and number.max == 4
    number.value = 4
    assert output.value == widgets.show_ticket(TICKETS, 7)
    queue.value = "Billing"
    assert (number.value, number.max) == (1, 2)
    assert output.value == widgets.show_ticket(TICKETS, 1)
    number.value = 2
    assert output.value == widgets.show_ticket(TICKETS, 5)
    language.value = "en"
    assert output.value == widgets.show_ticket(TICKETS, 1) and number.max == 1
    queue.value = "IT <Support>"
    assert output.value == "<p>No ticket fits.</p>"
    language.value = ""
    assert output.value == widgets.show_ticket(TICKETS, 7)
    queue.value = language.value = widgets.ALL
    assert number.max == 4


def test_browser_of_no_tickets_says_so():
    (output,) = find(widgets.ticket_browser(TICKETS[:0]), ipywidgets.HTML)
    assert output.value == "<p>No ticket fits.</p>"


def test_probabilities_are_bars_in_order():
    table = pd.DataFrame({"queue": ["A & B", "C"], "probability": [0.125, 0.875]})
    html = widgets.show_probabilities(table)
    assert html.index("C</td>") < html.index("A &amp; B</td>")
    assert "width: 87.5%" in html and "12.5%</td>" in html


def test_router_routes_the_text_typed():
    seen = []

    def route(text):
        seen.append(text)
        return pd.DataFrame({"queue": ["IT", "Billing"], "probability": [0.9, 0.1]})

    widget = widgets.router(route)
    (text,), (button,) = find(widget, ipywidgets.Textarea), find(widget, ipywidgets.Button)
    (output,) = find(widget, ipywidgets.HTML)
    button.click()
    assert "no text yet" in output.value and not seen
    text.value = "My <b>printer</b> is on fire"
    button.click()
    assert seen == ["My <b>printer</b> is on fire"]
    assert output.value == widgets.show_probabilities(route(""))


def test_router_shows_and_logs_what_goes_wrong(caplog):
    def route(text):
        raise ValueError("<too long>")

    widget = widgets.router(route)
    find(widget, ipywidgets.Textarea)[0].value = "x"
    find(widget, ipywidgets.Button)[0].click()
    assert "ValueError: &lt;too long&gt;" in find(widget, ipywidgets.HTML)[0].value
    assert "Traceback" in caplog.text
