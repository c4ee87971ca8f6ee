"""What NeMo and Lightning call while they train: checkpoints, resumption, the progress line."""

import fnmatch
import io
import json
import math
import re
import shutil
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import nemo_run
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from nemo import lightning as nl
from nemo.utils.get_rank import is_global_rank_zero
from torch.distributed.checkpoint.api import CheckpointException

from ticketlib import plots
from ticketlib.checksums import write_checksums
from ticketlib.history import read_losses
from ticketlib.logs import can_show, console, progress, show
from ticketlib.paths import remove, write_json
from ticketlib.resume import PROGRESS_FILE, Checkpoint, best_of, list_checkpoints


class VerifiableCheckpoint(nl.ModelCheckpoint):
    """NeMo's checkpoint callback: after each validation, with checksums; latest and best are kept.

    To be given `save_top_k=-1` and `save_last=False`, so that nothing depends on the ranking in
    Lightning's state and each checkpoint is written once.
    """

    def on_train_start(self, trainer, module):
        """Put right what Lightning 2.4 restores of a checkpoint made in the middle of an epoch.

        NeMo's data loader begins with what is left of the epoch. Lightning counts the batches of
        before as well, takes the epoch for over too early, and begins with the same tickets again.
        It also names validation losses by a step that is one too low.
        """
        # NeMo would keep what is not committed yet, perhaps a token, in the run's folder
        with mock.patch("nemo.utils.exp_manager.get_git_diff", return_value=""):
            super().on_train_start(trainer, module)
        loop = trainer.fit_loop.epoch_loop
        loop.batch_progress.current.reset()
        loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(self, trainer, *args):
        """Have the last step validated and saved as well, wherever the interval ends."""
        super().on_train_batch_end(trainer, *args)
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True  # Lightning validates before it stops

    def _monitor_candidates(self, trainer):
        # NeMo logs a step that counts from 0
        return super()._monitor_candidates(trainer) | {"step": torch.tensor(trainer.global_step)}

    def _save_checkpoint(self, trainer, filepath):
        try:
            super()._save_checkpoint(trainer, filepath)
        except (Exception, CheckpointException) as error:  # The second is no Exception
            folder = _folder_of(filepath)
            free = shutil.disk_usage(folder.parent).free / 1e9
            if is_global_rank_zero():
                remove(folder)
                self.remove_checkpoint_unfinished_marker(filepath)
            failures = getattr(error, "failures", {0: (error, None)}).values()
            raise OSError(
                f"{folder} could not be written: {'; '.join(str(each) for each, _ in failures)}. "
                f"The disk has {free:.1f} GB free. Earlier checkpoints are as they were: make room "
                "and run this again; training goes on from the last one, if there is one."
            ) from error

    def _get_finalize_save_checkpoint_callback(self, trainer, filepath, global_step):
        """Called by NeMo once all ranks have written; its own part removes the marker."""
        finalize = super()._get_finalize_save_checkpoint_callback(trainer, filepath, global_step)
        folder = _folder_of(filepath)

        def add_checksums_and_finalize():
            if is_global_rank_zero():
                # NeMo only logs what keeps it from writing this one, and may leave a part of it
                json.loads((folder / "context" / "io.json").read_text("utf-8"))
                write_json(folder / PROGRESS_FILE, _progress(trainer))
                write_checksums(folder)
            finalize()
            if is_global_rank_zero():
                self._remove_superseded(folder.parent)

        return add_checksums_and_finalize

    def _remove_superseded(self, folder: Path) -> None:
        whole = list_checkpoints(folder)
        for checkpoint in whole:
            if checkpoint not in (whole[-1], best_of(whole)):
                self.set_checkpoint_unfinished_marker(checkpoint.path)
                remove(checkpoint.path)
                self.remove_checkpoint_unfinished_marker(checkpoint.path)


def _folder_of(filepath: str) -> Path:
    """NeMo writes a folder; Lightning names it like a file."""
    return Path(str(filepath).removesuffix(".ckpt"))


def _progress(trainer) -> dict[str, int | float | bool | None]:
    loss = float(trainer.callback_metrics["val_loss"])
    stopped = any(
        early.wait_count >= early.patience or not math.isfinite(loss)
        for early in trainer.early_stopping_callbacks
    )
    return {
        "step": trainer.global_step,
        "max_steps": trainer.max_steps,
        "val_loss": loss if math.isfinite(loss) else None,
        "finished": stopped or trainer.global_step >= trainer.max_steps,
    }


class ResumeFrom(nl.AutoResume):
    """NeMo's resumption, from the checkpoint `resume_from_directory` and with the recipe's base.

    With `resume_from_path`, NeMo would note the adapter's checkpoint as the adapter's base.
    """

    def _find_trainer_ckpt_path(self) -> Path:
        return Path(self.resume_from_directory)

    def _get_base_model_path_for_adapter(self, adapter_meta_path, model) -> Path:
        return Path(self.restore_config.path)  # The one written down may have been moved


def continue_from(recipe: nemo_run.Partial, checkpoint: Checkpoint) -> None:
    """Have a recipe restore weights, optimizer, schedule, and place in the data.

    Args:
        recipe: Of `training.make_recipe`; changed in place.
        checkpoint: One of `resume.list_checkpoints`.
    """
    # Lightning refuses an interval beyond the batches that are left; the last step is validated
    left = checkpoint.max_steps - checkpoint.step
    recipe.trainer.val_check_interval = min(recipe.trainer.val_check_interval, left)
    recipe.resume = nemo_run.Config(
        ResumeFrom,
        restore_config=recipe.resume.restore_config,
        resume_if_exists=True,
        resume_from_directory=str(checkpoint.path),
    )


def count_trained(model: torch.nn.Module) -> Counter:
    """Number of trained parameters by family: `linear_qkv`, `router`, `word_embeddings` and so on.

    Args:
        model: Of NeMo, with its adapter if it has one; a part of it where it is spread over GPUs.
    """
    families = re.compile(r"linear_(qkv|proj|fc1|fc2)|router|layer_?norm|word_embeddings|\w+$")
    trained = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            family = families.search(name.removesuffix(".weight").removesuffix(".bias"))[0]
            trained[family] += parameter.numel()
    return trained


class Progress(Callback):
    """What is trained; a line with steps, loss, tickets a second and the time left; a plot.

    The plot of the losses grows in a notebook; elsewhere there is only the line.
    """

    REDRAW = 3  # Seconds from one plot to the next
    bar = None
    drawn = 0.0

    def __init__(self, tickets_per_row: float = 1.0):
        """Rows of a batch hold so many tickets, about, where they are packed."""
        self.tickets_per_row = tickets_per_row

    def on_train_batch_start(self, trainer, module, *args):
        """Show what is trained, before the first step; NeMo adds the adapter late.

        Raises:
            ValueError: A LoRA target matches no module; NeMo says nothing.
        """
        if self.bar is not None:
            return
        trained = count_trained(module)
        if module.model_transform:
            adapted = [name for name, _ in module.named_modules() if name.endswith(".adapter")]
            for target in module.model_transform.target_modules:
                pattern = f"*.{target}.adapter"
                if not any(fnmatch.fnmatch(name, pattern) for name in adapted):
                    raise ValueError(
                        f"LoRA target {target!r} matches no module. Trained would be: "
                        f"{dict(trained) or 'nothing'}."
                    )
        total = sum(parameter.numel() for parameter in module.parameters())
        parts = ", ".join(f"{family} {count:,}" for family, count in trained.items())
        count = trained.total()
        self._draw(trainer, update=False)  # First, so that the line below it stays one
        if is_global_rank_zero():
            print(f"To be trained: {parts}; {count:,} of {total:,} parameters.", file=console())
        self.bar = progress(
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit="step",
            disable=not is_global_rank_zero(),
        )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):  # noqa: D102
        if self.bar.disable:
            return
        loss = trainer.callback_metrics.get("reduced_train_loss", float("nan"))
        meter = self.bar.format_dict  # Its rate is None until a line is printed
        rate = meter["rate"] or (meter["n"] - meter["initial"]) / meter["elapsed"]
        tickets = trainer.datamodule.global_batch_size * self.tickets_per_row * rate
        self.bar.set_postfix_str(f"loss {float(loss):.3f}, {tickets:.1f} tickets/s", refresh=False)
        self.bar.update()
        if time.monotonic() - self.drawn > self.REDRAW:
            self._draw(trainer)

    def on_train_end(self, trainer, module):  # noqa: D102
        if self.bar is not None:
            self.bar.close()
            self._draw(trainer)

    def on_exception(self, trainer, module, exception):
        """Say what to do where the GPU is full; torch only tells how much it wanted."""
        if isinstance(exception, torch.OutOfMemoryError):
            exception.add_note(
                "The GPU is full. See with nvidia-smi whether another process or notebook uses it "
                "(Kernel > Shut Down All Kernels ends notebooks). Else halve pack_tokens or, where "
                "rows are not packed, micro_batch_size, or give a smaller seq_length in notebook "
                '02; then run this notebook again. "Check the machine" shows what is needed.'
            )

    def _draw(self, trainer, update: bool = True) -> None:
        """Plot the losses that are logged so far, of earlier attempts as well."""
        logger = next((each for each in trainer.loggers if isinstance(each, CSVLogger)), None)
        if logger is None or not can_show():
            return
        from IPython.display import Image

        figure = Figure(figsize=(7, 3.5), layout="constrained")
        ax = plots.loss_curves(read_losses(Path(logger.save_dir)), ax=figure.subplots())
        ax.set_xlim(0, 1.02 * trainer.max_steps)
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        show(Image(picture.getvalue()), f"losses of {logger.log_dir}", update=update)
        self.drawn = time.monotonic()
