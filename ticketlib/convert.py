"""Weights by transformers' names to NeMo's and back, one at a time; no NeMo import.

Three things differ between the two. NeMo fuses query, key and value into one matrix, whose rows go
by group: the query heads of a group, its key, its value. It keeps each expert apart, `[out, in]`,
where transformers stacks them, `[experts, in, out]`. And in the experts' first matrix all gates
come before all ups, where transformers interleaves them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ticketlib.gptoss import GptOssConfig

_OUTSIDE = {
    "model.embed_tokens.weight": "embedding.word_embeddings.weight",
    "model.norm.weight": "decoder.final_layernorm.weight",
    "lm_head.weight": "output_layer.weight",
}
_PARTS = {
    "post_attention_layernorm.weight": "pre_mlp_layernorm.weight",
    "self_attn.o_proj.weight": "self_attention.linear_proj.weight",
    "self_attn.o_proj.bias": "self_attention.linear_proj.bias",
    "self_attn.sinks": "self_attention.core_attention.softmax_offset",
    "mlp.router.weight": "mlp.router.weight",
    "mlp.router.bias": "mlp.router.bias",
}
_EXPERTS = {
    "mlp.experts.gate_up_proj": ("linear_fc1", "weight"),
    "mlp.experts.gate_up_proj_bias": ("linear_fc1", "bias"),
    "mlp.experts.down_proj": ("linear_fc2", "weight"),
    "mlp.experts.down_proj_bias": ("linear_fc2", "bias"),
}


def to_nemo(
    weights: Mapping[str, torch.Tensor], config: "GptOssConfig"
) -> Iterator[tuple[str, torch.Tensor]]:
    """Give each parameter of NeMo's model with its name; a weight is read when its turn comes.

    Args:
        weights: By transformers' names.
        config: `gptoss.GptOssConfig` of the model; those of later layers than it
            has are left out.
    """
    for name in weights:
        layer, part = _split(name)
        if layer and int(layer.split(".")[2]) >= config.num_layers:
            continue
        if part in _EXPERTS:
            linear, kind = _EXPERTS[part]
            for expert, tensor in enumerate(weights[name]):
                tensor = tensor.t() if kind == "weight" else tensor
                tensor = gates_first(tensor) if linear == "linear_fc1" else tensor
                yield layer + _expert_name(linear, kind, expert, config), tensor
        elif part.startswith("self_attn.q_proj."):
            kind = part.rpartition(".")[2]
            each = [weights[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
            order = torch.cat(qkv_rows(config)).argsort()
            yield f"{layer}self_attention.linear_qkv.{kind}", torch.cat(each)[order]
        elif not part.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
            yield layer + _plain_name(part, config), weights[name]


def from_nemo(
    name: str, *, state: Mapping[str, torch.Tensor], config: "GptOssConfig"
) -> torch.Tensor:
    """Make one weight of transformers' model from NeMo's parameters.

    Args:
        name: transformers' name.
        state: NeMo name -> tensor.
        config: `gptoss.GptOssConfig` of the model.
    """
    layer, part = _split(name)
    if part in _EXPERTS:
        linear, kind = _EXPERTS[part]
        each = [
            state[layer + _expert_name(linear, kind, expert, config)]
            for expert in range(config.num_moe_experts)
        ]
        each = [interleave(tensor) for tensor in each] if linear == "linear_fc1" else each
        return torch.stack([tensor.t() if kind == "weight" else tensor for tensor in each])
    if match := re.fullmatch(r"self_attn\.([qkv])_proj\.(\w+)", part):
        rows = qkv_rows(config)["qkv".index(match[1])]
        return state[f"{layer}self_attention.linear_qkv.{match[2]}"][rows]
    return state[layer + _plain_name(part, config)]


def qkv_rows(config: "GptOssConfig") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which rows of NeMo's fused matrix are query, key and value, in transformers' order.

    Args:
        config: Gives `num_attention_heads`, `num_query_groups` and `kv_channels`.
    """
    groups, heads = config.num_query_groups, config.num_attention_heads
    shape = (groups, heads // groups + 2, config.kv_channels)
    rows = torch.arange(torch.Size(shape).numel()).view(shape)
    return rows[:, :-2].flatten(), rows[:, -2].flatten(), rows[:, -1].flatten()


def gates_first(rows: torch.Tensor) -> torch.Tensor:
    """Rows gate, up, gate, up ... (transformers) to all gates, then all ups (NeMo)."""
    return torch.cat([rows[::2], rows[1::2]])


def interleave(rows: torch.Tensor) -> torch.Tensor:
    """The inverse of `gates_first`."""
    return torch.stack(rows.chunk(2), dim=1).flatten(0, 1)


def _split(name: str) -> tuple[str, str]:
    """`model.layers.3.mlp.x` -> `decoder.layers.3.`, `mlp.x`; what is in no layer -> "", name."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    return (f"decoder.layers.{match[1]}.", match[2]) if match else ("", name)


def _plain_name(part: str, config: "GptOssConfig") -> str:
    if part == "input_layernorm.weight":  # Transformer Engine fuses it with what follows
        fused = "self_attention.linear_qkv.layer_norm_weight"
        return fused if config.moe_grouped_gemm else part
    return (_OUTSIDE | _PARTS)[part]


def _expert_name(linear: str, kind: str, expert: int, config: "GptOssConfig") -> str:
    if config.moe_grouped_gemm:
        return f"mlp.experts.{linear}.{kind}{expert}"
    return f"mlp.experts.local_experts.{expert}.{linear}.{kind}"
