"""Merge the adapter into the base in fp32, and export full weights that were proved equal.

`llm.peft.merge_lora` of NeMo 2.7.3 loads everything in bfloat16 and adds there: logits of the
merged model were off by 0.33. It also passes the tokenizer through one folder that all processes
share.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from nemo.collections import llm
from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer
from nemo.collections.llm.peft import api
from nemo.collections.llm.peft.lora import LoRALinear, LoRAMerge
from nemo.lightning import io

from ticketlib.gptoss import start_afresh
from ticketlib.paths import Run, replace_atomically, require


@contextmanager
def merging_in_fp32() -> Iterator[None]:
    """Let `llm.peft.merge_lora` keep the checkpoint's precision, add in fp32 and round once.

    Safe for runs side by side: the tokenizer passes through a folder of this process.
    """
    load = api._load_base_model_and_lora

    def load_in_own_precision(checkpoint):
        config = io.load_context(Path(checkpoint) / "context", subpath="model.config")
        model, lora = load(checkpoint)
        model.config.bf16, model.config.params_dtype = config.bf16, config.params_dtype
        return model, lora

    def tokenizer_from_own_folder(_, **kwargs):
        folder = tempfile.mkdtemp(prefix="tokenizer-")
        saved.pop().save_pretrained(folder)
        return AutoTokenizer(folder, **kwargs)

    saved = []
    with (
        mock.patch.object(api, "_load_base_model_and_lora", load_in_own_precision),
        mock.patch.object(
            AutoTokenizer, "save_pretrained", lambda self, _: saved.append(self.tokenizer)
        ),
        mock.patch.object(api, "AutoTokenizer", tokenizer_from_own_folder),
        mock.patch.object(LoRAMerge, "transform", _add_in_fp32),
    ):
        yield


@torch.no_grad()
def _add_in_fp32(self, module, name=None, prefix=None):
    """Replace `LoRAMerge.transform`: W + alpha / r * B A (LoRA, arXiv:2106.09685, section 4.1)."""
    if isinstance(module, LoRALinear):
        down, up = module.adapter.linear_in.weight.float(), module.adapter.linear_out.weight.float()
        delta = module.adapter.alpha / module.adapter.dim * up @ down
        names = (
            ["weight"]
            if hasattr(module.to_wrap, "weight")
            else [f"weight{i}" for i in range(module.to_wrap.num_gemms)]
        )
        for weight in (getattr(module.to_wrap, each) for each in names):
            weight.data = (weight.float() + delta.to(weight.device)).to(weight.dtype)
    return module


def merge_adapter(run: Run, checkpoint: Path) -> Path:
    """Merge a LoRA checkpoint into its base.

    Args:
        run: Its `merged` folder is replaced.
        checkpoint: Of `training.find_checkpoint`.

    Returns:
        `run.merged`; the checkpoint itself where all parameters were trained and none is to be
        merged.
    """
    start_afresh()
    if io.load_context(Path(checkpoint) / "context", subpath="model").model_transform is None:
        return Path(checkpoint)
    with replace_atomically(run.merged) as partial_folder, merging_in_fp32():
        llm.peft.merge_lora(lora_checkpoint_path=str(checkpoint), output_path=str(partial_folder))
    return run.merged


def export_checkpoint(run: Run, merged: Path, *, max_shard_size: str = "5GB") -> Path:
    """Write a merged checkpoint as a Hugging Face folder of full weights.

    Args:
        run: Its `exported` folder is replaced.
        merged: Of `merge_adapter`.
        max_shard_size: Largest `.safetensors` file; above it, shards and an index are written.

    Returns:
        `run.exported`.

    Raises:
        FileNotFoundError: There is no merged checkpoint.
    """
    start_afresh()
    require(merged, made_by="03_train_lora.ipynb", run_name=run.run_name)
    with replace_atomically(run.exported) as partial_folder:
        llm.export_ckpt(
            path=merged, target="hf", output_path=partial_folder, max_shard_size=max_shard_size
        )
    return run.exported
