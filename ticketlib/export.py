"""The trained model as folders that others load: full weights, the adapter alone, MXFP4.

An adapter is merged in float32, weight by weight, from the base's folder straight into the export:
in memory are one shard and one weight, on disk no merged checkpoint of NeMo.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from nemo.collections import llm

from ticketlib import adapter, checkpoint, gptoss
from ticketlib.card import write_card
from ticketlib.checkpoint import Weights
from ticketlib.checksums import write_checksums
from ticketlib.logs import progress
from ticketlib.mxfp4 import QUANTIZATION_CONFIG, quantize
from ticketlib.paths import Run, read_settings, replace_atomically, require
from ticketlib.profiles import name_base
from ticketlib.template import TEMPLATE_FILE, render_template


def export_checkpoint(run: Run, trained: Path, *, max_shard_size: str = "5GB") -> Path:
    """Write full weights, with the adapter merged, as a Hugging Face folder.

    What was written is read back and compared, weight by weight, before it gets its name.

    Args:
        run: Its `exported` folder is replaced.
        trained: NeMo checkpoint of `training.find_checkpoint`.
        max_shard_size: Largest `.safetensors` file; above it, shards and an index are written.

    Returns:
        `run.exported`.

    Raises:
        FileNotFoundError: There is no checkpoint.
        OSError: The disk has too little space.
        ValueError: A weight is not finite, the export differs from what was trained, or training
            changed no weight at all.
    """
    require(trained, made_by="03_train_lora.ipynb", run_name=run.run_name)
    base = gptoss.hf_folder_of(trained)
    with replace_atomically(run.exported) as folder:
        if adapter.is_lora(trained):
            weights, lora = Weights(base), adapter.read_adapter(trained)
            dtype = gptoss.config_of(trained).params_dtype
            description = checkpoint.describe_model(weights.config, dtype)
            checkpoint.write_folder(
                folder,
                base,
                description,
                lambda name: lora.merge(name, weights[name]),
                max_shard_size=max_shard_size,
            )
            _verify(folder, weights, lora, dtype)
        else:
            gptoss.start_afresh()
            llm.export_ckpt(
                path=trained, target="hf", output_path=folder, max_shard_size=max_shard_size
            )
        _finish(run, folder, base)
    return run.exported


def _verify(folder: Path, base: Weights, lora: adapter.Adapter, dtype: torch.dtype) -> None:
    """Read an export back: it must be the merged weights, and another model than the base."""
    changed = 0
    for name, tensor in progress(Weights(folder).items(), "Reading them back", delay=5):
        before = base[name]
        if not torch.equal(tensor, lora.merge(name, before).to(dtype)):
            raise ValueError(f"{name} came back from the disk as another. Export again.")
        changed += not torch.equal(tensor, before.to(dtype))
    if not changed:
        raise ValueError("The adapter changes no weight: it was not trained, or its rank is lost.")


def export_adapter(run: Run, trained: Path) -> Path:
    """Write the adapter alone, as `PeftModel.from_pretrained(base, folder)` loads it.

    Args:
        run: Its `adapter` folder is replaced.
        trained: NeMo checkpoint of `training.find_checkpoint`.

    Returns:
        `run.adapter`.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: All parameters were trained, so that there is no adapter.
    """
    require(trained, made_by="03_train_lora.ipynb", run_name=run.run_name)
    if not adapter.is_lora(trained):
        raise ValueError(f"{trained} has no adapter: all parameters were trained.")
    base = gptoss.hf_folder_of(trained)
    with replace_atomically(run.adapter) as folder:
        adapter.write_peft(folder, base, adapter.read_adapter(trained), base_name=name_base(base))
        _finish(run, folder, base)
    return run.adapter


def export_mxfp4(run: Run, trained: Path, *, max_shard_size: str = "5GB") -> Path:
    """Write the exported model as OpenAI releases gpt-oss: experts in MXFP4, the rest in bfloat16.

    A quarter of the size, for servers that compute in MXFP4. Experts are rounded to 4 bits after
    merging; those that training did not change keep the base's own blocks, bit for bit, where the
    base has them.

    Args:
        run: Its `exported_mxfp4` folder is made from `exported` and replaced.
        trained: The checkpoint that `exported` was made from.
        max_shard_size: Largest `.safetensors` file.

    Returns:
        `run.exported_mxfp4`.

    Raises:
        FileNotFoundError: The run has no export.
        OSError: The disk has too little space.
        ValueError: The experts' sizes are not multiples of 32.
    """
    require(run.exported, made_by="04_evaluate_and_export.ipynb", run_name=run.run_name)
    base = gptoss.hf_folder_of(trained)
    full = Weights(run.exported)
    description = checkpoint.stored_as_mxfp4(checkpoint.describe_model(full.config, torch.bfloat16))
    with replace_atomically(run.exported_mxfp4) as folder:
        checkpoint.write_folder(
            folder,
            run.exported,
            description,
            _mxfp4_reader(full, Weights(base)),
            max_shard_size=max_shard_size,
            quantization_config=QUANTIZATION_CONFIG,
        )
        Weights(folder)
        _finish(run, folder, base)
    return run.exported_mxfp4


def _mxfp4_reader(full: Weights, base: Weights) -> Callable[[str], torch.Tensor]:
    """Give what reads a weight by its stored name; a weight of the base keeps the base's blocks."""

    @lru_cache(maxsize=1)  # The two of a weight come after one another
    def read_quantized(stem: str) -> tuple[torch.Tensor, torch.Tensor]:
        weight = full[stem]
        if base.is_mxfp4 and torch.equal(weight, base[stem].to(weight.dtype)):
            return tuple(base.read_stored(f"{stem}_{part}") for part in ("blocks", "scales"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return tuple(part.cpu() for part in quantize(weight.to(device)))

    def read(name: str) -> torch.Tensor:
        stem, _, part = name.rpartition("_")
        if part not in ("blocks", "scales"):
            return full[name]
        return read_quantized(stem)[part == "scales"]

    return read


def _finish(run: Run, folder: Path, base: Path) -> None:
    """Add what goes with the weights: the template of the training, the card, the checksums."""
    settings = read_settings(run) if run.settings.exists() else None
    if not settings or settings["prompt"]["prompt_format"] == "harmony":  # Else there are no chats
        _add_template(folder, base)
    if settings:
        write_card(run, folder, base=base)
    write_checksums(folder)


def _add_template(folder: Path, base: Path) -> None:
    path = base / "chat_template.jinja"
    try:
        text = render_template(path.read_text("utf-8") if path.exists() else "")
    except ValueError as error:
        warnings.warn(f"No {TEMPLATE_FILE} for servers: {error}", stacklevel=4)
    else:
        (folder / TEMPLATE_FILE).write_text(text, "utf-8")
