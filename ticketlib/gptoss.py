"""gpt-oss in NeMo, corrected: config, layers, model, importer and exporter.

NeMo 2.7.3's own gpt-oss classes read two fields of the Hugging Face config, cancel YaRN's attention
factor and show one key too many in the sliding window. The classes here subclass them and put that
right; `tests/test_gptoss.py` shows that logits equal transformers' `GptOssForCausalLM` and that
each correction matters. The importer and the exporter take the weights one by one (`convert`).
Importing this module imports NeMo (8 s).
"""

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from queue import SimpleQueue
from unittest import mock

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.trainer.connectors import accelerator_connector
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import apply_factories
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.fusions.fused_bias_geglu import quick_gelu
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.utils import get_attr_wrapped_model
from nemo.collections import llm
from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer
from nemo.collections.llm.gpt.model import gpt_oss as stock
from nemo.collections.llm.gpt.model.base import gpt_forward_step
from nemo.lightning import io, teardown
from transformers import GenerationConfig

from ticketlib import convert
from ticketlib.checkpoint import (
    Weights,
    count_bytes,
    describe_model,
    load_config,
    write_folder,
)
from ticketlib.checksums import write_checksums
from ticketlib.cpu import patch_for_cpu
from ticketlib.logs import progress
from ticketlib.paths import require_space


def answers_forward_step(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """NeMo's `gpt_forward_step` with the head and the loss on the answers' tokens only.

    The head over the whole vocabulary is the largest part of a step, and NeMo multiplies what it
    gives for prompt and padding by 0. Loss and gradients are the same (tests/test_training.py).

    Rows of several tickets (`cu_seqlens` in the batch) go through `te_layers`: attention within a
    ticket, positions from each ticket's beginning.

    Args:
        model: As NeMo wraps it for training.
        batch: Of NeMo's data loader, [batch, tokens] each.

    Returns:
        Losses [batch, tokens], 0 where `loss_mask` is 0.
    """
    # [tokens, batch], as Megatron-Core lays out hidden states
    wanted = batch["loss_mask"].t().bool()
    positions = batch["position_ids"] if "cu_seqlens" in batch else None

    def select(head, args, kwargs):
        hidden, *rest = args
        return (hidden[wanted][:, None], *rest), kwargs

    core = get_attr_wrapped_model(model, "output_layer", return_model_obj=True)
    hooks = [core.output_layer.register_forward_pre_hook(select, with_kwargs=True)]
    if torch.cuda.is_available():
        from ticketlib.te_layers import set_pack

        set_pack(core, positions)
    if positions is not None:
        # Without `cu_seqlens` Megatron-Core takes one long row, whose positions are given here
        batch = {name: each for name, each in batch.items() if name != "cu_seqlens"}
        rotate = core.rotary_pos_emb.register_forward_hook(
            lambda module, args, found: (found[0][positions[0]], *found[1:])
        )
        hooks.append(rotate)
    try:
        labels = batch["labels"].t()[wanted][None]
        losses = gpt_forward_step(model, batch | {"labels": labels})
    finally:
        for hook in hooks:
            hook.remove()
    return losses.new_zeros(wanted.shape).index_put((wanted,), losses[0]).t().contiguous()


def _te_layers(config, vp_stage: int | None = None):
    from ticketlib.te_layers import make_layers  # Needs Transformer Engine

    return make_layers(config, vp_stage)


@dataclass
class GptOssConfig(llm.GPTOSSConfig):
    """NeMo's gpt-oss config with its faults corrected, on Transformer Engine layers."""

    transformer_layer_spec: Callable = _te_layers
    forward_step_fn: Callable = answers_forward_step
    hf_folder: str = ""  # Where the base came from: the export takes its config and tokenizer
    # TransformerConfig checks the identity of the fused function; the stock default is another one.
    activation_func: Callable = quick_gelu
    # 1.0 would divide YaRN's attention factor (1.3466) out again.
    yarn_mscale_all_dim: float = 0.0


class _OutOfPlaceRowParallelLinear(RowParallelLinear):
    """Megatron's MLP adds the expert's bias in place to a view, which autograd forbids."""

    def forward(self, x):  # noqa: D102
        output, bias = super().forward(x)
        return output.clone(), bias


def _local_layers(config):
    spec = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, moe_grouped_gemm=False, normalization="RMSNorm"
    )
    spec.submodules.mlp.submodules.experts.submodules.linear_fc2 = _OutOfPlaceRowParallelLinear
    return spec


@dataclass
class LocalGptOssConfig(GptOssConfig):
    """The same on Megatron-Core's own layers, which need no GPU and no fused kernels."""

    transformer_layer_spec: Callable = _local_layers
    moe_grouped_gemm: bool = False
    moe_permute_fusion: bool = False
    moe_token_dispatcher_type: str = "allgather"
    moe_router_dtype: str | None = "fp32"
    bias_activation_fusion: bool = False
    masked_softmax_fusion: bool = False
    gradient_accumulation_fusion: bool = False
    cross_entropy_loss_fusion: bool = False
    attention_softmax_in_fp32: bool = True
    use_cpu_initialization: bool = True


class GptOssModel(llm.GPTOSSModel):
    """NeMo's gpt-oss model, bound to the importer and exporter of this module."""


def config_class() -> type[GptOssConfig]:
    """Give the config for this machine: Transformer Engine with CUDA, Megatron's layers without."""
    if not torch.cuda.is_available():
        return LocalGptOssConfig
    import transformer_engine.pytorch  # noqa: F401 - fail here rather than in the middle of a build

    return GptOssConfig


def config_from_hf(folder: Path, dtype: torch.dtype, make: Callable | None = None) -> GptOssConfig:
    """Read every dimension of a Hugging Face gpt-oss config into NeMo's.

    Args:
        folder: Checkpoint folder with `config.json`.
        dtype: Of the parameters in memory.
        make: Called with the fields; default `config_class()`. Pass `partial(run.Config, cls)` for
            a recipe.

    Returns:
        What `make` returns: a `GptOssConfig`, or NeMo-Run's `Config` of one.

    Raises:
        ValueError: The config is not of gpt-oss, or holds a setting that NeMo's model does not
            have.
    """
    hf = load_config(folder)
    layers = ["sliding_attention", "full_attention"] * (hf.num_hidden_layers // 2 + 1)
    if hf.layer_types != layers[: hf.num_hidden_layers]:
        raise ValueError(
            f"{folder}: layer_types must alternate, sliding first; found {hf.layer_types}."
        )
    yarn = hf.rope_scaling
    return (make or config_class())(
        hf_folder=str(Path(folder).resolve()),
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        num_attention_heads=hf.num_attention_heads,
        num_query_groups=hf.num_key_value_heads,
        kv_channels=hf.head_dim,
        ffn_hidden_size=hf.intermediate_size,
        moe_ffn_hidden_size=hf.intermediate_size,
        num_moe_experts=hf.num_local_experts,
        moe_router_topk=hf.num_experts_per_tok,
        vocab_size=hf.vocab_size,
        seq_length=hf.max_position_embeddings,
        layernorm_epsilon=hf.rms_norm_eps,
        # transformers shows `sliding_window` keys, the token's own among them; NeMo counts those
        # before it.
        window_size=(hf.sliding_window - 1, 0),
        rotary_base=int(hf.rope_theta),
        yarn_rotary_scaling_factor=yarn["factor"],
        yarn_original_max_position_embeddings=yarn["original_max_position_embeddings"],
        yarn_beta_fast=yarn["beta_fast"],
        yarn_beta_slow=yarn["beta_slow"],
        activation_func_clamp_value=getattr(hf, "swiglu_limit", 7.0),
        generation_config=GenerationConfig.from_pretrained(str(folder)),
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
    )


def start_afresh() -> None:
    """Let the next NeMo call run in this process, also in a notebook and after other NeMo calls.

    Lightning refuses NeMo's strategy in an interactive session, because with several devices it
    starts the script once more for each; with one device it starts nothing. Process groups of an
    earlier call go: those of an import are for the CPU, those of training for the GPU. So does the
    batch size of an earlier training, which Megatron-Core keeps. Each call gets a port of its own,
    so that runs side by side don't meet, also those that inherit this process' environment. Without
    CUDA, what needs it is patched first.
    """
    patch_for_cpu()
    accelerator_connector._IS_INTERACTIVE = False
    destroy_num_microbatches_calculator()
    # Megatron-Core's would be a server in a new process, which begins with the caller's script once
    # more. What saves at once, as we do, needs none.
    filesystem_async._results_queue = SimpleQueue()
    if torch.distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
    os.environ["MASTER_PORT"] = str(find_free_network_port())


def build_model(folder: Path, dtype: torch.dtype) -> GptOssModel:
    """Give an empty NeMo model as large as a Hugging Face one, for `llm.import_ckpt`.

    Args:
        folder: Checkpoint folder with `config.json`.
        dtype: Of the parameters in memory.
    """
    start_afresh()
    return GptOssModel(config_from_hf(folder, dtype))


def config_of(checkpoint: Path) -> GptOssConfig:
    """Give the config that a NeMo checkpoint of ours was made with."""
    return io.load_context(Path(checkpoint) / "context", subpath="model.config")


def hf_folder_of(checkpoint: Path) -> Path:
    """Give the Hugging Face folder of the base of any NeMo checkpoint of ours.

    Raises:
        FileNotFoundError: It is no longer where it was imported from.
    """
    folder = Path(config_of(checkpoint).hf_folder)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{folder}, the base of {checkpoint}, is no longer there. Put it back; its config, its "
            "tokenizer and the weights that training left alone are taken from it."
        )
    return folder


@torch.no_grad()
def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Fill a NeMo model in place from weights by transformers' names, one after another.

    Args:
        model: Megatron's `GPTModel`, perhaps with fewer layers; an adapter stays as it is.
        weights: Such as `checkpoint.Weights`.

    Raises:
        ValueError: The two do not have the same parameters.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:  # Transformer Engine's, before an import
                module.register_parameter(
                    name, torch.nn.Parameter(torch.empty_like(parameter, device="cpu"))
                )
    empty = {
        name.replace(".to_wrap.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".adapter." not in name
    }
    unknown = []
    tensors = convert.to_nemo(weights, model.config)
    for name, tensor in progress(tensors, "Reading weights", total=len(empty), delay=5):
        if name in empty and empty[name].shape == tensor.shape:
            empty.pop(name).copy_(tensor)
        else:
            unknown.append(name)
    if empty or unknown:
        raise ValueError(
            f"NeMo's model does not take these weights. Without a value: {sorted(empty)}; "
            f"unknown or of another shape: {unknown}."
        )


@contextmanager
def _saving_without_a_copy() -> Iterator[None]:
    """Let Megatron-Core save a model that is no longer needed in the memory that it has.

    It saves gates and ups of the experts apart, as views of one weight, and copies every view:
    half of the model again. Here each pair takes the place of its weight.
    """

    def save_views(sharded_state_dict, *args, **kwargs):
        apply_factories(sharded_state_dict)
        views = defaultdict(list)
        for tensor in nested_values(sharded_state_dict):
            if isinstance(tensor, ShardedTensor):
                storage = tensor.data.untyped_storage()
                if storage.size() != tensor.data.numel() * tensor.data.itemsize:
                    views[storage.data_ptr()].append(tensor)
        for halves in views.values():
            storage = halves[0].data.untyped_storage()
            for tensor in halves:
                tensor.data = tensor.data.detach().clone()
            storage.resize_(0)
        return save(sharded_state_dict, *args, **kwargs)

    save = dist_checkpointing.save
    with mock.patch.object(dist_checkpointing, "save", save_views):
        yield


@io.model_importer(GptOssModel, "hf")
class GptOssImporter(stock.HFGPTOSSImporter):
    """Hugging Face gpt-oss, BF16 or MXFP4, of any size -> NeMo; used by `llm.import_ckpt`."""

    def init(self) -> GptOssModel:  # noqa: D102
        return GptOssModel(self.config, tokenizer=self.tokenizer)

    def apply(self, output_path: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
        """Check, read, convert and save; in memory are the model and one tensor of the folder.

        Args:
            output_path: NeMo checkpoint to write.
            dtype: Of the imported parameters.

        Raises:
            ValueError: As `checkpoint.Weights`, before anything is read; or a weight is not
                finite, before anything is saved.
        """
        self.dtype = dtype
        weights = Weights(self)
        require_space(output_path, count_bytes(describe_model(weights.config, dtype)))
        target = self.init()
        trainer = self.nemo_setup(target, ckpt_async_save=False)
        load_weights(target.module, weights)
        if weights.nonfinite:
            raise ValueError(f"{self} is damaged: {'; '.join(weights.nonfinite)}.")
        with _saving_without_a_copy():
            self.nemo_save(output_path, trainer)
        write_checksums(output_path)
        teardown(trainer, target)
        return output_path

    @cached_property
    def tokenizer(self) -> AutoTokenizer:  # noqa: D102
        # Not `save_hf_tokenizer_assets`: it trusts the base's code, and all processes share its
        # one fixed folder.
        folder = tempfile.mkdtemp(prefix="tokenizer-")
        AutoTokenizer(str(self), trust_remote_code=False).tokenizer.save_pretrained(folder)
        return AutoTokenizer(folder)

    @cached_property
    def config(self) -> GptOssConfig:  # noqa: D102
        return config_from_hf(self, self.dtype)


@io.model_exporter(GptOssModel, "hf")
class GptOssExporter(stock.HFGPTOSSExporter):
    """NeMo gpt-oss -> Hugging Face folder that a server can load; used by `llm.export_ckpt`.

    For checkpoints of all parameters; `export` merges an adapter without NeMo's model.
    """

    def apply(self, output_path: Path, max_shard_size: str = "5GB") -> Path:
        """Convert and save with the base's config, tokenizer and chat template.

        Args:
            output_path: Folder to write.
            max_shard_size: Largest `.safetensors` file.
        """
        source, trainer = self.nemo_load(str(self))
        config, base = config_of(self), hf_folder_of(self)
        description = describe_model(load_config(base), config.params_dtype)
        read = partial(convert.from_nemo, state=source.module.state_dict(), config=config)
        write_folder(output_path, base, description, read, max_shard_size=max_shard_size)
        teardown(trainer, source)
        return output_path
