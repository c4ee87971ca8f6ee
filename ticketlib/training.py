"""The fine-tuning recipe of NeMo for gpt-oss, filled in for tickets, and its run."""

import copy
import math
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import fiddle
import nemo_run
import numpy as np
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from nemo import lightning as nl
from nemo.collections import llm
from nemo.collections.llm.gpt.data.packed_sequence import PackedSequenceSpecs
from transformers import AutoTokenizer, GenerationConfig

from ticketlib import callbacks, executors, gptoss, parity, resume, run_settings
from ticketlib.checksums import verify_checksums
from ticketlib.history import list_attempts, read_history
from ticketlib.jsonl import read_jsonl, remove_stale_files
from ticketlib.logs import console
from ticketlib.packs import BLOCK, fill_rows
from ticketlib.paths import Run, remove, replace_atomically, require
from ticketlib.profiles import Profile
from ticketlib.prompts import FINAL
from ticketlib.rendering import count_tokens
from ticketlib.resume import find_checkpoint
from ticketlib.run_settings import describe_recipe

__all__ = ["make_recipe", "run_recipe", "find_checkpoint", "read_history", "LORA_TARGETS"]

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
    val_check_interval: int = 0,
    patience: int = 0,
    learning_rate: float = 0.0,
    lora_rank: int = 0,
    lora_targets: Sequence[str] = (),
    micro_batch_size: int = 0,
    global_batch_size: int = 0,
    seq_length: int = 0,
    pack_tokens: int = 0,
    devices: int = 0,
    nodes: int = 0,
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
        val_check_interval: Optimizer steps from one validation, with a checkpoint after it, to the
            next; 0 for a third of `max_steps`. The last step is validated in any case.
        patience: Training stops after so many validations without a lower loss; 0 for never.
        learning_rate: Peak; linear warm-up, then cosine to zero.
        lora_rank: Rank of the adapter; alpha is twice the rank.
        lora_targets: Of `LORA_TARGETS`: attention in and out, experts in and out.
        micro_batch_size: Tickets a forward pass, where rows are not packed.
        global_batch_size: Tickets an optimizer step, about so many where rows are packed.
        seq_length: Longest prompt with answer, in tokens.
        pack_tokens: Most tokens a forward pass, in one row of several tickets without padding
            between them; -1 for a row a ticket, padded. Packing needs a GPU.
        devices: GPUs of each machine, or CPU processes.
        nodes: Machines, 0 for one; several train in a Slurm job only.
        seed: Orders packed rows. Where rows are not packed, NeMo 2.7 takes the same order of
            tickets whatever it is.

    Returns:
        A NeMo-Run `Partial` of `llm.finetune`.

    Raises:
        FileNotFoundError: Data, import, its checksums or its parity result are missing.
        ValueError: The import is damaged, a scheme or target is unknown, or NeMo could not use the
            data.
    """
    require(
        Path(imported) / parity.PARITY_FILE, made_by="03_train_lora.ipynb", run_name=run.run_name
    )
    verify_checksums(
        imported, hint="Remove this folder; 03_train_lora.ipynb imports the base again."
    )
    targets = list(lora_targets or profile.lora_targets)
    unknown = [target for target in targets if target not in LORA_TARGETS]
    if unknown:
        raise ValueError(f"LoRA targets {unknown} match no module. Accepted: {list(LORA_TARGETS)}.")
    if peft_scheme not in ("lora", "none"):
        raise ValueError(f'peft_scheme is "{peft_scheme}"; "lora" and "none" are accepted.')
    numbers = {
        **{"max_steps": max_steps, "val_check_interval": val_check_interval, "patience": patience},
        **{"learning_rate": learning_rate, "lora_rank": lora_rank, "seq_length": seq_length},
        **{"micro_batch_size": micro_batch_size, "global_batch_size": global_batch_size},
        **{"devices": devices, "nodes": nodes},
        "pack_tokens": 0 if pack_tokens == -1 else pack_tokens,
    }
    if negative := [f"{name} is {number}" for name, number in numbers.items() if number < 0]:
        raise ValueError(f"{', '.join(negative)}; 0 or more are accepted.")
    micro = micro_batch_size or profile.micro_batch_size
    batch = global_batch_size or profile.global_batch_size
    nodes = nodes or 1
    world = (devices or profile.devices) * nodes
    if batch % (micro * world) or world % profile.expert_parallel:
        raise ValueError(
            f"global_batch_size ({batch}) must be a multiple of micro_batch_size ({micro}) times "
            f"devices and nodes ({world}), and those of {profile.expert_parallel}, over which "
            f"{profile.name} spreads its experts."
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
        num_nodes=nodes,
    )
    recipe.resume.restore_config.path = str(imported)
    recipe.resume.resume_if_exists = False  # NeMo's own search; run_recipe names the checkpoint
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
    base = gptoss.hf_folder_of(imported)
    pack = pack_tokens or profile.pack_tokens
    tickets_per_row = _pack(run, recipe, base, pack) if pack > 0 else 1.0
    make_config = partial(nemo_run.Config, gptoss.config_class())
    recipe.model = nemo_run.Config(
        gptoss.GptOssModel, config=gptoss.config_from_hf(base, dtype, make_config)
    )
    # As data: NeMo-Run hands no objects on to other processes
    recipe.model.config.generation_config = nemo_run.Config(
        GenerationConfig, **recipe.model.config.generation_config.to_diff_dict()
    )
    if peft_scheme == "lora":
        recipe.peft.target_modules = targets
        recipe.peft.dim = lora_rank or profile.lora_rank
        recipe.peft.alpha = 2 * recipe.peft.dim

    recipe.trainer.max_steps = steps
    recipe.trainer.num_sanity_val_steps = 0
    # Its place is Progress'; NeMo's gathers times on rank 0 alone, and several processes hang
    recipe.trainer.enable_progress_bar = False
    recipe.trainer.val_check_interval = min(val_check_interval or math.ceil(steps / 3), steps)
    recipe.trainer.callbacks.append(
        nemo_run.Config(callbacks.Progress, tickets_per_row=tickets_per_row)
    )
    if patience:
        recipe.trainer.callbacks.append(
            nemo_run.Config(EarlyStopping, monitor="val_loss", mode="min", patience=patience)
        )
    recipe.trainer.strategy.expert_model_parallel_size = profile.expert_parallel
    recipe.trainer.strategy.pipeline_model_parallel_size = 1
    # NeMo would write on in another process, and count a checkpoint as whole two steps later
    recipe.trainer.strategy.ckpt_async_save = False
    recipe.optim.config.lr = learning_rate or profile.learning_rate
    recipe.optim.config.adam_eps = profile.adam_eps
    recipe.optim.lr_scheduler.warmup_steps = min(profile.warmup_steps, steps // 10)
    recipe.optim.lr_scheduler.max_steps = steps

    recipe.trainer.logger = False
    recipe.log.use_datetime_version = False
    recipe.log.tensorboard = None
    recipe.log.extra_loggers = [
        # The attempt is named by run_recipe; every row is written at once, in case of a kill
        nemo_run.Config(
            CSVLogger, save_dir=str(run.training), name="", version="", flush_logs_every_n_steps=1
        )
    ]
    recipe.log.ckpt = nemo_run.Config(
        callbacks.VerifiableCheckpoint,
        filename="{step}-{val_loss:.4f}",
        monitor="val_loss",
        mode="min",
        save_top_k=-1,
        save_last=False,
    )
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


def _pack(run: Run, recipe: nemo_run.Partial, base: Path, most: int) -> float:
    """Have NeMo put several tickets in a row of at most `most` tokens; give how many it will be.

    A step's tickets fill its rows, so rows may be shorter.

    Raises:
        ValueError: There is no GPU, a row holds no ticket, or a split too few for a step.
    """
    shortest = math.ceil(recipe.data.seq_length / BLOCK) * BLOCK
    if not (torch.cuda.is_available() and most >= shortest):
        raise ValueError(
            f"pack_tokens is {most}. Packing needs a GPU and at least {shortest}, which holds a "
            f"ticket of seq_length ({recipe.data.seq_length}); set it to -1 for a row a ticket."
        )
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    counts = {}
    for path in (run.training_jsonl, run.validation_jsonl):
        records = read_jsonl(path)
        counts[path.name] = count_tokens([r["input"] + r["output"] for r in records], tokenizer)
    a_ticket = np.mean(counts[run.training_jsonl.name])
    world = recipe.trainer.devices * recipe.trainer.num_nodes  # Each gets as many rows
    rows, tokens = fill_rows(recipe.data.global_batch_size * a_ticket / world, most, shortest)
    rows *= world
    for name, each in counts.items():
        if sum(each) < rows * tokens:
            raise ValueError(
                f"{name} has {sum(each):,} tokens, and a step takes {rows} rows of {tokens:,}. "
                "Set pack_tokens to less, or give this split a larger share."
            )
    recipe.data.micro_batch_size, recipe.data.global_batch_size = 1, rows
    recipe.data.num_workers = 1  # Reads rows while the GPU computes
    # All rows of one length: each length is compiled anew
    recipe.data.dataset_kwargs["pad_to_max_length"] = True
    recipe.data.packed_sequence_specs = nemo_run.Config(
        PackedSequenceSpecs, packed_sequence_size=tokens
    )
    return float(tokens / a_ticket)  # A recipe is plain data


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


def run_recipe(
    run: Run,
    recipe: nemo_run.Partial,
    *,
    seed: int = 0,
    restart: bool = False,
    profile: str = "",
    executor: str = "local",
    slurm: str = "",
) -> Path:
    """Train through NeMo-Run, to the end or from where an interrupted training can go on.

    One device trains in this process; several get a process each, started by torchrun. A Slurm
    job is submitted and waited for; whoever stops waiting calls this again when it has ended. A
    training that was interrupted goes on from its last whole checkpoint and gives the steps that it
    would have given; one that has ended is not repeated.

    Args:
        run: Its `training`, `training_settings` and `history` are written; where training begins
            anew, what was made from an earlier one is removed.
        recipe: Of `make_recipe`.
        seed: Of the adapter's start.
        restart: Remove an earlier training and begin anew.
        profile: Name of the profile, kept with the settings.
        executor: "local", or "slurm" for a job.
        slurm: Settings of the job (`executors.read_slurm`).

    Returns:
        The folder of the checkpoint with the lowest validation loss.

    Raises:
        ValueError: A setting differs from that of the training to go on with, a checkpoint is
            damaged, or there is no such executor or setting of it. Nothing was touched.
        FileNotFoundError: Slurm's commands are not here. Nothing was touched.
        RuntimeError: The other processes or the job did not succeed; or another process or a job
            trains this run or waits to, and nothing was touched.
        PermissionError: The run's folder is read-only.
        OSError: A checkpoint could not be written. The earlier ones are as they were.
    """
    place = executors.make_executor(executor, run, recipe, slurm=slurm)
    resume.check_writable(run.folder, run.training)
    settings = describe_recipe(recipe) | {"seed": seed} | run_settings.hash_data(run)
    settings |= {"profile": profile} if profile else {}
    checkpoints = [] if restart else resume.read_checkpoints(run)
    if checkpoints:
        run_settings.refuse_changes(run, settings, recipe)
    last = checkpoints[-1] if checkpoints else None
    if last and last.finished:
        print(f"Training ended at step {last.step} already and is not repeated.", file=console())
    else:
        has_jobs = (run.jobs / ".slurm_jobs").exists() and shutil.which("squeue")
        if executor == "slurm" or has_jobs:
            executors.check_slurm(run)
        _train(run, recipe, settings, last, place)
    with replace_atomically(run.history) as file:
        read_history(run).to_csv(file, index=False)
    return find_checkpoint(run)


def _train(
    run: Run,
    recipe: nemo_run.Partial,
    settings: dict,
    last: resume.Checkpoint | None,
    place: nemo_run.Executor | None,
) -> None:
    """Start NeMo with a copy of the recipe that logs to a new attempt and goes on from `last`."""
    with executors.training_alone(run.training):
        if last is None:
            _remove_training(run)
            run_settings.save_settings(run, settings, recipe)
        attempt = f"attempt-{len(list_attempts(run)) + 1}"
        recipe = copy.deepcopy(recipe)
        for logger in recipe.log.extra_loggers:
            if fiddle.get_callable(logger) is CSVLogger:
                logger.version = attempt
        if last:
            callbacks.continue_from(recipe, last)
            print(f"Continues at step {last.step} of {last.max_steps}.", file=console())
        if place is None:
            seed_everything(settings["seed"])
            gptoss.start_afresh()
            nemo_run.run(recipe, direct=True)
    if place is not None:
        executors.launch(run, recipe, place, seed=settings["seed"])


def _remove_training(run: Run) -> None:
    """Remove a training and what was made from it; a kill leaves no half of a checkpoint."""
    removed = run.training.with_name(f".{run.training.name}.removed")
    remove(removed)
    if run.training.exists():
        os.replace(run.training, removed)
    for made_from_it in (
        *(removed, run.history, run.training_settings, run.metrics, run.predictions),
        *(run.adapter, run.exported, run.exported_mxfp4, run.proof),
    ):
        remove(made_from_it)
