"""For shells and schedulers: executors, the script of a Slurm job, exit codes, logs, leftovers.

Slurm itself is not needed. Commands that stand in for it (slurm_standin.py) run at once what
sbatch is given, so that the job trains from NeMo-Run's own script.
"""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
import slurm_standin
from conftest import ROOT

from ticketlib import executors
from ticketlib.paths import Run

SLURM = "account=support partition=gpu time=04:00:00"
PYTHON = {"name": "python3", "display_name": "Python 3", "language": "python"}


def make_recipe(folder, devices=1, nodes=1, accelerator="cpu"):
    """What `make_executor` looks at."""
    return SimpleNamespace(
        trainer=SimpleNamespace(devices=devices, num_nodes=nodes, accelerator=accelerator),
        model=SimpleNamespace(config=SimpleNamespace(hf_folder=str(folder / "base"))),
    )


@pytest.mark.parametrize(
    ("slurm", "found"),
    [
        ("time=1:00", {"time": "1:00"}),
        ("--time=1-0 --mail-user=a@b exclusive", {"time": "1-0", "mail_user": "a@b"}),
        ("time=5 comment='two words' gres=gpu:h100:2", {"comment": "two words"}),
        ("time=5 container_mounts=/a:/a,/b:/c", {"container_mounts": ["/a:/a", "/b:/c"]}),
    ],
)
def test_slurm_settings_are_those_of_sbatch(slurm, found):
    settings = executors.read_slurm(slurm)
    assert found.items() <= settings.items()
    assert settings.get("exclusive", True) is True


@pytest.mark.parametrize(
    ("slurm", "message"),
    [
        ("", "sets no time, .*such as time=04:00:00"),
        ("time=1 acount=me", '"acount", which is unknown. Did you mean "account"'),
        ("time=1 nodes=2", '"nodes", which follows from devices and nodes'),
        ("time=1 gpus-per-node=2", '"gpus_per_node", which follows'),
        ("time=1 clusters=a", '"clusters", which follows'),
        ("time", "sets no time"),
        ("time=1 comment='a", "No closing quotation"),
    ],
)
def test_slurm_settings_that_would_fail_late_are_refused(slurm, message):
    with pytest.raises(ValueError, match=message):
        executors.read_slurm(slurm)


@pytest.mark.parametrize(
    ("name", "slurm", "sizes", "message"),
    [
        ("slrm", SLURM, {}, 'accepted: local, slurm. Did you mean "slurm"'),
        ("local", SLURM, {}, 'for a job, set executor = "slurm"'),
        ("local", "", {"nodes": 2}, "nodes 2"),
        ("local", "", {"devices": 99, "accelerator": "gpu"}, "devices is 99, and this machine has"),
    ],
)
def test_executors_that_cannot_be_are_refused(tmp_path, name, slurm, sizes, message):
    run = Run("demo", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        executors.make_executor(name, run, make_recipe(tmp_path, **sizes), slurm=slurm)


@pytest.mark.parametrize("name", ["two words", "a;b", "a'b", "nemo_run"])
def test_names_that_nemo_run_would_break_are_refused_for_jobs_only(tmp_path, name):
    run = Run(name, str(tmp_path))
    with pytest.raises(ValueError, match="not a path that NeMo-Run can use"):
        executors.make_executor("slurm", run, make_recipe(tmp_path), slurm=SLURM)
    assert executors.make_executor("local", run, make_recipe(tmp_path)) is None


def test_executors_ask_for_what_the_recipe_says(tmp_path):
    run = Run("demo", str(tmp_path / "experiments"))
    local = executors.make_executor("local", run, make_recipe(tmp_path, devices=2))
    assert (local.nnodes(), local.nproc_per_node(), local.launcher) == (1, 2, "torchrun")
    recipe = make_recipe(tmp_path, devices=8, nodes=2, accelerator="gpu")
    job = executors.make_executor(
        "slurm", run, recipe, slurm=f"{SLURM} container_image=nemo:25.11 container_mounts=/x:/y"
    )
    assert (job.nodes, job.ntasks_per_node, job.gpus_per_node) == (2, 8, 8)
    folders = [ROOT, tmp_path / "experiments", tmp_path / "base"]
    assert job.container_mounts == [*(f"{each}:{each}" for each in folders), "/x:/y"]
    assert not job.env_vars  # The container has its own Python
    job = executors.make_executor("slurm", run, recipe, slurm="time=9 gres=gpu:8 mail_user=me")
    assert job.gpus_per_node is None and job.gres == "gpu:8" and job.account is None
    assert job.additional_parameters == {"mail_user": "me"}


def test_a_job_that_slurm_starts_again_does_not_train_over_the_first(monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(RuntimeError, match="Run 03_train_lora.ipynb again instead"):
        executors.finetune(seed=0)


def test_jobs_are_not_submitted_without_slurm_or_twice(tmp_path, monkeypatch):
    run = Run("demo", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match='sbatch, squeue, sacct not found.*"local"'):
        executors.check_slurm(run)
    commands = slurm_standin.install(tmp_path)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    executors.check_slurm(run)
    run.jobs.mkdir(parents=True)
    tunnel = json.dumps({"job_dir": "", "packaging_jobs": {}})
    noted = f"{slurm_standin.JOB} = log*,{run.jobs},LocalTunnel,{tunnel}\n"
    (run.jobs / ".slurm_jobs").write_text(noted)
    executors.check_slurm(run)  # It is no longer in the queue
    (tmp_path / f"{slurm_standin.JOB}.sh").touch()
    with pytest.raises(RuntimeError, match="squeue --job 17 shows it"):
        executors.check_slurm(run)
    executors.check_slurm(Run("other", str(tmp_path)))
    (commands / "sacct").write_text("#!/bin/sh\necho accounting is off >&2; exit 1\n")
    with pytest.raises(RuntimeError, match="sacct --noheader failed: accounting is off"):
        executors.check_slurm(Run("other", str(tmp_path)))


def test_a_training_of_a_closed_notebook_is_not_joined(tmp_path):
    run = Run("demo", str(tmp_path))
    code = "import sys; from ticketlib.executors import training_alone; from pathlib import Path\n"
    code += "with training_alone(Path(sys.argv[1])): print('trains', flush=True); input()"
    command = [sys.executable, "-c", code, str(run.training)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
        while "trains" not in other.stdout.readline():
            assert other.poll() is None
        with pytest.raises(RuntimeError, match="Another process trains into"):
            with executors.training_alone(run.training):
                pass
        other.communicate("\n")
    with executors.training_alone(run.training):
        pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What batch_training.py found, and where; it trains elsewhere, with an empty home folder."""
    folder = tmp_path_factory.mktemp("trained")
    home = tmp_path_factory.mktemp("home")
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("NEMORUN")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{slurm_standin.install(folder)}:{os.environ['PATH']}"
    environment["HF_TOKEN"] = "hf_secret"
    script = ROOT / "tests" / "batch_training.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((folder / "found.json").read_text("utf-8"))
    return SimpleNamespace(folder=folder, home=home, shown=done.stdout, **found)


def test_two_processes_train_as_one_does(trained):
    """The same tickets a step: equal at first, then rounding grows through Adam."""
    assert "error" not in trained.two, trained.two["error"]
    one, two = trained.one["losses"], trained.two["losses"]
    assert two[0] == pytest.approx(one[0], abs=1e-5) and len(two) == len(one) == 8
    assert two == pytest.approx(one, abs=0.1) and one[0] - one[-1] > 0.5
    assert trained.two["best"].startswith("step=8-")


def test_the_script_of_a_job_asks_for_what_was_said(trained):
    script = trained.job["script"]
    lines = script.splitlines()
    expected = ["--account=support", "--partition=gpu", "--time=04:00:00", "--nodes=1"]
    expected += ["--ntasks-per-node=1", "--job-name=job.train"]
    assert {f"#SBATCH {each}" for each in expected} <= set(lines)
    assert "gpus" not in script  # The recipe is for a CPU
    (command,) = [line for line in lines if "fdl_runner" in line]
    assert " torchrun " in command and "--nnodes 1 --nproc-per-node 1 " in command
    assert str(trained.folder / "results" / "job" / "jobs") in command
    assert f"export PATH={os.path.dirname(sys.executable)}:$PATH" in lines
    written = [path for path in (trained.folder / "results").rglob("jobs/**/*") if path.is_file()]
    assert len(written) > 3
    assert not any(b"hf_secret" in path.read_bytes() for path in written)


def test_a_dry_run_submits_nothing_and_a_job_once(trained):
    failed, job = (trained.folder / "submitted").read_text().splitlines()
    assert "/failed/" in failed and "/job/" in job and job.startswith("--requeue --parsable ")
    shown = trained.job["script"].splitlines()
    submitted = (trained.folder / f"{slurm_standin.JOB}.sh").read_text().splitlines()
    flags = [[each for each in lines if "#SBATCH" in each] for lines in (shown, submitted)]
    assert len(flags[0]) == len(flags[1]) > 5
    assert [each for each in flags[0] if "output" not in each] == [
        each for each in flags[1] if "output" not in each
    ]


def test_a_job_trains_from_its_script_and_is_waited_for(trained):
    assert (trained.folder / f"{slurm_standin.JOB}.exit").read_text().strip() == "0"
    assert "Submitted as Slurm job 17" in trained.shown
    assert trained.job["losses"] == pytest.approx(trained.one["losses"], abs=1e-5)
    assert trained.job["best"] == trained.one["best"]


def test_a_job_that_fails_is_an_error_with_the_place_of_its_log(trained):
    assert "Training ended as FAILED" in trained.failed["error"]
    assert str(trained.folder / "results" / "failed" / "jobs") in trained.failed["error"]


def test_a_log_shows_progress_in_few_lines_with_the_speed(trained):
    lines = [line for line in trained.shown.replace("\r", "\n").splitlines() if "/8 [" in line]
    assert 1 < len(lines) <= 4 and "8/8 [" in lines[-1]
    assert "tickets/s" in lines[-1] and " 0.0 tickets/s" not in lines[-1]


def test_nothing_is_left_in_the_home_folder(trained):
    assert not list(trained.home.glob(".nemo*")) and not list(trained.home.glob(".torchx*"))


# From the shell


@pytest.fixture
def checkout(tmp_path):
    """A copy of the project in a folder with a space, whose notebooks are one cell each."""
    folder = tmp_path / "the project"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "data").mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copytree(ROOT / "ticketlib", folder / "ticketlib")
    cells = {
        "01_explore_tickets": "assert open(tickets_csv).read() == 'x'; print(run_name)",
        "02_prepare_jsonl": "print('prepared')",
        "03_train_lora": "from ticketlib import logs; print(logs.can_show()); 1 / steps",
        "04_evaluate_and_export": "print('the verdict')",
    }
    for name, code in cells.items():
        parameters = nbformat.v4.new_code_cell(
            "run_name = ''\nprofile = ''\nexperiments_dir = ''\ntickets_csv = ''\nsteps = 1"
        )
        parameters.metadata["tags"] = ["parameters"]
        notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)])
        notebook.metadata = {"kernelspec": PYTHON, "language_info": {"name": "python"}}
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    return folder


def make_tutorial(folder, *settings):
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", "tutorial", "VENV=", f"PYTHON={sys.executable}", *settings]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.notebook
def test_a_log_tells_when_what_ran_and_what_cells_said(checkout, tmp_path):
    tickets = tmp_path / "my tickets.csv"
    tickets.write_text("x")
    done = make_tutorial(checkout, "RUN_NAME=first run", f"TICKETS={tickets}")
    assert done.returncode == 0, done.stderr
    results = checkout / "nemo-experiments" / "results" / "first run"
    assert "the verdict" in (results / "report.html").read_text("utf-8")
    assert len(list((results / "notebooks").glob("*.ipynb"))) == 4
    assert "== 03_train_lora, 20" in done.stdout
    log = done.stderr.splitlines()
    assert {"first run", "prepared", "the verdict"} <= set(log)  # Papermill logs there
    assert "False" in log and "\r" not in done.stderr  # Nothing that grows, no bars


@pytest.mark.notebook
def test_a_failure_ends_the_series_with_a_code_and_names_the_copy(checkout, tmp_path):
    tickets = tmp_path / "tickets.csv"
    tickets.write_text("x")
    results = checkout / "nemo-experiments" / "results" / "demo"
    assert make_tutorial(checkout, f"TICKETS={tickets}").returncode == 0
    done = make_tutorial(checkout, f"TICKETS={tickets}", "PAPERMILL_ARGS=-p steps 0")
    assert done.returncode == 2 and "ZeroDivisionError" in done.stderr
    copy = "nemo-experiments/results/demo/notebooks/03_train_lora.ipynb"
    assert "Stopped in 03_train_lora, 20" in done.stderr and "exit code 1" in done.stderr
    assert copy in done.stderr and "There is no report.html" in done.stderr
    assert "04_evaluate" not in done.stdout
    assert not (results / "report.html").exists()  # That of before would mislead
    failed = nbformat.read(checkout / copy, as_version=4)
    assert failed.metadata.papermill.exception


def test_a_misspelled_parameter_is_a_wrong_call(checkout):
    done = make_tutorial(checkout, "PAPERMILL_ARGS=-p stepps 2")
    assert done.returncode == 2 and "Did you mean steps?" in done.stderr
    assert "Stopped in" not in done.stderr  # Nothing was begun
    assert not list((checkout / "nemo-experiments").rglob("*.ipynb"))


@pytest.mark.parametrize("name", ["a/b", "it's"])
def test_names_that_the_shell_would_break_are_refused(checkout, name):
    done = make_tutorial(checkout, f"RUN_NAME={name}")
    assert done.returncode == 2 and "RUN_NAME" in done.stderr
    assert not (checkout / "nemo-experiments").exists()


@pytest.mark.notebook
def test_papermill_runs_from_elsewhere_and_fails_with_a_code(tmp_path):
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "03_train_lora.ipynb")]
    command += ["out.ipynb", "-p", "experiments_dir", str(tmp_path), "-p", "lora_rank", "16"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'Run 02_prepare_jsonl.ipynb with run_name = "demo" first' in done.stderr
    assert (tmp_path / "out.ipynb").exists()
