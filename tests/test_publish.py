"""The report shows an executed notebook's outputs, the verdict first, without code or network."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ticketlib.publish import WIDGET, write_report

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5"


def show(text="", tags=(), **data):
    data = {"text/plain": text, **{key.replace("_", "/"): value for key, value in data.items()}}
    output = new_output("display_data", data=data)
    return new_code_cell(f"secret_{tags}", outputs=[output], metadata={"tags": list(tags)})


@pytest.fixture
def notebook(tmp_path):
    content = new_notebook(
        cells=[
            new_markdown_cell("# Evaluate\n\nWhat it is."),
            show("PARAMETER", ["parameters"]),
            show("a table"),
            show(image_png=PNG),
            new_code_cell(
                "w", outputs=[new_output("display_data", data={WIDGET: {"model_id": 1}})]
            ),
            show("THE VERDICT", ["verdict"]),
            show("THE FACTS", ["head"]),
            show("NOT SHOWN", ["no-report"]),
            new_markdown_cell("## What we did"),
        ]
    )
    path = tmp_path / "run" / "notebooks" / "04.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(content, path)
    return path


def test_outputs_are_shown_without_code(notebook, tmp_path):
    html = write_report(notebook, tmp_path / "report.html").read_text("utf-8")
    shown = ("THE FACTS", ">Verdict<", "THE VERDICT", "What it is.", "a table", PNG, "we did")
    places = [html.index(text) for text in shown]
    assert places == sorted(places)
    assert f"<title>Ticket routing: {tmp_path.name}</title>" in html
    html = write_report(notebook, tmp_path / "report.html", title="Ours").read_text("utf-8")
    assert "<title>Ours</title>" in html and re.search("<h1[^>]*>Ours", html)
    for absent in ("secret_", "PARAMETER", "NOT SHOWN", "model_id"):
        assert absent not in html


def test_it_needs_no_network(notebook, tmp_path):
    html = write_report(notebook, tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"<(?:script|img|link|iframe)[^>]*\s(?:src|href)=[\"']?https?:", html)


def test_the_notebook_stays_as_it_is(notebook, tmp_path):
    before = notebook.read_bytes()
    write_report(notebook, tmp_path / "report.html")
    assert notebook.read_bytes() == before


def test_a_notebook_that_failed_or_did_not_run_is_refused(notebook, tmp_path):
    content = nbformat.read(notebook, as_version=4)
    content.cells[2].outputs = [new_output("error", ename="E", evalue="", traceback=[])]
    nbformat.write(content, notebook)
    with pytest.raises(ValueError, match="A cell of .* failed"):
        write_report(notebook, tmp_path / "report.html")
    for cell in content.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell["outputs"] = []
    nbformat.write(content, notebook)
    with pytest.raises(ValueError, match="no outputs"):
        write_report(notebook, tmp_path / "report.html")
    with pytest.raises(FileNotFoundError, match="Run the notebook"):
        write_report(tmp_path / "none.ipynb", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
