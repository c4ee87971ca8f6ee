"""The ways to set the project up agree with each other, and make does what its help says.

Versions are written in pyproject.toml (what is needed) and constraints.txt (what works); the conda
environment, the container and the checks before a commit have to follow. make runs on a stand-in
for Python here that records its calls, so nothing is installed.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
NOTEBOOKS = [
    "01_explore_tickets",
    "02_prepare_jsonl",
    "03_train_lora",
    "04_evaluate_and_export",
]


def read_constraints(path: Path) -> dict[str, str]:
    """Give name -> version; every line has to be a comment or one exact version."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    versions = {canonicalize_name(name): version for name, version in pairs}
    assert len(versions) == len(lines), "a package stands there twice"
    return versions


def extras() -> list[Requirement]:
    return [Requirement(r) for group in PROJECT["optional-dependencies"].values() for r in group]


@pytest.mark.parametrize("requirement", [*DEPENDENCIES.values(), *extras()], ids=str)
def test_constraints_lock_each_dependency_at_an_accepted_version(requirement):
    locked = read_constraints(ROOT / "constraints.txt")[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(locked)


def test_constraints_hold_for_machines_with_and_without_a_gpu():
    locked = read_constraints(ROOT / "constraints.txt")
    assert not [version for version in locked.values() if "+" in version]
    assert not [n for n in locked if re.fullmatch(r"triton|cuda-toolkit|nvidia-.*-cu\d+", n)]


def test_conda_environment_is_python_and_the_project():
    text = (ROOT / "environment.yml").read_text()
    environment = yaml.safe_load(text)
    assert environment["channels"] == ["conda-forge"]
    *packages, pip = environment["dependencies"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[notebooks]"]}
    python = next(p for p in packages if p.startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python=") + ".0")
    lines = [line for line in text.splitlines() if re.match(r"  - \w", line)]
    listed = [line for line in lines if "conda-forge" not in line and "pip:" not in line]
    assert len(listed) == len(packages)
    assert all(re.search(r"  # .{10,}", line) for line in listed), "say why each package is there"


def test_conda_environment_explains_what_pyproject_names():
    text = (ROOT / "environment.yml").read_text()
    explained = re.findall(r"^ +#   ([\w-]+) +\S", text, re.MULTILINE)
    named = [*DEPENDENCIES, *map(canonicalize_name, PROJECT["optional-dependencies"]["notebooks"])]
    assert [canonicalize_name(name) for name in explained] == named
    asked_for = "nemo-toolkit torch pandas jupyterlab ipywidgets matplotlib papermill safetensors"
    assert set(asked_for.split()) <= set(named)


def test_container_starts_jupyterlab_on_nvidias_image():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    code = [line for line in lines if not line.startswith("#")]
    assert re.fullmatch(r"ARG FW_VERSION=\d\d\.\d\d", code[0])
    assert code[1] == "FROM nvcr.io/nvidia/nemo:${FW_VERSION}"
    assert "EXPOSE 8888" in code
    assert code[-1].startswith('CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888"')
    assert not re.search(r"(?i)(token|password|key|secret)\s*=", "\n".join(code))


def test_container_versions_are_pyprojects():
    text = (ROOT / "Dockerfile").read_text()
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert not re.search(r"[=<>]=\s*\d", code), "versions are read from pyproject.toml"
    named = re.findall(r"megatron-core (\d[\d.]*\d)", text)
    assert named and all(DEPENDENCIES["megatron-core"].specifier.contains(v) for v in named)


def test_container_keeps_its_torch_and_transformer_engine(tmp_path):
    script = re.search(r"<<'EOF'\n(.*?)^EOF$", (ROOT / "Dockerfile").read_text(), re.S | re.M)[1]
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name, version in [("transformer_engine", "2.9.0"), ("megatron_core", "0.15.0rc0")]:
        folder = tmp_path / "site" / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    out = subprocess.run(
        [sys.executable, "-c", script.replace("/opt/", f"{tmp_path}/kept-")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = {canonicalize_name(r.name): r for r in map(Requirement, out.stdout.splitlines())}
    assert "torch" not in wanted
    assert wanted | {"torch": DEPENDENCIES["torch"]} == wanted | DEPENDENCIES
    assert "jupyterlab" in wanted
    kept = read_constraints(tmp_path / "kept-constraints.txt")
    assert kept["torch"] == importlib.metadata.version("torch")
    assert kept["transformer-engine"] == "2.9.0"
    locked = read_constraints(ROOT / "constraints.txt")
    assert {kept[n] == locked[n] for n in ("megatron-core", "nemo-toolkit", "numpy")} == {True}


def test_checks_before_a_commit_are_those_of_make_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entry = {hook["id"]: hook["entry"] for hook in hooks}
    keys = r"--extra-keys ['\"](.*)['\"]"
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(keys, entry["nbstripout"])[1] == re.search(keys, makefile)[1]
    assert all(tool in makefile for tool in ("ruff check", "ruff format", "nbstripout", "docutils"))


def test_ci_runs_lint_and_test_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert lines[2:] == ["make lint", "make test"]


def test_license_is_the_whole_apache_license():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    for part in ("Version 2.0, January 2004", "9. Accepting Warranty", "END OF TERMS", "APPENDIX"):
        assert part in text


def test_tracked_files_name_no_path_of_one_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    pattern = r"(^|[^[:alnum:]_.$}{])/((home|root|work|farm|Users)/|tmp/[[:alnum:]])"
    command = ["git", "grep", "-nIE", pattern, "--", ".", ":!tests/test_setup.py"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1 and not found.stderr, found.stdout + found.stderr


# What make does, with a Python that only records.

FAKE_PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit 0
[ "$1" = --version ] && echo "Python 3.11.0" && exit 0
echo "$@" >>calls
[ "$2" = venv ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
[ ! -e fail ] || ! echo "$@" | grep -q -f fail
"""


class Checkout:
    """A copy of what make needs, in an empty folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        (folder / "python").write_text(FAKE_PYTHON)
        (folder / "python").chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess:
        command = ["make", f"PYTHON={self.folder}/python", *arguments]
        # Without the settings of the make that may be running this test.
        env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True)

    def calls(self) -> list[str]:
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_help_lists_every_target(checkout):
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    described = re.findall(r"^make (\w+) +\S", checkout.make("help").stdout, re.M)
    assert sorted(described) == sorted(targets)
    assert {"tutorial", "test", "lab", "lint", "clean"} <= set(targets)
    for target in targets:
        assert checkout.make("-n", target).returncode == 0


def test_environment_is_made_once_and_again_when_pins_change(checkout):
    assert checkout.make("install").returncode == 0
    called = "\n".join(checkout.calls())
    assert "-m venv .venv" in called
    assert "-c constraints.txt -e .[notebooks,test,dev]" in called
    assert "-m pip check" in called
    assert checkout.make("install", "test").returncode == 0
    assert checkout.calls() == ["-m pytest -n 2 --dist loadfile"]
    for name in ("pyproject.toml", "constraints.txt"):
        installed = (checkout.folder / ".venv/installed").stat().st_mtime
        os.utime(checkout.folder / name, (installed + 2, installed + 2))
        assert checkout.make("-q", "install").returncode == 1
        os.utime(checkout.folder / name, (installed - 2, installed - 2))
        assert checkout.make("-q", "install").returncode == 0


@pytest.mark.parametrize("step", ["pip install", "pip check"])
def test_unfinished_install_does_not_count(checkout, step):
    (checkout.folder / "fail").write_text(step)
    assert checkout.make("test").returncode != 0
    assert not any(call.startswith("-m pytest") for call in checkout.calls())
    (checkout.folder / "fail").unlink()
    assert checkout.make("test").returncode == 0
    assert any(call.startswith("-m pip install") for call in checkout.calls())


def test_folder_of_someone_else_is_left_alone(checkout):
    own = checkout.folder / ".venv" / "mine"
    own.parent.mkdir()
    own.write_text("precious")
    done = checkout.make("install")
    assert done.returncode != 0 and "was not made by make" in done.stderr
    checkout.make("clean")
    assert own.read_text() == "precious"
    assert checkout.calls() == []


def test_tutorial_runs_the_notebooks_in_order_with_their_parameters(checkout):
    done = checkout.make("tutorial", "VENV=", "RUN_NAME=first", "TICKETS=mine.csv")
    assert done.returncode == 0, done.stderr
    *calls, publish = checkout.calls()
    results = "nemo-experiments/results/first"
    executed = f"{results}/notebooks/04_evaluate_and_export.ipynb"
    assert publish == f"-m ticketlib.publish {executed} {results}/report.html"
    assert [Path(call.split()[2]).stem for call in calls] == NOTEBOOKS
    for call in calls:
        assert call.startswith("-m ticketlib.parameters notebooks/")
        assert "nemo-experiments/results/first/notebooks/0" in call
        assert "-r run_name first -r profile tiny -r experiments_dir nemo-experiments" in call
        assert "-r tickets_csv mine.csv" in call  # Left out where a notebook has none
    assert "nemo-experiments/results/first" in done.stdout


def test_tutorial_stops_at_the_first_failure(checkout):
    (checkout.folder / "fail").write_text("02_prepare")
    done = checkout.make("tutorial", "VENV=")
    assert done.returncode != 0 and "Stopped in 02_prepare_jsonl" in done.stderr
    assert len(checkout.calls()) == 2


def test_clean_keeps_results_and_says_so(checkout):
    result = checkout.folder / "nemo-experiments" / "results" / "__pycache__" / "kept"
    result.parent.mkdir(parents=True)
    result.touch()
    checkout.make("install")
    done = checkout.make("clean")
    assert result.exists() and "Kept: nemo-experiments/" in done.stdout
    assert not (checkout.folder / ".venv").exists()
