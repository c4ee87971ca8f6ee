"""Transformer Engine's layers for gpt-oss, with several tickets in one row; needs a GPU.

Padded batches waste half of the work on tickets of unequal length, and Transformer Engine 2.11 has
no attention with learnable sinks for packed rows (`thd`). So packed rows take FlexAttention
(arXiv:2412.05496) with a mask that keeps each token to its own ticket. The sink, which takes part
of the softmax and adds nothing, becomes a factor: out * sigmoid(logsumexp - sink).

Megatron-Core's experts launch a product for each expert and layer, add the second bias with three
kernels for each expert, and clamp and gate with ten; here each is one.
"""

import torch
from megatron.core.extensions.transformer_engine import (
    TEColumnParallelGroupedLinear,
    TEDotProductAttention,
    TERowParallelGroupedLinear,
)
from megatron.core.transformer.moe.experts import TEGroupedMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from nemo.collections.llm.gpt.model.base import default_layer_spec
from torch.nn.attention import flex_attention
from transformer_engine.pytorch.attention.dot_product_attention import _attention_backends

from ticketlib.packs import Pack
from ticketlib.scoring import can_group, grouped_mm

_attend = torch.compile(flex_attention.flex_attention, dynamic=False)
if hasattr(flex_attention, "AuxRequest"):
    WITH_LSE = {"return_aux": flex_attention.AuxRequest(lse=True)}
else:  # Before torch 2.9
    WITH_LSE = {"return_lse": True}


class PackedAttention(TEDotProductAttention):
    """Transformer Engine's attention; FlexAttention while `pack` is set."""

    pack: Pack | None = None

    def forward(self, query, key, value, *args, **kwargs):
        """Attend: query [tokens, 1, heads, channels], key and value with fewer heads."""
        if self.pack is None:
            return super().forward(query, key, value, *args, **kwargs)
        query, key, value = (each.permute(1, 2, 0, 3) for each in (query, key, value))
        out, aux = _attend(
            query,
            key,
            value,
            block_mask=self.pack.masks[self.window],
            enable_gqa=True,
            **WITH_LSE,
        )
        sink = self.softmax_offset.float().view(1, -1, 1)
        lse = getattr(aux, "lse", aux)
        out = out * torch.sigmoid(lse - sink).unsqueeze(-1).to(out.dtype)
        return out.permute(2, 0, 1, 3).flatten(2)

    @property
    def window(self) -> int:
        """How many tokens a token sees, itself among them; 0 is all."""
        before = self.window_size[0]
        return before + 1 if before >= 0 else 0


def set_pack(model: torch.nn.Module, position_ids: torch.Tensor | None) -> None:
    """Let all layers of a model take the tickets of a packed row apart, or, with None, no longer.

    It stays set for the backward pass, where layers that recompute attend once more.

    Args:
        model: Of layers of `make_layers`.
        position_ids: As for `Pack.fill`.

    Raises:
        TypeError: The model has other attention, which would mix the tickets.
    """
    layers = [module for module in model.modules() if isinstance(module, PackedAttention)]
    pack = None
    if position_ids is not None:
        if not layers:
            raise TypeError("Packed rows need ticketlib.te_layers.PackedAttention in the model.")
        pack, tokens = layers[0].pack, position_ids.shape[1]
        if pack is None or len(pack.tokens) != tokens:
            pack = Pack(tokens, {layer.window for layer in layers}, position_ids.device)
        pack.fill(position_ids)
    for layer in layers:
        layer.pack = pack


class _OneProduct:
    """Frozen experts of a `TEGroupedLinear` in one product, where it launches one for each expert.

    A GPU is done with the small products sooner than the CPU can launch them. The experts' weights
    move into one tensor, of which the parameters become views.
    """

    stacks: dict[str, torch.Tensor] = {}

    def forward(self, rows, counts):
        """Give [rows, out] and the biases [experts, out], or what Transformer Engine gives.

        Args:
            rows: [rows, in], by expert.
            counts: Rows of each expert, on the CPU.
        """
        same = self.weight0.dtype == rows.dtype and can_group(rows.dtype, rows.device)
        if self.weight0.requires_grad or not same:
            return super().forward(rows, counts.tolist())
        ends = counts.cumsum(0, dtype=torch.int32).to(rows.device, non_blocking=True)
        return grouped_mm(rows, self._stack("weight").mT, offs=ends), self._stack("bias")

    def _stack(self, kind: str) -> torch.Tensor:
        parameters = [getattr(self, f"{kind}{expert}") for expert in range(self.num_gemms)]
        stack = self.stacks.get(kind)
        if stack is None or stack.data_ptr() != parameters[0].data_ptr():
            stack = torch.stack([parameter.data for parameter in parameters])
            for parameter, part in zip(parameters, stack, strict=True):
                parameter.data = part
            self.stacks = self.stacks | {kind: stack}
        return stack


class ColumnExperts(_OneProduct, TEColumnParallelGroupedLinear):
    """Experts' first layers."""


class RowExperts(_OneProduct, TERowParallelGroupedLinear):
    """Experts' second layers."""


@torch.compile(dynamic=False)
def _gate(rows, biases, experts, shares, clamp: float, offset: float):
    """Clamp, gate (quick GELU, arXiv:1606.08415) and weight: [rows, 2 x out] -> [rows, out]."""
    if biases is not None:
        rows = rows + biases[experts]
    gate, up = rows.chunk(2, dim=-1)
    gate, up = gate.clamp(max=clamp), up.clamp(-clamp, clamp)
    return (gate * torch.sigmoid(1.702 * gate) * (up + offset) * shares).to(rows.dtype)


@torch.compile(dynamic=False)
def _add_bias(rows, biases, experts, shares):
    return (rows + biases[experts] * shares).to(rows.dtype)


class GroupedExperts(TEGroupedMLP):
    """Megatron-Core's grouped experts with one kernel for the gate and one for the bias."""

    def forward(self, permuted_local_hidden_states, tokens_per_expert, permuted_probs):
        """As of `TEGroupedMLP`, for gpt-oss: [rows, hidden], [experts], [rows]."""
        rows, shares = permuted_local_hidden_states, permuted_probs.unsqueeze(-1)
        experts = torch.repeat_interleave(
            torch.arange(len(tokens_per_expert), device=rows.device),
            tokens_per_expert.to(rows.device, non_blocking=True),
            output_size=len(rows),
        )
        clamp, offset = self.config.activation_func_clamp_value, self.config.glu_linear_offset
        rows, biases = self.linear_fc1(rows, tokens_per_expert)
        rows, biases = self.linear_fc2(
            _gate(rows, biases, experts, shares, clamp, offset), tokens_per_expert
        )
        biases = biases if torch.is_tensor(biases) else torch.stack(biases)
        return _add_bias(rows, biases, experts, shares), None


def name_attention(model: torch.nn.Module) -> str:
    """Name what attention runs on: FlexAttention, or what Transformer Engine chose last.

    Args:
        model: Of layers of `make_layers`, after a forward pass.
    """
    if any(getattr(module, "pack", None) for module in model.modules()):
        return "FlexAttention, packed rows"
    kinds = {"flash": "FlashAttention", "fused": "cuDNN, fused", "unfused": "PyTorch, unfused"}
    chosen = [name for kind, name in kinds.items() if _attention_backends[f"use_{kind}_attention"]]
    return f"Transformer Engine ({', '.join(chosen) or 'not used yet'})"


def make_layers(config: TransformerConfig, vp_stage: int | None = None) -> ModuleSpec:
    """Give NeMo's Transformer Engine layers with the attention and the experts of this module.

    Args:
        config: Of the model.
        vp_stage: Part of a virtual pipeline, as NeMo passes it; None without one.
    """
    spec = default_layer_spec(config, vp_stage)
    spec.submodules.self_attention.submodules.core_attention = PackedAttention
    experts = spec.submodules.mlp.submodules.experts
    experts.module = GroupedExperts
    experts.submodules.linear_fc1 = ColumnExperts
    experts.submodules.linear_fc2 = RowExperts
    return spec
