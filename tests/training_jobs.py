"""Train in forks of one process that imported NeMo, to be killed there; called by test_resume.py.

usage: training_jobs.py FOLDER        reads jobs from standard input, one JSON object a line

A job names a `run` and what to `do` with it: "train" (with `settings` for the recipe, `options` for
`run_recipe`, fields of the recipe to `edit`), "make" the recipe, or "find" the checkpoint. It may
`stop` (see STOPS) at a `step`, have `more_data` than steps, or run as a `user` without rights. The
answer, a line of JSON on standard output: `signal` that ended it (0: none), `error`, `result`, and
what the `console` showed.
"""

import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

# Larger than what is logged, smaller than a file of a checkpoint
FILE_LIMIT = 60_000


def kill_all() -> None:
    os.killpg(0, signal.SIGKILL)


def when_step(step: int, act) -> None:
    """Act once that many steps are done, before they are validated."""
    from ticketlib import callbacks

    done = callbacks.Progress.on_train_batch_end

    def on_train_batch_end(self, trainer, *args):
        done(self, trainer, *args)
        if trainer.global_step >= step:
            act()

    callbacks.Progress.on_train_batch_end = on_train_batch_end


def fill_disk() -> None:
    """Stands for a full disk, which needs root: files cannot grow beyond a size."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))


def fill_disk_for_context() -> None:
    from nemo.lightning.io.pl import TrainerContext

    def write_half(self, folder, **kwargs):
        folder.mkdir()
        (folder / "io.json").write_text('{"root": {"type')
        raise OSError(28, "No space left on device")

    TrainerContext.io_dump = write_half


def kill_while_writing() -> None:
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    def write_half(transforms, local_proc_idx, write_bucket, **kwargs):
        Path(write_bucket[0]).write_bytes(b"half a file")
        kill_all()

    FileSystemWriterAsync.write_preloaded_data = staticmethod(write_half)


def kill_while_removing() -> None:
    from ticketlib import callbacks

    def remove_half(folder):
        next(folder.rglob("*.distcp")).unlink()
        kill_all()

    callbacks.remove = remove_half


def kill_at_end() -> None:
    from ticketlib import callbacks

    callbacks.Progress.on_train_end = lambda *args: kill_all()


def add_batches() -> None:
    """Leave data after the last step, as NeMo does for 200 steps and more."""
    from nemo.collections.llm import FineTuningDataModule

    setup = FineTuningDataModule.setup

    def setup_more(self, stage):
        setup(self, stage)
        self.max_train_samples += 2 * self.global_batch_size

    FineTuningDataModule.setup = setup_more


STOPS = {
    "kill": lambda step: when_step(step, kill_all),
    "full disk": lambda step: when_step(step, fill_disk),
    "full disk for context": lambda step: when_step(step, fill_disk_for_context),
    "kill while writing": lambda step: when_step(step, kill_while_writing),
    "kill while removing": lambda step: when_step(step, kill_while_removing),
    "kill at the end": lambda step: kill_at_end(),
}


def do(folder: Path, job: dict):
    import torch
    from small_training import PROFILE

    from ticketlib import training
    from ticketlib.paths import Run

    torch.set_num_threads(1)
    run = Run(job.get("run", ""), str(folder)) if "run" in job else None
    if job["do"] == "import":
        return import_bases(folder)
    if job["do"] == "find":
        return str(training.find_checkpoint(run))
    if job.get("more_data"):
        add_batches()
    if "stop" in job:
        STOPS[job["stop"]](job.get("step"))
    settings = {"prompt_format": "plain"} | job.get("settings", {})
    imported = folder / "models" / settings.pop("base", "base")
    recipe = training.make_recipe(run, PROFILE, imported, **settings)
    for name, value in job.get("edit", {}).items():
        *parents, last = name.split(".")
        owner = recipe
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, last, value)
    if job["do"] == "make":
        return None
    if "user" in job:
        os.seteuid(job["user"])
    return str(training.run_recipe(run, recipe, **job.get("options", {})))


def import_bases(folder: Path) -> None:
    import shutil

    from random_gptoss import save
    from small_training import import_proved

    base = import_proved(save(folder / "hf"), folder / "models" / "base")
    shutil.copytree(base, base.with_name("other"))


def answer(folder: Path, job: dict) -> dict:
    console, outcome = folder / "console.txt", folder / "outcome.json"
    outcome.write_text("{}")
    pid = os.fork()
    if not pid:
        os.setsid()
        sys.stdout = console.open("w", buffering=1)
        try:
            result = {"result": do(folder, job)}
        except BaseException as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        if "user" in job:
            os.seteuid(0)
        outcome.write_text(json.dumps(result))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    with suppress(ProcessLookupError):  # What Megatron-Core spawned
        os.killpg(pid, signal.SIGKILL)
    shown = console.read_text() if console.exists() else ""
    return {"signal": os.WTERMSIG(status), "console": shown, **json.loads(outcome.read_text())}


def main(folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    log = os.open(folder / "log.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    from ticketlib import parity, training  # noqa: F401 - once, for all forks

    filesystem_async._get_write_results_queue()  # Spawns a process for a second in each fork else
    for line in sys.stdin:
        print(json.dumps(answer(folder, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
