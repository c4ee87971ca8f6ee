"""README.rst, CONTRIBUTING.rst and docs/ say what is so: commands, links, names and error texts.

Each command is run: `make` with a stand-in for Python that records its calls, papermill without
executing. What needs another machine is compared with the files that it names, and then skipped
with the reason. Python code that needs a finished run is run in tests/test_notebooks.py.
"""

import ast
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from urllib.parse import unquote

import nbformat
import pandas as pd
import papermill
import pytest
from documents import DOCUMENTS, ROOT, find_blocks, find_commands, parse
from docutils import nodes
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_setup import PROJECT, Checkout, extras, read_constraints

from ticketlib import checksums, profiles, prompts
from ticketlib.paths import Run

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMANDS = [(path, command) for path in DOCUMENTS for command in find_commands(path)]
# Texts of others
FROM_LIBRARIES = {"CUDA out of memory": "torch, built for CUDA"}


def run_make(command, folder):
    """Run with a recording Python; what it would call has to exist."""
    checkout = Checkout(folder)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for name in re.findall(r"\b([A-Z_]+)=", command):
        assert f"\n{name} ?=" in makefile
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env["PYTHON"] = str(folder / "python")
    subprocess.run(["bash", "-euc", command], cwd=folder, env=env, check=True)
    known, passed = set(), {}
    for call in checkout.calls():
        words = call.split()
        if words[:2] != ["-m", "ticketlib.parameters"]:
            continue
        assert (ROOT / words[2]).is_file()
        known |= papermill.inspect_notebook(ROOT / words[2]).keys()
        passed |= {words[i + 1]: words[i + 2] for i, w in enumerate(words) if w in ("-p", "-r")}
    assert passed.keys() <= known
    assert passed.get("profile", "tiny") in profiles.PROFILES


def run_papermill(command, folder):
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    words = shlex.split(command)[1:]
    words += [] if "--help-notebook" in words else ["--prepare-only"]
    done = subprocess.run(
        [sys.executable, "-m", "papermill", *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "unknown parameter" not in done.stderr


def run_python(command, folder):
    words = shlex.split(command)
    assert words[1] == "-m" and all((ROOT / word).exists() for word in words if "/0" in word)
    subprocess.run([sys.executable, "-m", words[2], "--help"], cwd=ROOT, check=True)


def run_sha256sum(command, folder):
    (folder / "weights").write_text("w")
    checksums.write_checksums(folder)
    subprocess.run(shlex.split(command), cwd=folder, check=True)


def run_cd(command, folder):
    assert command == f"cd {Run('demo').folder.relative_to(Run('demo').experiments.parent)}"


def run_transformers(command, folder):
    """The template that the shell puts into the command; the server runs in test_serving.py."""
    (folder / "exported").mkdir()
    (folder / "exported" / "routing.jinja").write_text('{{ "a\\n" }}')
    inner = re.search(r'--chat-template-kwargs "\$\((.*)\)"$', command)[1]
    inner = inner.replace("python", shlex.quote(sys.executable), 1)
    given = subprocess.run(["bash", "-c", inner], cwd=folder, capture_output=True, check=True)
    assert json.loads(given.stdout) == {"chat_template": '{{ "a\\n" }}'}


def run_curl(command, folder):
    """It sends the messages of training; a server gets them in test_notebooks.py."""
    body = json.loads(command.split("\n", 1)[1].rsplit("\n", 1)[0])
    queues = sorted(pd.read_csv(ROOT / "data" / "tickets.csv")["queue"].unique())
    text = ("App", "The app closes by itself as soon as I open the camera.")
    assert body["messages"] == prompts.render_messages(*text, queues=queues)


def look_at_pip(command, folder):
    locked = read_constraints(ROOT / "constraints.txt")
    lines = (ROOT / "tests" / "serving.txt").read_text("utf-8").splitlines()
    served = [Requirement(line) for line in lines if "==" in line]
    words = [word for word in shlex.split(command)[2:] if not word.startswith("-")]
    for word in words:
        if word.startswith("."):
            for extra in re.findall(r"\[([\w,]+)\]", word):
                assert set(extra.split(",")) <= PROJECT["optional-dependencies"].keys()
        elif not (ROOT / word).is_file():
            wanted = Requirement(word)
            same = [r for r in served if (r.name, r.specifier) == (wanted.name, wanted.specifier)]
            assert same or (canonicalize_name(wanted.name) in locked and not wanted.specifier)
    pytest.skip("needs the network")


def look_at_docker(command, folder):
    text = (ROOT / "Dockerfile").read_text("utf-8")
    words = shlex.split(command.replace('"$PWD"', "."))
    options = dict(zip(words, words[1:], strict=False))
    if words[1] == "build":
        assert f"ARG {options['--build-arg']}" in text
        assert (options["-t"], words[-1]) == ("tickets", ".")
    else:
        assert words[-1] == "tickets"
        assert f"EXPOSE {options['-p'].split(':')[1]}\n" in text
        assert f"WORKDIR {options['-v'].split(':')[1]}\n" in text
    pytest.skip("needs Docker and NVIDIA's container")


def look_at_conda(command, folder):
    assert (ROOT / shlex.split(command)[-1]).is_file()
    pytest.skip("needs conda and the network")


def look_at_export(command, folder):
    names = re.findall(r"(\w+)=", command)
    passed = [other for _, other in COMMANDS if other.startswith("docker run")]
    assert all(f"-e {name} " in passed[0] for name in names)
    pytest.skip("needs accounts")


def look_at_pytest(command, folder):
    words = shlex.split(command)
    assert all((ROOT / word).exists() for word in words if word.endswith(".py"))
    assert f'"{words[words.index("-m") + 1]}: ' in (ROOT / "pyproject.toml").read_text("utf-8")
    pytest.skip("needs a GPU")


def look_at_vllm(command, folder):
    assert f"VLLM_SYSTEM_START_DATE={prompts.FROZEN_DATE} " in command
    pytest.skip("needs vLLM and a GPU")


def look_at_activation(command, folder):
    assert command.split("  #")[0].rstrip() in (". .venv/bin/activate", "pre-commit install")
    assert "pre-commit" in [requirement.name for requirement in extras()]
    pytest.skip("changes the shell, or the checkout")


HOW = {
    "make": run_make,
    "(for": run_make,
    "papermill": run_papermill,
    "python": run_python,
    "sha256sum": run_sha256sum,
    "cd": run_cd,
    "transformers": run_transformers,
    "curl": run_curl,
    "pip": look_at_pip,
    "docker": look_at_docker,
    "conda": look_at_conda,
    "export": look_at_export,
    "pytest": look_at_pytest,
    "VLLM_SYSTEM_START_DATE=2025-08-05": look_at_vllm,
    ".": look_at_activation,
    "pre-commit": look_at_activation,
}


@pytest.mark.parametrize(
    ("path", "command"),
    COMMANDS,
    ids=[f"{path.name}: {command[:60]}" for path, command in COMMANDS],
)
def test_commands_do_what_is_said(path, command, tmp_path):
    HOW[command.split()[0]](command, tmp_path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
class TestDocument:
    def test_every_block_says_its_language(self, path):
        plain = find_blocks(path, "")
        assert len(plain) == (path.name == "README.rst")  # The layout
        assert all(compile(block, path.name, "exec") for block in find_blocks(path, "python"))

    def test_links_lead_somewhere(self, path):
        document = parse(path)
        uris = [reference.get("refuri", "") for reference in document.findall(nodes.reference)]
        uris += [image["uri"] for image in document.findall(nodes.image)]
        for uri in filter(None, uris):
            assert uri.startswith("https://") or (path.parent / uri).exists(), uri

    def test_paths_that_are_named_exist(self, path):
        folders = "benchmarks|data|docs|notebooks|tests|ticketlib"
        for literal in parse(path).findall(nodes.literal):
            if re.fullmatch(rf"({folders})/[\w./-]+", literal.astext()):
                assert (ROOT / literal.astext()).exists(), literal.astext()


def test_links_of_the_notebooks_lead_somewhere():
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            for uri in re.findall(r"\]\(([^)\s]+)\)", cell.source):
                assert uri.startswith("https://") or (path.parent / unquote(uri)).exists(), uri


def test_readme_is_two_screens_and_its_layout_is_the_project():
    text = (ROOT / "README.rst").read_text("utf-8")
    assert len(text.split("\nLayout\n")[0].splitlines()) <= 110
    (layout,) = find_blocks(ROOT / "README.rst", "")
    listed = [line.split()[0] for line in layout.splitlines() if not line.startswith(" ")]
    assert [name for name in listed if not (ROOT / name).exists()] in ([], ["nemo-experiments/"])
    made = re.compile(r"\..*|build|__pycache__|.*\.egg-info")
    folders = [path.name for path in ROOT.iterdir() if path.is_dir()]
    assert {f"{name}/" for name in folders if not made.fullmatch(name)} <= set(listed)
    (line,) = [line for line in layout.splitlines() if line.startswith("docs/")]
    for path in (ROOT / "docs").glob("*.rst"):
        assert path.stem in line


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures and all(path.stat().st_size < 150_000 for path in pictures)


@functools.cache
def find_texts(path) -> str:
    """Every text in a module's code, with "…" where something is put in."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            texts.append(
                "".join(
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                )
            )
        elif isinstance(node, ast.Constant):
            texts.append(str(node.value))
        elif isinstance(node, ast.Import):
            texts += [f"No module named '{name.name.split('.')[0]}'" for name in node.names]
    return "\n".join(texts)


def find_errors() -> list[str]:
    """The errors of the troubleshooting sections, by their literal text."""
    terms = [
        term
        for path in (ROOT / "README.rst", ROOT / "docs" / "troubleshooting.rst")
        for term in parse(path).findall(nodes.term)
    ]
    return [literal.astext() for term in terms for literal in term.findall(nodes.literal)]


@pytest.mark.parametrize("error", find_errors())
def test_errors_are_those_of_the_source(error):
    """All of it but values, names with an underscore and what "..." stands for."""
    if error in FROM_LIBRARIES:
        pytest.skip(f"a text of {FROM_LIBRARIES[error]}")
    pieces = re.split(r'\.\.\.|\d+|"[^"]*"|\w*_[\w.]*|\S*/\S*', error)
    pieces = pieces if "No module named" not in error else [error]
    pieces = [piece.strip() for piece in pieces if re.search(r"\w", piece)]
    texts = [find_texts(path) for path in (ROOT / "ticketlib").glob("*.py")]
    texts.append((ROOT / "Makefile").read_text("utf-8"))
    assert any(all(piece in text for piece in pieces) for text in texts)
    assert len("".join(pieces)) > 15
