"""Training's checkpoints: each one whole and verified, which is the best, how to go on from one.

What NeMo 2.7.3 leaves to be done: its recipe saves every 50 steps and ranks by the loss of the last
validation, which was at another step, rounded to two digits; it looks for the checkpoint to resume
from by name and time, refuses to go on when the last one was not finished, and restores the ranking
from file names. Nothing in a checkpoint tells whether it is damaged.

A checkpoint here is a folder `step=…` with `progress.json` and `SHA256SUMS`. While it is written or
removed, NeMo's marker `<folder>-unfinished` lies beside it.

Whoever loads a NeMo checkpoint runs code that it names. `weights/.metadata` and the byte entries in
`weights/*.distcp` (Megatron-Core's extra states) are pickles that PyTorch opens without
`weights_only`; `weights/common.pt` (loops, callbacks, schedulers) is one that it opens with it;
`context/io.json` names classes and functions that fiddle imports and calls; and the files
`context/<uuid>` are pickles of callbacks, of which NeMo only restricts the packages. So only
checkpoints that this project wrote are loaded, those of the run's own folder and the imported base,
and none that was downloaded: from outside come safetensors, JSON and tokenizers. The checksums find
damage; they are no signature and make no stranger's checkpoint safe.
"""

import errno
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nemo import lightning as nl

from ticketlib.checksums import verify_checksums
from ticketlib.paths import Run

PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint and how far training was.

    Attributes:
        path: Its folder.
        step: Optimizer steps done.
        max_steps: Of how many.
        val_loss: Nats a token at that step; infinite where it was no number.
        finished: Whether training ended here, at the last step or because it stopped early.
    """

    path: Path
    step: int
    max_steps: int
    val_loss: float
    finished: bool


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Give the whole checkpoints of a folder by step, not verified.

    Args:
        folder: `checkpoints` of a run's `training`; it need not exist.

    Raises:
        FileNotFoundError: One has no `progress.json`.
    """
    checkpoints = []
    for path in Path(folder).glob("*"):
        if path.is_dir() and not nl.ModelCheckpoint.is_checkpoint_unfinished(path):
            progress = json.loads((path / PROGRESS_FILE).read_text("utf-8"))
            if progress["val_loss"] is None:
                progress["val_loss"] = math.inf
            checkpoints.append(Checkpoint(path, **progress))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def best_of(checkpoints: list[Checkpoint]) -> Checkpoint:
    """Give the one with the lowest validation loss; the earliest of equal ones."""
    return min(checkpoints, key=lambda checkpoint: (checkpoint.val_loss, checkpoint.step))


def read_checkpoints(run: Run) -> list[Checkpoint]:
    """Give the whole checkpoints of a run by step, after every byte was verified.

    Raises:
        FileNotFoundError, ValueError: One is damaged or not of this project; nothing is removed.
    """
    folder = run.training / "checkpoints"
    for path in folder.glob("*"):
        if path.is_dir() and not nl.ModelCheckpoint.is_checkpoint_unfinished(path):
            verify_checksums(
                path,
                hint="Put the file back from a copy, or remove this folder to go on from an "
                "earlier checkpoint, or set restart = True to train anew.",
            )
    return list_checkpoints(folder)


def find_checkpoint(run: Run) -> Path:
    """Give the checkpoint with the lowest validation loss of a training that has ended.

    Raises:
        FileNotFoundError: Training has not ended.
        ValueError: A checkpoint is damaged, or validation loss was no number at any.
    """
    checkpoints = read_checkpoints(run)
    if not (checkpoints and checkpoints[-1].finished):
        last = checkpoints[-1] if checkpoints else None
        state = f"stopped at step {last.step} of {last.max_steps}" if last else "left no checkpoint"
        raise FileNotFoundError(
            f"Training in {run.training} {state}. "
            f'Run 03_train_lora.ipynb with run_name = "{run.run_name}" first.'
        )
    best = best_of(checkpoints)
    if math.isinf(best.val_loss):
        raise ValueError(
            f"The validation loss of {run.run_name} was no number after any step: training "
            "diverged. Lower learning_rate and set restart = True."
        )
    return best.path


def check_writable(*folders: Path) -> None:
    """Make folders where they are not there, and raise before training if one is read-only.

    Args:
        folders: To be written to.

    Raises:
        PermissionError: One is.
        OSError: One cannot be made.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise PermissionError(
                f"{folder} cannot be written to ({error.strerror}). Change its owner or mode, or "
                "give another run_name or experiments_dir."
            ) from error
