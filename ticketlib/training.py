"""The fine-tuning recipe of NeMo for gpt-oss, filled in for tickets; its run and loss history."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nemo_run
import pandas as pd
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from nemo import lightning as nl
from nemo.collections import llm
from tqdm import tqdm

from ticketlib import gptoss, parity
from ticketlib.jsonl import read_jsonl, remove_stale_files
from ticketlib.logs import console
from ticketlib.paths import Run, remove, require
from ticketlib.profiles import Profile
from ticketlib.prompts import FINAL

LORA_TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
# NeMo joins the two fields of a record with this; "plain" answers start with a space, which NeMo
# strips.
PROMPT_TEMPLATES = {"harmony": "{input}{output}", "plain": "{input} {output}"}


def make_recipe(
    run: Run,
    profile: Profile,
    imported: Path,
    *,
    prompt_format: str = "harmony",
    peft_scheme: str = "lora",
    max_steps: int = 0,
    learning_rate: float = 0.0,
    lora_rank: int = 0,
    lora_targets: Sequence[str] = (),
    micro_batch_size: int = 0,
    global_batch_size: int = 0,
    seq_length: int = 0,
    devices: int = 0,
    seed: int = 0,
) -> nemo_run.Partial:
    """Give `llm.gpt_oss_20b.finetune_recipe`, filled in for a run; edit it as you like.

    Args:
        run: Its `dataset` is read, its `training` folder is written.
        profile: Gives every setting that is 0 or empty here.
        imported: NeMo checkpoint of the base with its parity result (`parity.save_parity`).
        prompt_format: As the JSONL files were written.
        peft_scheme: "lora", or "none" to train all parameters.
        max_steps: Optimizer steps.
        learning_rate: Peak; linear warm-up, then cosine to zero.
        lora_rank: Rank of the adapter; alpha is twice the rank.
        lora_targets: Of `LORA_TARGETS`: attention in and out, experts in and out.
        micro_batch_size: Tickets a forward pass.
        global_batch_size: Tickets an optimizer step.
        seq_length: Longest prompt with answer, in tokens.
        devices: GPUs, or CPU processes.
        seed: Kept with the run; NeMo 2.7 takes the same order of tickets whatever it is.

    Returns:
        A NeMo-Run `Partial` of `llm.finetune`.

    Raises:
        FileNotFoundError: Data, import or parity result are missing.
        ValueError: A scheme or target is unknown, or NeMo could not use the data.
    """
    require(
        Path(imported) / parity.PARITY_FILE, made_by="03_train_lora.ipynb", run_name=run.run_name
    )
    targets = list(lora_targets or profile.lora_targets)
    unknown = [target for target in targets if target not in LORA_TARGETS]
    if unknown:
        raise ValueError(f"LoRA targets {unknown} match no module. Accepted: {list(LORA_TARGETS)}.")
    if peft_scheme not in ("lora", "none"):
        raise ValueError(f'peft_scheme is "{peft_scheme}"; "lora" and "none" are accepted.')
    micro = micro_batch_size or profile.micro_batch_size
    batch = global_batch_size or profile.global_batch_size
    if batch % micro:
        raise ValueError(
            f"global_batch_size ({batch}) must be a multiple of micro_batch_size ({micro})."
        )
    _check_data(run, prompt_format, batch)
    steps = max_steps or profile.max_steps
    dtype = getattr(torch, profile.dtype)

    recipe = llm.gpt_oss_20b.finetune_recipe(
        dir=str(run.training.parent),
        name=run.training.name,
        resume_path=str(imported),
        peft_scheme=peft_scheme,
        num_gpus_per_node=devices or profile.devices,
    )
    recipe.resume.restore_config.path = str(imported)
    recipe.resume.resume_if_exists = False
    recipe.data = nemo_run.Config(
        llm.FineTuningDataModule,
        dataset_root=str(run.dataset),
        seq_length=seq_length or profile.seq_length,
        micro_batch_size=micro,
        global_batch_size=batch,
        num_workers=0,
        seed=seed,
        dataset_kwargs={"prompt_template": PROMPT_TEMPLATES[prompt_format]},
    )
    make_config = partial(nemo_run.Config, gptoss.config_class())
    base = gptoss.hf_folder_of(imported)
    recipe.model = nemo_run.Config(
        gptoss.GptOssModel, config=gptoss.config_from_hf(base, dtype, make_config)
    )
    if peft_scheme == "lora":
        recipe.peft.target_modules = targets
        recipe.peft.dim = lora_rank or profile.lora_rank
        recipe.peft.alpha = 2 * recipe.peft.dim

    recipe.trainer.max_steps = steps
    recipe.trainer.num_sanity_val_steps = 0
    recipe.trainer.val_check_interval = max(1, steps // 3)
    recipe.trainer.callbacks.append(nemo_run.Config(Progress))
    recipe.trainer.strategy.expert_model_parallel_size = profile.expert_parallel
    recipe.trainer.strategy.pipeline_model_parallel_size = 1
    recipe.optim.config.lr = learning_rate or profile.learning_rate
    recipe.optim.config.adam_eps = profile.adam_eps
    recipe.optim.lr_scheduler.warmup_steps = min(profile.warmup_steps, steps // 10)
    recipe.optim.lr_scheduler.max_steps = steps

    recipe.trainer.logger = False
    recipe.log.use_datetime_version = False
    recipe.log.tensorboard = None
    recipe.log.extra_loggers = [
        nemo_run.Config(CSVLogger, save_dir=str(run.training), name="", version="")
    ]
    recipe.log.ckpt.save_last = True
    recipe.log.ckpt.save_top_k = 1
    recipe.log.ckpt.every_n_train_steps = None
    return recipe if torch.cuda.is_available() else _for_cpu(recipe)


def _check_data(run: Run, prompt_format: str, global_batch_size: int) -> None:
    """Raise where NeMo would fail late or train on something else; remove what it derived."""
    for path in (run.training_jsonl, run.validation_jsonl):
        require(path, made_by="02_prepare_jsonl.ipynb", run_name=run.run_name)
        records = read_jsonl(path)
        remove_stale_files(path)
        if any(r["output"].startswith(FINAL) != (prompt_format == "harmony") for r in records):
            raise ValueError(
                f'prompt_format is "{prompt_format}", but {path} was not written so. Give the one '
                "of notebook 02, which stands in settings.json."
            )
        if len(records) < global_batch_size:
            raise ValueError(
                f"{path.name} has {len(records)} records, and a step takes {global_batch_size}. "
                "NeMo leaves out a part of a batch, and saves no checkpoint without validation. "
                "Set global_batch_size to that or less, or give this split a larger share."
            )


class Progress(Callback):
    """A line that shows steps, loss, tickets a second and the time left."""

    def on_train_start(self, trainer, module):  # noqa: D102
        self.bar = tqdm(total=trainer.max_steps, unit="step", file=console(), mininterval=1)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):  # noqa: D102
        loss = trainer.callback_metrics.get("reduced_train_loss", float("nan"))
        rate = self.bar.format_dict["rate"] or 0.0
        tickets = trainer.datamodule.global_batch_size * rate
        self.bar.set_postfix_str(f"loss {float(loss):.3f}, {tickets:.1f} tickets/s", refresh=False)
        self.bar.update()

    def on_train_end(self, trainer, module):  # noqa: D102
        self.bar.close()


def _for_cpu(recipe: nemo_run.Partial) -> nemo_run.Partial:
    """Set what a CPU needs: full precision, a plain optimizer, no gradient clipping."""
    recipe.trainer.accelerator = "cpu"
    recipe.trainer.plugins = nemo_run.Config(
        nl.MegatronMixedPrecision, precision="32", autocast_enabled=False
    )
    recipe.optim.config.bf16 = False
    recipe.optim.config.params_dtype = torch.float32
    recipe.optim.config.use_distributed_optimizer = False
    recipe.optim.config.clip_grad = 0.0  # Megatron-Core asserts that clipped gradients are on CUDA
    return recipe


def run_recipe(run: Run, recipe: nemo_run.Partial, *, seed: int = 0) -> Path:
    """Train anew through NeMo-Run; what an earlier try left is removed first.

    One device trains in this process; several get a process each, started by torchrun.

    Args:
        run: Its `training` folder and `history` file are replaced; what was exported from an
            earlier training is removed.
        recipe: Of `make_recipe`.
        seed: Of the adapter's start.

    Returns:
        The folder of the last checkpoint.
    """
    for made_from_it in (
        *(run.training, run.history, run.training_settings),
        *(run.merged, run.exported, run.metrics, run.predictions),
    ):
        remove(made_from_it)
    run.training.mkdir(parents=True)
    seed_everything(seed)
    if recipe.trainer.devices == 1:
        gptoss.start_afresh()
        nemo_run.run(recipe, direct=True)
    else:
        nemo_run.run(
            recipe,
            executor=nemo_run.LocalExecutor(
                ntasks_per_node=recipe.trainer.devices, launcher="torchrun"
            ),
        )
    read_history(run).to_csv(run.history, index=False)
    return find_checkpoint(run)


def describe_recipe(recipe: nemo_run.Partial) -> dict[str, str | int | float]:
    """The settings by which runs are compared: what a sweep varies.

    Args:
        recipe: Of `make_recipe`.
    """
    peft = recipe.peft
    return {
        "lora_rank": peft.dim if peft else 0,
        "lora_targets": " ".join(peft.target_modules) if peft else "",
        "max_steps": recipe.trainer.max_steps,
        "learning_rate": recipe.optim.config.lr,
        "micro_batch_size": recipe.data.micro_batch_size,
        "global_batch_size": recipe.data.global_batch_size,
        "seq_length": recipe.data.seq_length,
        "seed": recipe.data.seed,
    }


def find_checkpoint(run: Run) -> Path:
    """Give the last whole checkpoint that training left.

    Raises:
        FileNotFoundError: Training has not finished.
    """
    folder = run.training / "checkpoints"
    steps = {
        int(match[1]): match[0]
        for path in folder.glob("*-last")
        if (path / "context").is_dir() and (match := re.match(r".*\bstep=(\d+).*", path.name))
    }
    last = folder / (steps[max(steps)] if steps else "*-last")
    return require(last, made_by="03_train_lora.ipynb", run_name=run.run_name)


def read_history(run: Run) -> pd.DataFrame:
    """Give the loss history of a run, so far or to its end.

    Returns:
        A row a logged step: `step` (1 = after the first), `train_loss`, `val_loss` (nats a token;
        NaN where it was not measured), `seconds` (of that step).

    Raises:
        FileNotFoundError: Training has not started.
    """
    names = {
        "reduced_train_loss": "train_loss",
        "val_loss": "val_loss",
        "train_step_timing in s": "seconds",
    }
    logged = pd.read_csv(
        require(run.training / "metrics.csv", made_by="03_train_lora.ipynb", run_name=run.run_name)
    )
    logged = logged.rename(columns=names).reindex(columns=["step", *names.values()])
    logged = logged.dropna(how="all", subset=["train_loss", "val_loss"])
    history = logged.groupby("step", as_index=False).last()
    return history.assign(step=history["step"].astype(int) + 1)
