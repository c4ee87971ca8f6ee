"""Widgets show what the plain functions give, for the choice made, and nothing becomes HTML."""

from types import SimpleNamespace

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


def test_split_and_group_are_shown_where_there_are_some():
    assert "Ticket 5 · Billing · de<" in widgets.show_ticket(TICKETS, 5)
    more = TICKETS.assign(split="<test>", group=[9, 8, 7, 6])
    assert "Ticket 5 · Billing · de · split &lt;test&gt; · group 7<" in widgets.show_ticket(more, 5)
    assert "IT · en · group 8<" in widgets.show_ticket(more.drop(columns="split"), 2)
    (output,) = find(widgets.ticket_browser(more), ipywidgets.HTML)
    assert output.value == widgets.show_ticket(more, 1)


def test_tables_of_texts_are_escaped_and_aligned_left():
    html = widgets.show_texts(TICKETS[["subject", "body"]].assign(share=0.123456)).to_html()
    assert "&lt;script&gt;" in html and "<script" not in html
    assert "text-align: left" in html and ">0.123<" in html


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


def test_browser_finds_text_in_subject_and_body():
    browser = widgets.ticket_browser(TICKETS)
    queue, language = find(browser, ipywidgets.Dropdown)
    (text,), (number,) = find(browser, ipywidgets.Text), find(browser, ipywidgets.IntSlider)
    (found,), (output,) = find(browser, ipywidgets.Label), find(browser, ipywidgets.HTML)
    assert not text.continuous_update and found.value == "of 4"
    number.value = 4
    text.value = "VOIC"
    assert output.value == widgets.show_ticket(TICKETS, 1)
    assert (found.value, number.value, number.max) == ("of 1", 1, 1)
    text.value = " ÜBEL "
    assert output.value == widgets.show_ticket(TICKETS, 5)
    text.value = "hi"
    assert found.value == "of 2", "body of 1 (high) and 5 (Hi)"
    number.value = 2
    assert output.value == widgets.show_ticket(TICKETS, 5)
    language.value = "en"
    assert (found.value, output.value) == ("of 1", widgets.show_ticket(TICKETS, 1))
    queue.value = "IT"
    assert (found.value, output.value) == ("of 0", "<p>No ticket fits.</p>")
    text.value = "<script>"
    assert output.value == widgets.show_ticket(TICKETS, 2) and "<script" not in output.value
    text.value = "  "
    queue.value = language.value = widgets.ALL
    assert found.value == "of 4" and number.max == 4
    # A pattern of no kind, and no match from the end of a subject into the body.
    for wanted in ("V.N", "VPNdown", "%", "invoice too"):
        text.value = wanted
        assert (found.value, output.value) == ("of 0", "<p>No ticket fits.</p>")


def test_browser_finds_text_with_letters_that_have_no_one_small_form():
    tickets = TICKETS.assign(subject=["STRASSE", "Straße", "strasse", "x"])
    browser = widgets.ticket_browser(tickets)
    (text,), (found,) = find(browser, ipywidgets.Text), find(browser, ipywidgets.Label)
    for wanted in ("straße", "STRASSE"):
        text.value = wanted
        assert found.value == "of 3"


def test_browser_of_no_tickets_says_so():
    (output,) = find(widgets.ticket_browser(TICKETS[:0]), ipywidgets.HTML)
    assert output.value == "<p>No ticket fits.</p>"


def test_probabilities_are_bars_in_order():
    table = pd.DataFrame({"queue": ["A & B", "C"], "probability": [0.125, 0.875]})
    html = widgets.show_probabilities(table)
    assert html.index("C</td>") < html.index("A &amp; B</td>")
    assert "width: 87.5%" in html and "12.5%</td>" in html


def decide(hand_off):
    table = pd.DataFrame({"queue": ["I & T", "Billing"], "probability": [0.9, 0.1]})
    return SimpleNamespace(queue="I & T", probability=0.9, hand_off=hand_off, table=table)


@pytest.mark.parametrize("hand_off", [True, False])
def test_a_decision_says_who_decides(hand_off):
    html = widgets.show_decision(decide(hand_off))
    assert ("A person should decide" in html) == hand_off and ("Routed to" in html) != hand_off
    assert "<b>I &amp; T</b> (90.0%)" in html
    assert html.endswith(widgets.show_probabilities(decide(hand_off).table))


def test_router_routes_the_text_typed():
    seen = []

    def route(body, subject):
        seen.append((body, subject))
        return decide(False)

    widget = widgets.router(route)
    (text,), (button,) = find(widget, ipywidgets.Textarea), find(widget, ipywidgets.Button)
    (subject,), (output,) = find(widget, ipywidgets.Text), find(widget, ipywidgets.HTML)
    button.click()
    assert "no text yet" in output.value and not seen
    text.value, subject.value = "My <b>printer</b> is on fire\n", " Fire "
    button.click()
    assert seen == [("My <b>printer</b> is on fire", "Fire")]
    assert output.value == widgets.show_decision(decide(False))


def test_router_shows_and_logs_what_goes_wrong(caplog):
    def route(body, subject):
        raise ValueError("<too long>")

    widget = widgets.router(route)
    find(widget, ipywidgets.Textarea)[0].value = "x"
    find(widget, ipywidgets.Button)[0].click()
    assert "ValueError: &lt;too long&gt;" in find(widget, ipywidgets.HTML)[0].value
    assert "Traceback" in caplog.text
