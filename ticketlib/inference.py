"""Load NeMo's and transformers' models for inference, and their logits.

The two are loaded so that they can be compared: eager attention, one dtype throughout, as many
layers as are wanted.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.validation import StrictHandling
from nemo import lightning as nl
from peft import PeftModel
from transformers import GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm

from ticketlib import checkpoint
from ticketlib.gptoss import start_afresh


def make_trainer(dtype: torch.dtype) -> nl.Trainer:
    """Give a one-device NeMo trainer for inference, in `dtype`, on the GPU where there is one."""
    start_afresh()
    precision = "bf16-mixed" if dtype == torch.bfloat16 else "32"
    return nl.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        num_nodes=1,
        strategy=nl.MegatronStrategy(setup_optimizers=False, ckpt_load_optimizer=False),
        plugins=nl.MegatronMixedPrecision(
            precision=precision, autocast_enabled=False, params_dtype=dtype
        ),
    )


def load_model(
    folder: Path, dtype: torch.dtype, *, layers: int = 0, **settings: object
) -> torch.nn.Module:
    """Load an imported, merged or LoRA checkpoint of NeMo for inference, as `llm.generate` does.

    `ModelConnector.nemo_load` would leave the base of a LoRA checkpoint uninitialized.

    Args:
        folder: NeMo checkpoint.
        dtype: Of the parameters.
        layers: Only the first ones; 0 is all.
        settings: Fields of the model's config to change.
    """
    from nemo.collections.llm import inference

    if dtype == torch.float64:
        settings = {"moe_router_dtype": "fp64", "attention_softmax_in_fp32": False} | settings
    trainer = make_trainer(dtype)
    if layers:
        settings |= {"num_layers": layers}
        trainer.strategy.ckpt_load_strictness = StrictHandling.LOG_ALL
    with _fewer_layers() if layers else nullcontext():
        wrapper, _ = inference.setup_model_and_tokenizer(
            path=Path(folder), trainer=trainer, params_dtype=dtype, **settings
        )
    return wrapper.model.eval()


@contextmanager
def _fewer_layers() -> Iterator[None]:
    """Let a model with fewer layers load from a checkpoint, which stacks those of all layers."""

    def accept_any_shape(tensor):
        tensor.allow_shape_mismatch = True
        check(tensor)

    def drop_objects(tensors):  # Extra states of layers, empty here; their number must fit
        if isinstance(tensors, dict):
            return {
                name: drop_objects(each)
                for name, each in tensors.items()
                if not isinstance(each, ShardedObject)
            }
        return tensors

    def load_without(sharded_state_dict, *args, **kwargs):
        return load(drop_objects(sharded_state_dict), *args, **kwargs)

    check, load = ShardedTensor.__post_init__, dist_checkpointing.load
    with (
        mock.patch.object(ShardedTensor, "__post_init__", accept_any_shape),
        mock.patch.object(dist_checkpointing, "load", load_without),
    ):
        yield


def load_reference(folder: Path, dtype: torch.dtype, *, layers: int = 0) -> GptOssForCausalLM:
    """Load transformers' model, eager attention, with its arithmetic in one dtype throughout.

    Args:
        folder: Checkpoint in Hugging Face format.
        dtype: Of weights and arithmetic.
        layers: Only so many, the first ones; 0 for all.
    """
    model = checkpoint.load_model(folder, dtype, layers=layers)
    if dtype == torch.float64:  # transformers' RMSNorm goes through float32 in any dtype
        for module in list(model.modules()):
            for name, norm in list(module.named_children()):
                if isinstance(norm, GptOssRMSNorm):
                    wide = torch.nn.RMSNorm(len(norm.weight), eps=norm.variance_epsilon)
                    wide.weight = norm.weight
                    setattr(module, name, wide)
    return model


@torch.no_grad()
def logits(model: torch.nn.Module, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Give the logits of a NeMo, transformers or PEFT model for each token of all batches.

    Args:
        model: On any device.
        batches: Token numbers, [1, tokens] each.

    Returns:
        [tokens of all, vocabulary], on the CPU.
    """
    device = next(model.parameters()).device
    found = []
    for tokens in batches:
        tokens = tokens.to(device)
        if isinstance(model, GptOssForCausalLM | PeftModel):
            found.append(model(tokens).logits[0].cpu())
        else:
            positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
            found.append(model(tokens, positions, None)[0].cpu())
    return torch.cat(found)
