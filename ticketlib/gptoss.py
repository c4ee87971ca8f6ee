"""gpt-oss in NeMo, corrected: config, model, importer and exporter.

NeMo 2.7.3's own gpt-oss classes read two fields of the Hugging Face config, know one weight
layout, cancel YaRN's attention factor and show one key too many in the sliding window. The classes
here subclass them and put that right; `tests/test_gptoss.py` shows that logits equal transformers'
`GptOssForCausalLM` and that each correction matters. Importing this module imports NeMo (8 s).
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.trainer.connectors import accelerator_connector
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_geglu import quick_gelu
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.utils import get_attr_wrapped_model
from nemo.collections import llm
from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer
from nemo.collections.llm.gpt.model import gpt_oss as stock
from nemo.collections.llm.gpt.model.base import gpt_forward_step
from nemo.lightning import io, teardown
from nemo.lightning.io.state import TransformFns, _ModelState
from safetensors import safe_open
from transformers import AutoConfig, GenerationConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ticketlib.cpu import patch_for_cpu

SERVING_FILES = ("generation_config.json", "chat_template.jinja", "tokenizer*", "special_tokens*")


def answers_forward_step(model, batch: dict) -> torch.Tensor:
    """NeMo's `gpt_forward_step` with the head and the loss on the answers' tokens only.

    The head over the whole vocabulary is the largest part of a step, and NeMo multiplies what it
    gives for prompt and padding by 0. Loss and gradients are the same (tests/test_training.py).

    Returns:
        Losses [batch, tokens], 0 where `loss_mask` is 0.
    """
    # [tokens, batch], as Megatron-Core lays out hidden states
    wanted = batch["loss_mask"].t().bool()

    def select(head, args, kwargs):
        hidden, *rest = args
        return (hidden[wanted][:, None], *rest), kwargs

    head = get_attr_wrapped_model(model, "output_layer")
    hook = head.register_forward_pre_hook(select, with_kwargs=True)
    try:
        labels = batch["labels"].t()[wanted][None]
        losses = gpt_forward_step(model, batch | {"labels": labels})
    finally:
        hook.remove()
    return losses.new_zeros(wanted.shape).index_put((wanted,), losses[0]).t().contiguous()


@dataclass
class GptOssConfig(llm.GPTOSSConfig):
    """NeMo's gpt-oss config with its faults corrected, on Transformer Engine layers."""

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


def config_from_hf(folder: Path, dtype: torch.dtype, make: Callable | None = None):
    """Read every dimension of a Hugging Face gpt-oss config into NeMo's.

    Args:
        folder: Checkpoint folder with `config.json`.
        dtype: Of the parameters in memory.
        make: Called with the fields; default `config_class()`. Pass `partial(run.Config, cls)` for
            a recipe.

    Returns:
        What `make` returns: a `GptOssConfig`.

    Raises:
        ValueError: The config is not of gpt-oss, or holds a setting that NeMo's model does not
            have.
    """
    hf = AutoConfig.from_pretrained(str(folder))
    if hf.model_type != "gpt_oss":
        raise ValueError(
            f'{folder} holds a model of type "{hf.model_type}"; "gpt_oss" is accepted.'
        )
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
    earlier call go: those of a merge are for the CPU, those of training for the GPU. Each call gets
    a port of its own, so that runs side by side don't meet, also those that inherit this process'
    environment. Without CUDA, what needs it is patched first.
    """
    patch_for_cpu()
    accelerator_connector._IS_INTERACTIVE = False
    if torch.distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
    os.environ["MASTER_PORT"] = str(find_free_network_port())


def build_model(folder: Path, dtype: torch.dtype) -> GptOssModel:
    """Give an empty NeMo model as large as a Hugging Face one, for `llm.import_ckpt`."""
    start_afresh()
    return GptOssModel(config_from_hf(folder, dtype))


def hf_folder_of(checkpoint: Path) -> Path:
    """Give the Hugging Face folder of the base of any NeMo checkpoint of ours."""
    return Path(io.load_context(Path(checkpoint) / "context", subpath="model.config").hf_folder)


def fingerprint(folder: Path) -> str:
    """Give eight hex digits that change with the files of a folder (config; name, size, time)."""
    digest = hashlib.sha256((Path(folder) / "config.json").read_bytes())
    for file in sorted(Path(folder).glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:8]


def read_hf_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read all weights of a gpt-oss folder by the names and shapes that transformers gives them.

    Experts stored as MXFP4 (`*_blocks` and `*_scales`, OpenAI's release) come out as bfloat16
    `[experts, in, out]`, dequantized by transformers; BF16 files have that layout already.

    Raises:
        FileNotFoundError: The folder holds no `.safetensors`.
        ValueError: Names or shapes differ from what `config.json` asks for.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no .safetensors file.")
    weights = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            weights.update({name: tensors.get_tensor(name) for name in tensors.keys()})
    for name in [name for name in weights if name.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        blocks, scales = weights.pop(name), weights.pop(f"{stem}_scales")
        weights[stem] = convert_moe_packed_tensors(blocks, scales).cpu()
    with torch.device("meta"):
        expected = GptOssForCausalLM(AutoConfig.from_pretrained(str(folder))).state_dict()
    faults = [f"missing {name}" for name in expected.keys() - weights.keys()]
    faults += [f"unexpected {name}" for name in weights.keys() - expected.keys()]
    faults += [
        f"{name} has shape {tuple(weights[name].shape)}, the config asks for {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if faults:
        raise ValueError(
            f"{folder} does not fit its config.json: " + "; ".join(sorted(faults)[:10])
        )
    return weights


def _name_pairs(config) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Give Hugging Face name -> NeMo name, and the two expert matrices' name patterns."""
    local = not config.moe_grouped_gemm
    plain = {
        "model.embed_tokens.weight": "embedding.word_embeddings.weight",
        "model.norm.weight": "decoder.final_layernorm.weight",
        "lm_head.weight": "output_layer.weight",
        "**.input_layernorm.weight": "**.input_layernorm.weight"
        if local
        else "**.self_attention.linear_qkv.layer_norm_weight",
        "**.self_attn.o_proj.bias": "**.self_attention.linear_proj.bias",
        "**.self_attn.o_proj.weight": "**.self_attention.linear_proj.weight",
        "**.self_attn.sinks": "**.self_attention.core_attention.softmax_offset",
        "**.post_attention_layernorm.weight": "**.pre_mlp_layernorm.weight",
        "**.mlp.router.bias": "**.mlp.router.bias",
        "**.mlp.router.weight": "**.mlp.router.weight",
    }
    one = "local_experts.*.{}.{}" if local else "{}.{}*"
    experts = [
        (f"**.mlp.experts.{hf}{suffix}", "**.mlp.experts." + one.format(fc, kind))
        for hf, fc in (("gate_up_proj", "linear_fc1"), ("down_proj", "linear_fc2"))
        for suffix, kind in (("", "weight"), ("_bias", "bias"))
    ]
    return plain, experts


def _qkv(kind: str) -> tuple[str, ...]:
    return tuple(f"**.self_attn.{letter}_proj.{kind}" for letter in "qkv")


def _split_experts(name: str) -> Callable:
    """[experts, in, out] -> [out, in] each; HF interleaves gate and up rows, NeMo does not."""

    def split(x: torch.Tensor) -> list[torch.Tensor]:
        each = [expert.t() if expert.dim() == 2 else expert for expert in x]
        return [stock._interleave(e) if "gate_up" in name else e for e in each]

    return split


def _stack_experts(name: str) -> Callable:
    def stack(*each: torch.Tensor) -> torch.Tensor:
        each = [stock._uninterleave(e) if "gate_up" in name else e for e in each]
        return torch.stack([e.t() if e.dim() == 2 else e for e in each]).contiguous()

    return stack


@io.model_importer(GptOssModel, "hf")
class GptOssImporter(stock.HFGPTOSSImporter):
    """Hugging Face gpt-oss, BF16 or MXFP4, of any size -> NeMo; used by `llm.import_ckpt`."""

    def init(self) -> GptOssModel:  # noqa: D102
        return GptOssModel(self.config, tokenizer=self.tokenizer)

    def apply(self, output_path: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
        """Read, convert and save; `dtype` of the imported parameters."""
        self.dtype = dtype
        target = self.init()
        trainer = self.nemo_setup(target)
        self.convert_state(_ModelState(read_hf_weights(self)), target)
        self.nemo_save(output_path, trainer)
        teardown(trainer, target)
        return output_path

    def convert_state(self, source, target):  # noqa: D102
        plain, experts = _name_pairs(self.config)
        merge = {"weight": TransformFns.merge_qkv, "bias": TransformFns.merge_qkv_bias}
        transforms = [
            io.state_transform(_qkv(kind), f"**.self_attention.linear_qkv.{kind}", fn)
            for kind, fn in merge.items()
        ] + [io.state_transform(hf, nemo, _split_experts(hf)) for hf, nemo in experts]
        return io.apply_transforms(source, target, plain, transforms, cast_dtype=self.dtype)

    @cached_property
    def tokenizer(self) -> AutoTokenizer:  # noqa: D102
        # A folder of its own: the stock importer shares one fixed folder between all processes.
        return AutoTokenizer(
            self.save_hf_tokenizer_assets(str(self), tempfile.mkdtemp(prefix="tokenizer-"))
        )

    @cached_property
    def config(self) -> GptOssConfig:  # noqa: D102
        return config_from_hf(self, self.dtype)


@io.model_exporter(GptOssModel, "hf")
class GptOssExporter(stock.HFGPTOSSExporter):
    """NeMo gpt-oss -> Hugging Face folder that a server can load; used by `llm.export_ckpt`."""

    trust_remote_code = False  # The stock exporter reads it and never sets it

    @cached_property
    def nemo_config(self) -> GptOssConfig:  # noqa: D102
        return io.load_context(str(self), subpath="model.config")

    @cached_property
    def config(self):
        """The base's own config; only the dtype changes, and no stale quantization stays."""
        config = AutoConfig.from_pretrained(self.nemo_config.hf_folder)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return config

    def apply(self, output_path: Path, max_shard_size: str = "5GB") -> Path:
        """Convert and save, with generation config, tokenizer and chat template of the base."""
        source, _ = self.nemo_load(str(self))
        target = self.convert_state(source, self.init(self.nemo_config.params_dtype))
        base = Path(self.nemo_config.hf_folder)
        target.generation_config = GenerationConfig.from_pretrained(base)
        target.cpu().save_pretrained(output_path, max_shard_size=max_shard_size)
        for pattern in SERVING_FILES:
            for file in base.glob(pattern):
                (Path(output_path) / file.name).write_bytes(file.read_bytes())
        return output_path

    def convert_state(self, source, target):  # noqa: D102
        plain, experts = _name_pairs(self.nemo_config)
        split = {"weight": TransformFns.split_qkv, "bias": TransformFns.split_qkv_bias}
        transforms = [
            io.state_transform(f"**.self_attention.linear_qkv.{kind}", _qkv(kind), fn)
            for kind, fn in split.items()
        ] + [io.state_transform(nemo, hf, _stack_experts(hf)) for hf, nemo in experts]
        plain = {nemo: hf for hf, nemo in plain.items()}
        # Transformer Engine keeps the sinks in float32, whatever the model's dtype.
        return io.apply_transforms(source, target, plain, transforms, cast_dtype=target.dtype)
