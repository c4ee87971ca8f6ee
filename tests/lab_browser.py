"""JupyterLab as `make lab` starts it, and a headless Chromium that clicks in it, for tests."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.reader import NotJSONError
from playwright.sync_api import Locator, Page, expect, sync_playwright
from servers import wait_until_up

ROOT = Path(__file__).parents[1]
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
MINUTE = 60_000  # ms, as Playwright counts
# What a reader would click away first, and all cells in the page, for the screenshots.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}


def copy_project(folder: Path) -> Path:
    """What JupyterLab shows of the project: copies of the notebooks, the rest as links.

    Training is shorter in them.
    """
    folder.mkdir(parents=True)
    shutil.copytree(
        ROOT / "notebooks",
        folder / "notebooks",
        ignore=shutil.ignore_patterns(".ipynb_checkpoints"),
    )
    notebook = folder / "notebooks" / "03_train_lora.ipynb"
    text = notebook.read_text("utf-8")  # 150 steps show no more than 60
    notebook.write_text(text.replace("max_steps: int = 0 ", "max_steps: int = 60 "), "utf-8")
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("data", "ticketlib"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@contextmanager
def serve_lab(project: Path, home: Path) -> Iterator[str]:
    """Give the address of a JupyterLab, token included, that `make lab` runs for a new user."""
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    options = f"--no-browser --ServerApp.ip=127.0.0.1 --ServerApp.port={port}"
    options += " --ServerApp.port_retries=0 --allow-root"
    # Without the settings of the make that may be running this test.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    environment |= {
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    command = ["make", "lab", "VENV=", f"PYTHON={sys.executable}", f"LAB_ARGS={options}"]
    log = home / "lab.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command,
            cwd=project,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:
            wait_until_up(process, f"http://127.0.0.1:{port}/api?token={token}", log)
            yield f"http://127.0.0.1:{port}/lab?token={token}"
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)  # make and the server, which ends its kernels
                    process.wait(timeout=20)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    pass


@contextmanager
def open_page(url: str) -> Iterator[Page]:
    """Give a page of headless Chromium that shows JupyterLab."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(url)
        page.wait_for_selector("#jp-main-dock-panel", timeout=2 * MINUTE)
        yield page
        browser.close()


def choose(page: Page, *path: str) -> None:
    """Click through a menu, such as "Run", "Run All Cells"."""
    page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{path[0]}$")).click()
    for text in path[1:]:
        label = page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{text}"))
        label.last.hover()
        label.last.click()


def open_notebook(page: Page, url: str, name: str) -> Locator:
    """Open a notebook alone, once its kernel is there."""
    page.goto(url.replace("/lab?", f"/lab/tree/notebooks/{name}.ipynb?reset&"))
    notebook = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    notebook.wait_for(timeout=MINUTE)
    expect(notebook.locator(".jp-KernelName")).to_contain_text("Python 3", timeout=MINUTE)
    idle = notebook.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    idle.wait_for(timeout=MINUTE)
    return notebook


def run_all(
    page: Page, notebook: Locator, file: Path, *, minutes: float, meanwhile: Callable | None = None
) -> list[NotebookNode]:
    """Run all cells and save; give those with code, once none is running or waiting.

    `meanwhile` gets the notebook while it runs.
    """
    choose(page, "Run", "Run All Cells$")
    last = notebook.locator(".jp-CodeCell .jp-InputArea-prompt").last
    expect(last).to_contain_text(re.compile(r"\[[\d*]+\]"), timeout=MINUTE)
    if meanwhile:
        meanwhile(notebook)
    busy = notebook.locator(".jp-CodeCell .jp-InputArea-prompt", has_text="[*]")
    expect(busy).to_have_count(0, timeout=minutes * MINUTE)
    choose(page, "File", "Save Notebook$")
    cells = []
    for _ in range(100):
        with suppress(NotJSONError):  # It is being written
            cells = [c for c in nbformat.read(file, 4).cells if c.cell_type == "code"]
        if cells and all(cell.execution_count for cell in cells):
            break
        time.sleep(0.1)
    return cells


def take_pictures(page: Page, folder: Path, name: str) -> None:
    """Save the whole notebook as a picture in the light and in the dark theme."""
    height = page.locator(".jp-WindowedPanel-inner").first.evaluate("e => e.scrollHeight")
    page.set_viewport_size({"width": 1400, "height": min(height + 150, 16_000)})
    page.locator(".jp-WindowedPanel-outer").first.evaluate("e => e.scrollTo(0, 0)")
    for theme in ("Light", "Dark"):
        choose(page, "Settings", "Theme", f"JupyterLab {theme}$")
        page.locator(f'[data-jp-theme-name="JupyterLab {theme}"]').wait_for(state="attached")
        page.wait_for_timeout(1000)  # The theme's style sheet
        page.screenshot(path=folder / f"{name}-{theme.lower()}.png")
    choose(page, "Settings", "Theme", "JupyterLab Light$")
    page.set_viewport_size({"width": 1400, "height": 1000})


def shut_down_kernels(page: Page) -> None:
    """End all kernels, as closing the notebooks would."""
    page.evaluate(
        """async () => {
            const token = JSON.parse(
                document.getElementById('jupyter-config-data').textContent).token;
            const headers = {Authorization: `token ${token}`};
            const sessions = await (await fetch('/api/sessions', {headers})).json();
            for (const each of sessions)
                await fetch(`/api/sessions/${each.id}`, {method: 'DELETE', headers});
        }"""
    )
