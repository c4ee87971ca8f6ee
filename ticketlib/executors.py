"""Where a training runs: in this process, in several of this machine, or in a job of Slurm.

NeMo-Run does the work. Here its executors are filled in for a recipe, so that both ask for the same
GPUs, and what it writes stays in the run's folder instead of `~/.nemo_run`.
"""

import difflib
import gc
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from unittest import mock

import fiddle
import nemo_run
import torch
from invoke import UnexpectedExit
from lightning.pytorch import seed_everything
from nemo.collections import llm
from nemo_run.run import experiment as nemo_run_experiment
from nemo_run.run.torchx_backend.schedulers import local as local_scheduler
from nemo_run.run.torchx_backend.schedulers import slurm as slurm_scheduler
from torchx.specs.api import AppState

from ticketlib.cpu import patch_for_cpu
from ticketlib.logs import console
from ticketlib.paths import Run, locked, project_root

EXECUTORS = ("local", "slurm")
TASK = "train"  # NeMo-Run's name for it, in files and in the queue
# Said by the recipe, or by NeMo-Run
OURS = {"nodes", "ntasks", "ntasks_per_node", "gpus_per_node", "gpus_per_task", "job_name"} | {
    *("array", "output", "error", "open_mode", "wrap", "parsable", "wait", "test_only", "help"),
    "clusters",
}
LISTS = {"container_mounts", "container_env", "srun_args"}
SLURM_SETTINGS = {*nemo_run.SlurmExecutor.SBATCH_FLAGS, *LISTS, "container_image"} - OURS
# NeMo-Run 0.11 writes paths into shell commands as they are, and replaces "/nemo_run" in them
PLAIN_PATH = re.compile(r"(?!.*/nemo_run)[\w./+@=-]+")


def read_slurm(slurm: str) -> dict[str, str | bool | list[str]]:
    """Read settings of a Slurm job, such as `"account=support partition=gpu time=04:00:00"`.

    Args:
        slurm: sbatch's long options without dashes, and NeMo-Run's `container_image`,
            `container_mounts`, `container_env` and `srun_args` (items separated by commas); with
            quotes around spaces, as in a shell. A name alone, such as `exclusive`, is a flag.

    Raises:
        ValueError: A setting is unknown or follows from the recipe, a quote is not closed, or there
            is no `time`.
    """
    settings = {}
    try:
        words = shlex.split(slurm)
    except ValueError as error:
        raise ValueError(f"slurm is {slurm!r}: {error}.") from None
    for word in words:
        name, has_value, value = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if name in OURS:
            raise ValueError(
                f'slurm sets "{name}", which follows from devices and nodes or is set by NeMo-Run. '
                "Leave it out."
            )
        if name not in SLURM_SETTINGS:
            near = difflib.get_close_matches(name, SLURM_SETTINGS, n=1)
            hint = f' Did you mean "{near[0]}"?' if near else ""
            raise ValueError(
                f'slurm sets "{name}", which is unknown.{hint} Accepted are the long options of '
                f"sbatch, and {', '.join(sorted({*LISTS, 'container_image'}))}."
            )
        settings[name] = value.split(",") if name in LISTS else value if has_value else True
    if settings.get("time") in (None, True, ""):
        raise ValueError(
            f'slurm is "{slurm}" and sets no time, after which Slurm ends the job. Add one, such '
            "as time=04:00:00."
        )
    return settings


def make_executor(
    executor: str, run: Run, recipe: nemo_run.Partial, *, slurm: str = ""
) -> nemo_run.LocalExecutor | nemo_run.SlurmExecutor | None:
    """Give NeMo-Run's executor with the nodes and devices of a recipe.

    A Slurm job runs where it finds the same files: the folders of the project, of the experiments
    and of the base model have to be on a file system that the nodes share. In a container they are
    mounted under the same paths. Without one, the job takes this process' Python.

    Args:
        executor: "local", or "slurm" to submit a job.
        run: What NeMo-Run writes goes into its `jobs` folder.
        recipe: Of `training.make_recipe`, for a machine like this one.
        slurm: Settings of the job, as `read_slurm` takes them.

    Returns:
        The executor; None where training runs in this process, on one device.

    Raises:
        ValueError: The executor or a setting is unknown, the recipe needs more than this machine,
            or a path that NeMo-Run cannot use.
    """
    if executor not in EXECUTORS:
        near = difflib.get_close_matches(executor, EXECUTORS, n=1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise ValueError(f'executor is "{executor}"; accepted: {", ".join(EXECUTORS)}.{hint}')
    trainer = recipe.trainer
    bin_folder = Path(sys.executable).parent
    if executor == "local":
        if slurm or trainer.num_nodes > 1:
            raise ValueError(
                f'executor is "local", slurm "{slurm}" and nodes {trainer.num_nodes}. On this '
                'machine, leave slurm empty and nodes at 1; for a job, set executor = "slurm".'
            )
        gpus = torch.cuda.device_count()
        if trainer.accelerator != "cpu" and trainer.devices > gpus:
            raise ValueError(f"devices is {trainer.devices}, and this machine has {gpus} GPUs.")
        if trainer.devices == 1:
            return None
        return nemo_run.LocalExecutor(
            ntasks_per_node=trainer.devices,
            launcher="torchrun",
            # Within a job that Slurm started again, this is not that job
            env_vars={"PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_RESTART_COUNT": "0"},
        )
    settings = read_slurm(slurm)
    project = Path(__file__).parents[1]
    if not (project / "notebooks").is_dir():  # Installed; so it has to be for the job
        project = project_root()
    shared = [project, run.experiments, Path(recipe.model.config.hf_folder)]
    for path in (*shared, run.folder, bin_folder):
        if not PLAIN_PATH.fullmatch(str(path)):
            raise ValueError(
                f'"{path}" is not a path that NeMo-Run can use in a Slurm job. In run_name and in '
                "folders, use letters, digits and +@=_-. and no name that begins with nemo_run."
            )
    if "container_image" in settings:
        own = [f"{path}:{path}" for path in dict.fromkeys(shared)]
        settings["container_mounts"] = own + settings.get("container_mounts", [])
    else:
        settings["env_vars"] = {"PATH": f"{bin_folder}:$PATH"}
    if trainer.accelerator != "cpu" and not settings.keys() & {"gres", "gpus", "gpus_per_socket"}:
        settings["gpus_per_node"] = trainer.devices
    known = {field.name for field in fields(nemo_run.SlurmExecutor)}
    more = {name: settings.pop(name) for name in settings.keys() - known}
    return nemo_run.SlurmExecutor(
        **{"account": None} | settings,
        additional_parameters=more,
        nodes=trainer.num_nodes,
        ntasks_per_node=trainer.devices,
        launcher="torchrun",
        job_name_prefix=f"{run.run_name}.",
        # The job starts in the project's folder, so that it finds `ticketlib`
        packager=nemo_run.GitArchivePackager(symlink_from_remote_dir=str(project)),
    )


def finetune(*, seed: int, **arguments: object) -> None:
    """Do what each process of a job does: `llm.finetune`, with what this process has in order.

    Args:
        seed: Of the adapter's start.
        **arguments: Of `llm.finetune`.

    Raises:
        RuntimeError: Slurm has started the job anew, after a node had failed; or another process
            trains into the same folder.
    """
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0):
        raise RuntimeError(
            "Slurm started this job again. Run 03_train_lora.ipynb again instead: it goes on from "
            "the last checkpoint."
        )
    patch_for_cpu()
    seed_everything(seed)
    logger = arguments["log"]
    is_first = os.environ.get("RANK", "0") == "0"
    with training_alone(Path(logger.log_dir) / logger.name) if is_first else nullcontext():
        llm.finetune(**arguments)


def training_alone(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes from training into a folder; that of a kernel that is gone may go on.

    Args:
        folder: `Run.training`.

    Raises:
        RuntimeError: Another process trains into it.
    """
    return locked(
        folder,
        busy=f"Another process trains into {folder}, perhaps of a notebook that was closed. Wait "
        "for its end, or end it (top shows it), and run this again.",
    )


def sbatch_script(run: Run, recipe: nemo_run.Partial, *, slurm: str) -> str:
    """Give the script that NeMo-Run would submit to Slurm, from a dry run; nothing is submitted.

    The experiment's number and torchrun's `--rdzv-id` are new with each submission.

    Args:
        run: As for `make_executor`, like the others.
        recipe: Of `training.make_recipe`.
        slurm: Settings of the job.

    Raises:
        ValueError: As `make_executor`.
    """
    executor = make_executor("slurm", run, recipe, slurm=slurm)
    with _experiment(run, recipe, executor, seed=0) as experiment:
        experiment.dryrun(log=False, delete_exp_dir=False)
        folder = Path(experiment.jobs[0].executor.experiment_dir)
        script = (folder / f"{TASK}_sbatch.sh").read_text("utf-8")
    shutil.rmtree(folder)
    return script


def check_slurm(run: Run) -> None:
    """Raise if jobs cannot be submitted here, or one of this run is in the queue.

    Raises:
        FileNotFoundError: Slurm's commands are not on this machine.
        RuntimeError: A job of this run waits or runs, or Slurm does not tell of its jobs.
    """
    missing = [name for name in ("sbatch", "squeue", "sacct") if not shutil.which(name)]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)} not found: no Slurm job can be submitted from here. Run this "
            'notebook on a machine of the cluster, or set executor = "local".'
        )
    queue = _ask("squeue", "--noheader", "--format=%i", "--me")
    _ask("sacct", "--noheader")  # NeMo-Run cancels a job whose state it cannot see there
    with _home(run):
        jobs = slurm_scheduler._get_job_dirs().keys() & set(queue.split())
    if jobs:
        job = max(jobs)
        raise RuntimeError(
            f"Slurm job {job} trains {run.run_name} or waits to. Run this notebook again when it "
            f"has ended (squeue --job {job} shows it), or end it with scancel {job}."
        )


def _ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def launch(
    run: Run,
    recipe: nemo_run.Partial,
    executor: nemo_run.LocalExecutor | nemo_run.SlurmExecutor,
    *,
    seed: int,
) -> None:
    """Train in other processes or in a Slurm job, and wait for the end.

    Whoever stops waiting for a Slurm job does not stop the job.

    Args:
        run: Its `jobs` folder gets the configuration, the script and the logs.
        recipe: Of `training.make_recipe`.
        executor: Of `make_executor`.
        seed: Of the adapter's start.

    Raises:
        RuntimeError: It did not succeed, with the place of the logs.
    """
    gc.collect()
    torch.cuda.empty_cache()  # The other processes need what this one keeps for reuse
    with _experiment(run, recipe, executor, seed=seed) as experiment:
        try:
            experiment.run()
        except UnexpectedExit as error:
            raise RuntimeError(f"Slurm took no job: {error.result.stderr.strip()}") from error
        job = experiment.jobs[0]
        folder = Path(job.executor.job_dir)
        number = job.handle.rpartition("/")[2]
        if isinstance(executor, nemo_run.SlurmExecutor):
            print(
                f"Submitted as Slurm job {number}; squeue --job {number} shows it, and its output "
                f"goes to {folder}. This cell waits for its end. If you cannot wait, stop the "
                "kernel, and run the notebook again after the job: it goes on with what follows.",
                file=console(),
            )
        else:
            print(f"Trains in {executor.ntasks_per_node} processes; see {run.log}", file=console())
    if job.state == AppState.UNKNOWN:
        raise RuntimeError(
            f"Slurm does not tell the state of job {number}; squeue --job {number} shows whether "
            "it still runs. When it has ended, run this notebook again."
        )
    if job.state != AppState.SUCCEEDED:
        raise RuntimeError(
            f"Training ended as {job.state.name} ({job.handle}). Look for the reason in {folder} "
            f"and {run.log}. When it is mended, run this notebook again: training goes on from the "
            "last checkpoint, if there is one."
        )


@contextmanager
def _experiment(
    run: Run, recipe: nemo_run.Partial, executor: nemo_run.Executor, *, seed: int
) -> Iterator[nemo_run.Experiment]:
    task = nemo_run.Partial(finetune, seed=seed, **fiddle.ordered_arguments(recipe))
    with (
        _home(run),
        nemo_run.Experiment(
            TASK, executor=executor, skip_status_at_exit=True, enable_goodbye_message=False
        ) as experiment,
    ):
        experiment.add(task, name=TASK, tail_logs=True)
        yield experiment


@contextmanager
def _home(run: Run) -> Iterator[None]:
    """Have NeMo-Run write into the run's folder; it takes its own at import.

    It would also have every process begin with the caller's script, as far as that gets where no
    `if __name__ == "__main__"` keeps it; so it finds no source of one.
    """
    home = str(run.jobs)
    no_source = mock.Mock(getsource=mock.Mock(side_effect=TypeError))
    with (
        mock.patch.object(nemo_run_experiment, "inspect", no_source),
        mock.patch("nemo_run.config._NEMORUN_HOME", home),
        mock.patch.object(local_scheduler, "LOCAL_JOB_DIRS", f"{home}/.local_jobs.json"),
        mock.patch.object(slurm_scheduler, "SLURM_JOB_DIRS", f"{home}/.slurm_jobs"),
    ):
        yield
