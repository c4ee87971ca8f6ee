"""Small widgets for the notebooks, each a thin layer over a plain function that also works alone.

Text from tickets is escaped: nothing that a customer wrote becomes HTML.
"""

from collections.abc import Callable
from functools import cache
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from ticketlib.routing import Decision
from pandas.io.formats.style import Styler

try:
    import ipywidgets
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "ticketlib.widgets needs ipywidgets: pip install 'ticketlib[notebooks]'"
    ) from error

ALL = "(all)"


def show_ticket(tickets: pd.DataFrame, ticket_id: int) -> str:
    """One ticket as HTML, safe to display (`IPython.display.HTML`).

    Args:
        tickets: Frame with `ticket_id`, `subject`, `body`, `queue` and `language`; with a `split`
            or `group`, they are shown, too.
        ticket_id: The ticket to show.

    Raises:
        ValueError: If there is no such ticket, or more than one.
    """
    found = tickets[tickets["ticket_id"] == ticket_id]
    if len(found) != 1:
        ids = tickets["ticket_id"]
        known = f"{ids.min()} to {ids.max()}" if len(ids) else "none"
        raise ValueError(
            f"ticket_id = {ticket_id} occurs {len(found)} times, not once. Known: {known}."
        )
    ticket = found.iloc[0]
    head = [f"Ticket {ticket_id}", ticket["queue"], ticket["language"] or "no language"]
    head += [f"{name} {ticket[name]}" for name in ("split", "group") if name in ticket]
    subject = ticket["subject"] or "(no subject)"
    return (
        f"<p><small>{escape(' · '.join(head))}</small><br><b>{escape(subject)}</b>"
        f'</p><p style="white-space: pre-wrap; max-width: 50em">{escape(ticket["body"])}</p>'
    )


def show_texts(table: pd.DataFrame) -> Styler:
    """A table of texts to display: escaped, aligned left, without the index."""
    left = {"selector": "th, td", "props": "text-align: left"}
    return (
        table.style.format(escape="html", precision=3).hide(axis="index").set_table_styles([left])
    )


def ticket_browser(tickets: pd.DataFrame) -> ipywidgets.Widget:
    """Browse tickets by queue, language and text; shows what `show_ticket` gives.

    Args:
        tickets: What `show_ticket` takes.

    Raises:
        KeyError: If a column of `ticketlib.tickets.load_tickets` is missing.
    """
    ids = tickets["ticket_id"].to_numpy()
    queue, language = (
        ipywidgets.Dropdown(options=[ALL, *sorted(tickets[column].unique())], description=name)
        for column, name in (("queue", "Queue"), ("language", "Language"))
    )
    text = ipywidgets.Text(
        description="Text", placeholder="in subject or body, then Enter", continuous_update=False
    )
    number = ipywidgets.IntSlider(min=1, max=1, description="Ticket")
    found = ipywidgets.Label()
    output = ipywidgets.HTML()
    selected = ids

    @cache  # Made when first asked for, not when the widget is.
    def folded() -> list[str]:
        """Subject and body of each ticket, without case."""
        pairs = zip(tickets["subject"], tickets["body"], strict=True)
        return [f"{subject}\n{body}".casefold() for subject, body in pairs]

    def show(_: object = None) -> None:
        """Show the ticket that the slider points to."""
        output.value = "<p>No ticket fits.</p>"
        if len(selected):
            output.value = show_ticket(tickets, selected[number.value - 1])

    def select(_: object = None) -> None:
        """Show the first of the tickets that fit all choices."""
        nonlocal selected
        fits = np.ones(len(tickets), dtype=bool)
        for column, widget in (("queue", queue), ("language", language)):
            if widget.index:  # 0 is ALL
                fits &= (tickets[column] == widget.value).to_numpy()
        if wanted := text.value.strip().casefold():
            fits &= np.fromiter((wanted in other for other in folded()), bool, len(tickets))
        selected = ids[fits]
        found.value = f"of {len(selected):,}"
        number.value, number.max = 1, max(len(selected), 1)
        show()

    for widget in (queue, language, text):
        widget.observe(select, "value")
    number.observe(show, "value")
    select()
    return ipywidgets.VBox(
        [ipywidgets.HBox([queue, language, text]), ipywidgets.HBox([number, found]), output]
    )


def show_probabilities(table: pd.DataFrame) -> str:
    """Queue probabilities as bars in HTML, the most probable first.

    Args:
        table: Columns `queue` and `probability` (0 to 1).

    Raises:
        KeyError: If a column is missing.
    """
    rows = [
        f'<tr><td style="padding-right: 1em">{escape(queue)}</td><td style="width: 20em">'
        f'<div style="width: {probability:.1%}; min-width: 1px; height: 1em; background: #0072B2">'
        f'</div></td><td style="text-align: right">{probability:.1%}</td></tr>'
        for queue, probability in table.sort_values("probability", ascending=False, kind="stable")[
            ["queue", "probability"]
        ].itertuples(index=False)
    ]
    return f"<table>{''.join(rows)}</table>"


def show_decision(decision: "Decision") -> str:
    """Where a ticket goes, and the probabilities that say so, as HTML.

    Args:
        decision: What the function of `routing.load_router` gives.
    """
    goes = "A person should decide; most probable is" if decision.hand_off else "Routed to"
    return (
        f"<p>{goes} <b>{escape(decision.queue)}</b> ({decision.probability:.1%}).</p>"
        + show_probabilities(decision.table)
    )


def router(route: Callable) -> ipywidgets.Widget:
    """Type or paste a ticket and see where it would go, as `show_decision` writes it.

    Args:
        route: The function of `routing.load_router`, or any other of a body and a subject that
            gives the like. What it raises is shown; the traceback goes to Jupyter's log.
    """
    wide = ipywidgets.Layout(width="auto")  # 100% would leave no room for the margin
    subject = ipywidgets.Text(placeholder="Subject, if there is one", layout=wide)
    text = ipywidgets.Textarea(
        placeholder="Type or paste a ticket",
        layout=ipywidgets.Layout(width="auto", height="8em"),
    )
    button = ipywidgets.Button(description="Route", button_style="primary")
    output = ipywidgets.HTML()

    def show(_: object) -> None:
        """Route the text in the box."""
        if not text.value.strip():
            output.value = "<p>There is no text yet.</p>"
            return
        output.value = "<p>Routing …</p>"
        try:
            output.value = show_decision(route(text.value.strip(), subject.value.strip()))
        except Exception as error:  # Jupyter shows no error of a callback, it only logs it
            output.value = f"<p>{escape(f'{type(error).__name__}: {error}')}</p>"
            raise

    button.on_click(show)
    return ipywidgets.VBox([subject, text, button, output])
