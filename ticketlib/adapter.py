"""The trained adapter in transformers' terms: merged into weights, or as a folder of PEFT.

NeMo keeps one adapter for query, key and value together and for gate and up together. Its rows are
sorted here as `convert` sorts those of the weights. `llm.peft.merge_lora` of NeMo 2.7.3 is not
used: it adds in bfloat16 (logits off by 0.33), and needs the whole model in memory and once more on
disk. Its `target="hf-peft"` raises TypeError.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from nemo.lightning import io
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch.distributed import checkpoint as torch_checkpoint
from transformers import GptOssForCausalLM

from ticketlib import convert
from ticketlib.checkpoint import load_config

_ATTENTION = {"linear_qkv": ("q_proj", "k_proj", "v_proj"), "linear_proj": ("o_proj",)}
_EXPERTS = {"linear_fc1": "gate_up_proj", "linear_fc2": "down_proj"}


@dataclass(frozen=True)
class Adapter:
    """Low-rank changes of weights: W + alpha / rank B A (LoRA, arXiv:2106.09685, section 4.1).

    Attributes:
        factors: transformers' name of a weight -> A `[rank, in]` and B `[out, rank]`, for experts
            `[experts, rank, in]` and `[experts, out, rank]`; float32.
        rank: Of all of them.
        alpha: See above.
    """

    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    rank: int
    alpha: int

    def merge(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Give a weight with its change, added in float32.

        Args:
            name: transformers' name.
            weight: `[out, in]`, for experts `[experts, in, out]`; given back where the adapter
                does not change it.
        """
        if name not in self.factors:
            return weight
        a, b = self.factors[name]
        scale = self.alpha / self.rank
        if weight.dim() == 2:
            return torch.addmm(weight.float(), b, a, alpha=scale)
        return torch.baddbmm(weight.float(), a.mT, b.mT, alpha=scale)


def is_lora(checkpoint: Path) -> bool:
    """Whether a NeMo checkpoint holds an adapter, not all parameters."""
    return (Path(checkpoint) / "weights" / "adapter_metadata.json").exists()


def read_adapter(checkpoint: Path) -> Adapter:
    """Read the adapter of a NeMo LoRA checkpoint, without its base.

    Where Transformer Engine groups the experts, NeMo trains one adapter for all of them; each
    expert gets it here.

    Raises:
        ValueError: An adapter is not of one of the four layers that are known.
    """
    context = io.load_context(Path(checkpoint) / "context", subpath="model")
    config, lora = context.config, context.model_transform
    reader = torch_checkpoint.FileSystemReader(Path(checkpoint) / "weights")
    stored = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if name.endswith((".adapter.linear_in.weight", ".adapter.linear_out.weight"))
    }
    torch_checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    factors = {}
    for name in [name for name in tensors if ".linear_in." in name]:
        layer = re.search(r"(linear_\w+)\.adapter\.", name)[1]
        # [layers, rank, in] and [layers, out, rank]; [layers, experts, ...] for experts apart
        a, b = tensors[name].float(), tensors[name.replace(".linear_in.", ".linear_out.")].float()
        for number in range(len(a)):
            prefix = f"model.layers.{number}."
            if layer in _ATTENTION:
                rows = convert.qkv_rows(config) if layer == "linear_qkv" else (slice(None),)
                for part, each in zip(_ATTENTION[layer], rows, strict=True):
                    factors[f"{prefix}self_attn.{part}.weight"] = a[number], b[number][each]
            elif layer in _EXPERTS:
                pair = [a[number], b[number]]
                if a[number].dim() == 2:
                    pair = [each.expand(config.num_moe_experts, -1, -1) for each in pair]
                if layer == "linear_fc1":
                    pair[1] = torch.stack([convert.interleave(rows) for rows in pair[1]])
                factors[f"{prefix}mlp.experts.{_EXPERTS[layer]}"] = tuple(pair)
            else:
                raise ValueError(f"{checkpoint} has an adapter of {name}, which is not known here.")
    return Adapter(factors, lora.dim, lora.alpha)


def write_peft(folder: Path, base: Path, adapter: Adapter, *, base_name: str) -> None:
    """Write an adapter as `PeftModel.from_pretrained(model, folder)` loads it onto the base.

    All names and the files are PEFT's own: the adapter is put into a PEFT model without weights,
    which saves it. How PEFT lays out the factors of experts depends on the versions of PEFT and
    transformers (`is_transposed`); the folder fits those that are installed.

    Args:
        folder: Made if need be.
        base: Folder of the base.
        adapter: Of `read_adapter`.
        base_name: What the adapter's config names as its base, such as "openai/gpt-oss-20b".
    """
    parts = sorted({name.split(".", 3)[3] for name in adapter.factors})
    config = load_config(base)
    config._name_or_path = base_name  # Else PEFT writes the folder, with all of its path
    with torch.device("meta"):
        model = GptOssForCausalLM(config)
        model.name_or_path = base_name
        model = get_peft_model(
            model,
            LoraConfig(
                r=adapter.rank,
                lora_alpha=adapter.alpha,
                target_modules=[part.removesuffix(".weight") for part in parts if "attn" in part],
                target_parameters=[part for part in parts if "experts" in part],
                task_type="CAUSAL_LM",
            ),
        )
    for path, module in model.base_model.model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if isinstance(module, ParamWrapper):
            inner = path.replace(".base_layer", "")
            a, b = adapter.factors[f"{inner}.{module.parameter_name}"]
            if module._did_swap_in_out_features:  # PEFT takes [experts, in, out] for the reverse
                a, b = b.mT, a.mT
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        else:
            a, b = adapter.factors[f"{path}.weight"]
        module.lora_A["default"].weight = torch.nn.Parameter(a.contiguous())
        module.lora_B["default"].weight = torch.nn.Parameter(b.contiguous())
    model.save_pretrained(folder, save_embedding_layers=False)
