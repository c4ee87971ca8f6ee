"""A reader opens the notebooks in JupyterLab, runs each from top to bottom and plays with it.

A headless Chromium does so in a JupyterLab that `make lab` starts, from a path with a space. Each
notebook must end without an error or a warning, and its widgets must answer. Pictures of all
notebooks, light and dark, are kept in LAB_PICTURES where that names a folder.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
from notebook_runner import NAMES

lab = pytest.importorskip("lab_browser", reason="playwright is not installed: make install")

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.skipif(not lab.CHROMIUM, reason="no chromium on PATH; CHROMIUM may name one"),
    pytest.mark.skipif(not shutil.which("make"), reason="no make on PATH"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return lab.copy_project(tmp_path_factory.mktemp("lab") / "first hour")


@pytest.fixture(scope="module")
def url(project, tmp_path_factory):
    with lab.serve_lab(project, tmp_path_factory.mktemp("home")) as url:
        yield url


@pytest.fixture(scope="module")
def page(url):
    with lab.open_page(url) as page:
        yield page


@pytest.fixture
def opened(request, project, page, url):
    """A notebook that was run; nothing in it may fail, warn or stay unrun."""
    name, *meanwhile = request.param
    notebook = lab.open_notebook(page, url, name)
    file = project / "notebooks" / f"{name}.ipynb"
    try:
        cells = lab.run_all(
            page, notebook, file, minutes=10, meanwhile=meanwhile[0] if meanwhile else None
        )
        for cell in cells:
            for output in cell.outputs:
                assert output.output_type != "error", "\n".join(output.traceback)
                assert output.get("name") != "stderr", output.text
        assert cells and all(cell.execution_count for cell in cells)
        yield notebook
        if folder := os.environ.get("LAB_PICTURES"):
            lab.take_pictures(page, Path(folder), name)
    finally:
        lab.shut_down_kernels(page)


def see_the_plot_grow(notebook):
    cell = notebook.locator(".jp-CodeCell", has_text="run_recipe")
    plot = cell.locator(".jp-OutputArea-output img")
    plot.wait_for(timeout=5 * lab.MINUTE)
    lab.expect(plot).not_to_have_attribute("src", plot.get_attribute("src"), timeout=lab.MINUTE)
    lab.expect(cell).to_contain_text(re.compile(r"\d+/\d+ \[\d\d:\d\d<\d\d:\d\d"))  # Gone and left


@pytest.mark.parametrize("opened", [NAMES[:1]], indirect=True)
def test_the_ticket_browser_shows_what_is_chosen(opened):
    browser = opened.locator(".widget-vbox", has=opened.page.locator(".widget-dropdown")).last
    shown = browser.locator(".widget-html-content")
    count = browser.locator(".widget-label", has_text=re.compile(r"^of [\d,]+$"))
    lab.expect(shown).to_contain_text("Ticket ")
    everything, first = count.inner_text(), shown.inner_text()

    queue = browser.locator("select").first
    wanted = queue.locator("option").nth(2).inner_text()
    queue.select_option(label=wanted)
    lab.expect(count).not_to_have_text(everything)
    lab.expect(shown).to_contain_text(f" · {wanted} · ")
    assert shown.inner_text() != first

    second = shown.inner_text()
    browser.locator(".noUi-handle").press("ArrowRight")
    lab.expect(shown).not_to_have_text(second)
    lab.expect(shown).to_contain_text(f" · {wanted} · ")

    browser.locator("input[type=text]").first.fill("no such words anywhere")
    browser.locator("input[type=text]").first.press("Enter")
    lab.expect(count).to_have_text("of 0")
    lab.expect(shown).to_have_text("No ticket fits.")


@pytest.mark.parametrize("opened", [NAMES[1:2]], indirect=True)
def test_the_tickets_are_prepared(opened, project):
    assert (project / "nemo-experiments/results/demo/dataset/training.jsonl").is_file()


@pytest.mark.parametrize("opened", [(NAMES[2], see_the_plot_grow)], indirect=True)
def test_a_plot_grows_while_training(opened, project):
    plot = opened.locator(".jp-CodeCell", has_text="run_recipe").locator("img")
    lab.expect(plot).to_have_count(1)
    assert (project / "nemo-experiments/results/demo/history.csv").is_file()


@pytest.mark.parametrize("opened", [NAMES[3:]], indirect=True)
def test_the_router_answers(opened):
    router = opened.locator(".widget-vbox", has=opened.page.locator("textarea")).last
    shown = router.locator(".widget-html-content")
    button = router.get_by_role("button", name="Route")
    button.click()
    lab.expect(shown).to_contain_text("There is no text yet.")
    router.locator("input[type=text]").fill("Invoice")
    router.locator("textarea").fill("I was charged twice for one order.")
    button.click()
    lab.expect(shown).to_contain_text(re.compile("Routed to|A person should decide"))
    first = shown.inner_text()
    router.locator("input[type=text]").fill("VPN")
    router.locator("textarea").fill("The VPN client does not connect from home since Monday.")
    button.click()
    lab.expect(shown).not_to_have_text(first)
    lab.expect(shown).to_contain_text("%")
