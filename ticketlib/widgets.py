"""Small widgets for the notebooks, each a thin layer over a plain function that also works alone.

Text from tickets is escaped: nothing that a customer wrote becomes HTML.
"""

from collections.abc import Callable
from html import escape

import ipywidgets
import pandas as pd

ALL = "(all)"


def show_ticket(tickets: pd.DataFrame, ticket_id: int) -> str:
    """One ticket as HTML, safe to display (`IPython.display.HTML`).

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
    head = " · ".join([f"Ticket {ticket_id}", ticket["queue"], ticket["language"] or "no language"])
    return (
        f"<p><small>{escape(head)}</small><br><b>{escape(ticket['subject'] or '(no subject)')}</b>"
        f'</p><p style="white-space: pre-wrap; max-width: 50em">{escape(ticket["body"])}</p>'
    )


def ticket_browser(tickets: pd.DataFrame) -> ipywidgets.Widget:
    """Browse tickets by queue and language; shows what `show_ticket` gives.

    Raises:
        KeyError: If a column of `ticketlib.tickets.load_tickets` is missing.
    """
    queue, language = (
        ipywidgets.Dropdown(options=[ALL, *sorted(tickets[column].unique())], description=name)
        for column, name in (("queue", "Queue"), ("language", "Language"))
    )
    number = ipywidgets.IntSlider(min=1, max=1, description="Ticket")
    found = ipywidgets.Label()
    output = ipywidgets.HTML()

    def select() -> pd.DataFrame:
        """The tickets of the chosen queue and language."""
        rows = pd.Series(True, index=tickets.index)
        for column, widget in (("queue", queue), ("language", language)):
            if widget.index:  # 0 is ALL
                rows &= tickets[column] == widget.value
        return tickets[rows]

    def show(_: object = None) -> None:
        """Show the ticket that the slider points to."""
        selected = select()
        output.value = "<p>No ticket fits.</p>"
        if len(selected):
            output.value = show_ticket(tickets, selected["ticket_id"].iloc[number.value - 1])

    def restart(_: object = None) -> None:
        """Go to the first ticket of a new choice."""
        n_selected = len(select())
        found.value = f"of {n_selected:,}"
        number.value, number.max = 1, max(n_selected, 1)
        show()

    queue.observe(restart, "value")
    language.observe(restart, "value")
    number.observe(show, "value")
    restart()
    return ipywidgets.VBox(
        [ipywidgets.HBox([queue, language]), ipywidgets.HBox([number, found]), output]
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


def router(route: Callable[[str], pd.DataFrame]) -> ipywidgets.Widget:
    """Type or paste a ticket and see where it would go, as `show_probabilities` draws it.

    Args:
        route: Any function from a ticket's text to a table with `queue` and `probability`. What it
            raises is shown in the widget; the traceback goes to Jupyter's log.
    """
    text = ipywidgets.Textarea(
        placeholder="Type or paste a ticket",
        layout=ipywidgets.Layout(width="100%", height="8em"),
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
            output.value = show_probabilities(route(text.value))
        except Exception as error:  # Jupyter shows no error of a callback, it only logs it
            output.value = f"<p>{escape(f'{type(error).__name__}: {error}')}</p>"
            raise

    button.on_click(show)
    return ipywidgets.VBox([text, button, output])
