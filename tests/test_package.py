"""The package for those who import it: alone, from a script, with documentation that is complete.

The copyable cells of the notebooks run as plain scripts outside the project. JupyterLab and what
comes with it are hidden from them, as in an environment without the extra `notebooks`.
"""

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from documents import find_blocks
from packaging.requirements import Requirement

import ticketlib
from ticketlib.checksums import verify_checksums
from ticketlib.jsonl import write_jsonl
from ticketlib.paths import Run
from ticketlib.prompts import FINAL, render_answer

ROOT = Path(__file__).resolve().parents[1]
MODULES = {path.stem: path for path in sorted((ROOT / "ticketlib").glob("[!_]*.py"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRA = [Requirement(r).name for r in PROJECT["optional-dependencies"]["notebooks"]]


def run_script(folder: Path, *lines: str) -> subprocess.CompletedProcess:
    """Run lines as a script, in a folder outside the project, as if Jupyter were not installed."""
    hidden = [*EXTRA, "IPython", "ipykernel"]
    hide = f"import sys\nsys.modules.update(dict.fromkeys({hidden}))"
    script = folder / "script.py"
    script.write_text("\n".join([hide, *lines]), encoding="utf-8")
    return subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env={
            **{"PATH": "", "HOME": str(folder), "PYTHONPATH": str(ROOT)},
            **{"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"},
        },
        capture_output=True,
        text=True,
    )


def copyable_script(name: str, **parameters: object) -> list[str]:
    """The parameters of a notebook, other values for some, and its copyable cells."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    tagged = {
        tag: [cell.source for cell in cells if tag in cell.metadata.get("tags", [])]
        for tag in ("parameters", "copyable")
    }
    assert tagged["copyable"]
    others = [f"{name} = {value!r}" for name, value in parameters.items()]
    return [*tagged["parameters"], *others, *tagged["copyable"]]


@pytest.fixture
def here(tmp_path):
    """Parameters of a run in a folder of its own, with the project's files by their full paths."""
    return {
        "experiments_dir": str(tmp_path / "experiments"),
        "base_model": str(ROOT / "data" / "tiny-gpt-oss"),
        "tickets_csv": str(ROOT / "data" / "tickets.csv"),
    }


def test_every_module_but_two_does_without_jupyter(tmp_path):
    lines = [
        "import importlib",
        f"for name in {[*MODULES]}:",
        "    try:",
        "        importlib.import_module(f'ticketlib.{name}')",
        "    except ModuleNotFoundError as error:",
        "        print(f'{name}: {error}')",
    ]
    done = run_script(tmp_path, *lines)
    assert done.returncode == 0, done.stderr
    needs = dict(re.findall(r"^(\w+): (.*)$", done.stdout, re.M))
    needs.pop("te_layers", None)  # Needs Transformer Engine, which comes with NVIDIA's container
    assert needs.keys() & MODULES.keys() == {"publish", "widgets"}
    for name in ("publish", "widgets"):
        assert "pip install 'ticketlib[notebooks]'" in needs[name]


def test_copyable_cells_of_notebook_1_read_tickets(tmp_path, here):
    done = run_script(tmp_path, *copyable_script("01_explore_tickets", **here))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^2,\d\d\d tickets in 10 queues$", done.stdout, re.M)
    assert re.search(r"^1,\d\d\d tickets have a near copy, \d+ labels", done.stdout, re.M)


def test_copyable_cells_of_notebook_2_make_files_for_training(tmp_path, here):
    done = run_script(tmp_path, *copyable_script("02_prepare_jsonl", **here))
    assert done.returncode == 0, done.stderr
    files = {path.stem: path for path in tmp_path.rglob("*.jsonl")}
    assert files.keys() == {"training", "validation", "test"}
    for path in files.values():
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert len(records) > 100
        assert all(record["output"].startswith(FINAL) for record in records)


def test_copyable_cells_of_notebook_3_draw_the_losses(tmp_path, here):
    run = Run("demo", here["experiments_dir"])
    attempt = run.training / "attempt-1"
    attempt.mkdir(parents=True)
    losses = pd.DataFrame({"step": [0, 1], "reduced_train_loss": [2.0, 1.0], "val_loss": [None, 1]})
    losses.to_csv(attempt / "metrics.csv", index=False)
    for path in (run.training_jsonl, run.validation_jsonl):
        write_jsonl(path, [{"input": "A ticket", "output": render_answer("IT Support")}])
    done = run_script(tmp_path, *copyable_script("03_train_lora", **here))
    assert done.returncode == 0, done.stderr
    assert (run.figures / "loss.png").stat().st_size > 1000


def test_copyable_cells_of_notebook_4_route_a_ticket(tmp_path, here):
    queues = ["Billing and Payments", "IT Support"]
    run = Run("demo", here["experiments_dir"])
    run.dataset.mkdir(parents=True)
    style = {"queues": queues, "prompt_format": "harmony"}
    run.settings.write_text(json.dumps({"prompt": style, "seq_length": 512}))
    figures = {"calibrated.temperature": 2.0, "handoff.threshold": 0.99}
    run.metrics.write_text(json.dumps(figures))
    shutil.copytree(here["base_model"], run.exported)
    done = run_script(tmp_path, *copyable_script("04_evaluate_and_export", **here))
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^({'|'.join(queues)}) \d+% person$", done.stdout, re.M)


@pytest.mark.parametrize("column", ["Betreff", ""])
def test_copyable_cells_read_the_export_as_the_notebook_does(tmp_path, here, column):
    export = pd.read_csv(here["tickets_csv"]).head(400)
    export = export[export["subject"].notna()].rename(columns={"subject": "Betreff"})
    export.to_csv(tmp_path / "export.csv", index=False, encoding="utf-16")
    given = {"subject_column": column, "encoding": "utf-16", "group_paraphrases": False}
    given |= {"seq_length": 300, "prompt_format": "plain"}
    here["tickets_csv"] = str(tmp_path / "export.csv")
    done = run_script(tmp_path, *copyable_script("02_prepare_jsonl", **here, **given))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ *read as CSV, utf-16", done.stdout, re.M)
    (file,) = tmp_path.rglob("training.jsonl")
    lines = file.read_text("utf-8").splitlines()
    assert len(lines) == pytest.approx(0.8 * len(export), abs=1)  # No groups to keep together
    assert all(("Subject: " in line) == bool(column) for line in lines)


def test_code_of_the_document_trains_and_can_be_run_again(tmp_path):
    (tmp_path / "data").symlink_to(ROOT / "data")
    first, *others = find_blocks(ROOT / "docs" / "package.rst", "python")
    done = run_script(tmp_path, first, *others, *others)
    assert done.returncode == 0, done.stderr
    accuracy, *_, best, ended, again = done.stdout.splitlines()
    assert 0.70 <= float(accuracy) <= 0.88  # As test_notebooks.py expects of TF-IDF
    assert Path(best).name.startswith("step=20-") and again == best
    assert "ended at step 20 already" in ended


def test_an_import_needs_no_guard_for_main(tmp_path, here):
    """Megatron-Core starts processes while it saves; they must not begin with the script."""
    lines = [
        "import torch",
        "from nemo.collections import llm",
        "from ticketlib import gptoss",
        f"base, dtype = {here['base_model']!r}, torch.float32",
        "print('the script begins')",
        "model = gptoss.build_model(base, dtype)",
        "llm.import_ckpt(model, f'hf://{base}', output_path='imported', dtype=dtype)",
    ]
    done = run_script(tmp_path, *lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the script begins") == 1
    verify_checksums(tmp_path / "imported")


def public_functions() -> list[tuple[str, ast.FunctionDef]]:
    """Functions of every module and methods of its classes; those that NeMo and others call
    by names of theirs are documented there."""
    found = []
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text("utf-8"))
        own = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.bases]
        for prefix, nodes in [("", tree.body), *((f"{node.name}.", node.body) for node in own)]:
            found += [
                (f"{module}.{prefix}{node.name}", node)
                for node in nodes
                if isinstance(node, ast.FunctionDef)
                and not prefix.startswith("_")
                and (node.name == "__init__" or not node.name.startswith("_"))
            ]
    return found


def list_parameters(function: ast.FunctionDef) -> dict[str, ast.expr | None]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [one for one in (arguments.vararg, arguments.kwarg) if one]
    return {each.arg: each.annotation for each in named if each.arg not in ("self", "cls")}


def read_section(function: ast.FunctionDef, title: str) -> list[str]:
    """What a section of a docstring names, in its order."""
    text = ast.get_docstring(function) or ""
    section = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", text, re.M)
    return re.findall(r"^    \**(\w+):", section[1], re.M) if section else []


def test_public_functions_have_types():
    untyped = [
        f"{name}: {parameter}"
        for name, function in public_functions()
        for parameter, kind in (list_parameters(function) | {"return": function.returns}).items()
        if kind is None
    ]
    assert untyped == []
    assert (ROOT / "ticketlib" / "py.typed").exists()


def test_docstrings_explain_the_parameters():
    unexplained = [
        f"{name}: {parameter}"
        for name, function in public_functions()
        for parameter in list_parameters(function)
        if len(list_parameters(function)) > 1 and parameter not in read_section(function, "Args")
    ]
    assert unexplained == []


def test_the_packages_docstring_is_a_map_in_the_order_of_imports():
    lines = re.findall(r"^`(\w+)`\s+(\S.+)$", inspect.getdoc(ticketlib), re.M)
    modules = [module for module, _ in lines]
    assert sorted(modules) == list(MODULES)
    for module, path in MODULES.items():
        before = modules[: modules.index(module)]
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ticketlib"):
                names = [alias.name for alias in node.names]
                needed = names if node.module == "ticketlib" else [node.module.split(".")[1]]
                assert set(needed) <= set(before), f"{module} stands above {needed}"
