"""Transformer Engine's layers for gpt-oss, with several tickets in one row; needs a GPU.

Padded batches waste half of the work on tickets of unequal length, and Transformer Engine 2.11 has
no attention with learnable sinks for packed rows (`thd`). So packed rows take FlexAttention
(arXiv:2412.05496) with a mask that keeps each token to its own ticket. The sink, which takes part
of the softmax and adds nothing, becomes a factor: out * sigmoid(logsumexp - sink).

Megatron-Core's experts add the second bias with three kernels for each expert, a fifth of a step's
time, and clamp and gate with ten; here each is one.
"""

import torch
from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.transformer.moe.experts import TEGroupedMLP
from nemo.collections.llm.gpt.model.base import default_layer_spec
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

_attend = torch.compile(flex_attention, dynamic=False)
_make_mask = torch.compile(create_block_mask, dynamic=False)


class Pack:
    """Which ticket each token of a row belongs to, for all layers; the tensors stay in place.

    Attributes:
        tickets: [tokens] number of the ticket; each padding token is one of its own.
        masks: By window (0: none), as FlexAttention takes them.
    """

    def __init__(self, tokens: int, windows: set[int], device: torch.device):
        """Prepare for rows of `tokens` tokens."""
        self.tickets = torch.zeros(tokens, dtype=torch.int32, device=device)
        self.rules = {window: self._make_rule(window) for window in windows}
        self.masks = {}

    def _make_rule(self, window: int):
        tickets = self.tickets

        def sees(batch, head, query, key):
            is_visible = (query >= key) & (tickets[query] == tickets[key])
            return is_visible & (query - key < window) if window else is_visible

        return sees

    def fill(self, position_ids: torch.Tensor) -> None:
        """Take the next row: [1, tokens], 0 where a ticket begins and all over the padding."""
        self.tickets.copy_((position_ids[0] == 0).cumsum(0))
        tokens, device = len(self.tickets), self.tickets.device
        for window, rule in self.rules.items():
            self.masks[window] = _make_mask(rule, None, None, tokens, tokens, device=device)


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
            return_aux=AuxRequest(lse=True),
        )
        sink = self.softmax_offset.float().view(1, -1, 1)
        out = out * torch.sigmoid(aux.lse - sink).unsqueeze(-1).to(out.dtype)
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
        if pack is None or len(pack.tickets) != tokens:
            pack = Pack(tokens, {layer.window for layer in layers}, position_ids.device)
        pack.fill(position_ids)
    for layer in layers:
        layer.pack = pack


@torch.compile(dynamic=False)
def _gate(rows, shares, clamp: float, offset: float):
    """Clamp, gate (quick GELU, arXiv:1606.08415) and weight: [rows, 2 x out] -> [rows, out]."""
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
        counts, shares = tokens_per_expert.tolist(), permuted_probs.unsqueeze(-1)
        rows, _ = self.linear_fc1(permuted_local_hidden_states, counts)
        clamp, offset = self.config.activation_func_clamp_value, self.config.glu_linear_offset
        rows, biases = self.linear_fc2(_gate(rows, shares, clamp, offset), counts)
        device = rows.device
        experts = torch.repeat_interleave(
            torch.arange(len(counts), device=device),
            torch.tensor(counts, device=device),
            output_size=len(rows),
        )
        return _add_bias(rows, torch.stack(list(biases)), experts, shares), None


def make_layers(config, vp_stage: int | None = None):
    """Give NeMo's Transformer Engine layers with the attention and the experts of this module."""
    spec = default_layer_spec(config, vp_stage)
    spec.submodules.self_attention.submodules.core_attention = PackedAttention
    spec.submodules.mlp.submodules.experts.module = GroupedExperts
    return spec
