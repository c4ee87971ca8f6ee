"""What README.rst, CONTRIBUTING.rst and docs/ hold: commands, code, links and error texts."""

import contextlib
import functools
import io
import re
import shutil
import subprocess
from pathlib import Path

from docutils import nodes
from docutils.core import publish_doctree

from ticketlib.paths import Run

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.rst", ROOT / "CONTRIBUTING.rst", *sorted((ROOT / "docs").glob("*.rst"))]
PROGRAMS = "conda docker make papermill pip pytest python sha256sum".split()


@functools.cache
def parse(path: Path) -> nodes.document:
    """The document; fails at the first warning of docutils."""
    settings = {"report_level": 2, "halt_level": 2}
    return publish_doctree(path.read_text("utf-8"), str(path), settings_overrides=settings)


def find_blocks(path: Path, language: str) -> list[str]:
    """The literal blocks of a language; "" for those without one."""
    blocks = parse(path).findall(nodes.literal_block)
    return [
        b.astext() for b in blocks if (["", *b["classes"]][-1].removeprefix("code")) == language
    ]


def find_commands(path: Path) -> list[str]:
    """Every shell command, of blocks and in sentences, each on one line but for here-documents."""
    commands = []
    for block in find_blocks(path, "sh"):
        lines = iter(re.sub(r" *\\\n *", " ", block).splitlines())
        for line in lines:
            if end := re.search(r"<<'(\w+)'$", line):
                rest = iter(lines.__next__, end[1])
                line = "\n".join([line, *rest, end[1]])
            if line.strip():
                commands.append(line.strip())
    literals = [literal.astext() for literal in parse(path).findall(nodes.literal)]
    started = [text for text in literals if text.split(" ")[0] in PROGRAMS and " " in text]
    return list(dict.fromkeys(commands + started))


def run_code(path: Path, run: Run, folder: Path, *, server: str = "") -> str:
    """Run a document's Python, and its calls of curl; gives what they print.

    Args:
        path: The document.
        run: Taken for the run "demo".
        folder: An empty one to run in.
        server: Asked in place of the one in the document.
    """
    (folder / "nemo-experiments").symlink_to(run.experiments)
    for name in ("data", "notebooks"):
        (folder / name).symlink_to(ROOT / name)
    given = {"http://localhost:8000/v1": server, '"exported"': f'"{run.exported}"'}
    given["localhost:8000/v1"] = server
    names, spoken = {}, io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(spoken):
        for code in find_blocks(path, "python"):
            exec(_replace(code, given), names)
        for command in find_commands(path):
            if command.startswith("curl") and shutil.which("curl"):
                command = ["bash", "-c", _replace(command, given)]
                print(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return spoken.getvalue()


def _replace(text: str, given: dict[str, str]) -> str:
    for old, new in given.items():
        text = text.replace(old, new)
    return text
