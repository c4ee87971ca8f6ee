"""A parameter that is unknown or of the wrong type is named before anything is done with it."""

import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT

from ticketlib.parameters import check_parameters

CELL = """
run_name: str = "demo"
lora_rank: int = 0
learning_rate: float = 0.0
restart: bool = False
lora_targets: list = []
other: "tuple" = ()
"""


def check(changes=""):
    namespace = {}
    exec(CELL + changes, namespace)  # As papermill does: its cell comes after, without types
    check_parameters(namespace)


@pytest.mark.parametrize("changes", ["", "learning_rate = 1", "lora_targets = ['a']", "other = 5"])
def test_right_types_pass(changes):
    check(changes)
    check_parameters({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("lora_rank = '8'", "lora_rank is '8', of type str; int is accepted. Write it without"),
        ("lora_rank = True", "lora_rank is True, of type bool; int"),
        ("lora_rank = 8.0", "lora_rank is 8.0, of type float; int"),
        ("run_name = 2024", "run_name is 2024, of type int; str is accepted. Write it in quotes"),
        ("restart = 'yes'", "restart is 'yes', of type str; bool is accepted. Write True or False"),
        ("lora_targets = 'linear_qkv'", "lora_targets is .*; list is accepted. Write it in brack"),
        ("learning_rate = None", "learning_rate is None, of type NoneType; float"),
        ("run_name = 1; lora_rank = ''", "run_name is 1, .* lora_rank is ''"),
    ],
)
def test_wrong_types_are_named_with_what_is_accepted(changes, message):
    with pytest.raises(TypeError, match=message):
        check(changes)


INJECTED = "# Parameters\nrun_name = 'ours'\nlora_rnak = 4\nPAPERMILL_INPUT_PATH = 'x'\n"


def test_names_that_papermill_sets_are_those_of_the_first_cell():
    namespace = {}
    exec(CELL, namespace)
    namespace |= {"In": ["", CELL, INJECTED, "mine = 3"], "mine": 3}
    with pytest.raises(TypeError, match="^lora_rnak is no parameter here. Did you mean lora_rank?"):
        check_parameters(namespace)
    namespace["In"].append(INJECTED.replace("lora_rnak", "lora_rank"))  # Mended and run again
    check_parameters(namespace)
    namespace["In"].append("# Parameters\nxyz = 4\n")
    with pytest.raises(TypeError, match="xyz is no parameter here. Accepted: run_name, lora_rank"):
        check_parameters(namespace)


@pytest.fixture
def notebooks(tmp_path):
    """Two notebooks, the second with a parameter more."""
    first = "run_name: str = ''"
    for name, cell in (("01", first), ("02", f"{first}\ntargets: list = []")):
        parameters = nbformat.v4.new_code_cell(cell, metadata={"tags": ["parameters"]})
        notebook = nbformat.v4.new_notebook(cells=[parameters])
        python = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook.metadata = {"kernelspec": python, "language_info": {"name": "python"}}
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    return tmp_path


@pytest.mark.parametrize(("name", "expected"), [("01", []), ("02", ["targets"])])
def test_each_notebook_of_a_series_gets_the_parameters_that_it_has(notebooks, name, expected):
    done = run_notebook(notebooks, name, "-r", "run_name", "ours", "-y", "targets: [a]")
    assert done.returncode == 0 and "unknown parameter" not in done.stderr, done.stderr
    assert done.stderr.count("Input Notebook") == 1
    copy = nbformat.read(notebooks / "copies" / f"{name}.ipynb", as_version=4)
    assert {*copy.metadata.papermill.parameters} == {"run_name", *expected}


def test_a_parameter_that_no_notebook_has_is_a_wrong_call(notebooks):
    done = run_notebook(notebooks, "01", "-p", "tragets", "1")
    assert done.returncode == 2 and not list((notebooks / "copies").iterdir())
    assert "Error: tragets is no parameter here. Did you mean targets?" in done.stderr


def run_notebook(folder, name, *arguments):
    (folder / "copies").mkdir()
    command = [sys.executable, "-m", "ticketlib.parameters", folder / f"{name}.ipynb"]
    command += [folder / "copies" / f"{name}.ipynb", "--prepare-only", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
