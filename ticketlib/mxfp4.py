"""Experts' weights in MXFP4, in the layout of openai/gpt-oss-20b.

32 numbers of 4 bits (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) share a scale, a power
of two (OCP Microscaling Formats 1.0, section 5.3). Importing this module imports ModelOpt (3 s).
"""

import torch
from modelopt.torch.quantization.qtensor.mxfp4_tensor import MXFP4QTensor

from ticketlib.checkpoint import BLOCK_SIZE

# As config.json of openai/gpt-oss-20b has it: transformers and vLLM look for it there.
QUANTIZATION_CONFIG = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round experts' weights to MXFP4 with ModelOpt.

    The inverse of transformers' `convert_moe_packed_tensors`, which dequantizes. No number changes
    that was dequantized from MXFP4 and stayed as it was, though a block's scale may (with its
    numbers, so that the largest is 4 or 6). The sign of a zero is not kept.

    Args:
        weight: [experts, in, out], as transformers names and shapes experts; any floating dtype.

    Returns:
        `*_blocks` uint8 [experts, out, in / 32, 16], the first of two numbers in the low bits, and
        `*_scales` uint8 [experts, out, in / 32], exponents plus 127; on the weight's device.

    Raises:
        ValueError: The shape does not divide into blocks, or a number is NaN or infinite.
    """
    if weight.dim() != 3 or weight.shape[1] % BLOCK_SIZE:
        raise ValueError(
            f"A weight of shape {tuple(weight.shape)} cannot be written as MXFP4. Accepted is "
            f"[experts, in, out] with in divisible by {BLOCK_SIZE}; export full weights instead."
        )
    experts, n_in, n_out = weight.shape
    shape = (experts, n_out, n_in // BLOCK_SIZE)
    blocks = torch.empty(*shape, BLOCK_SIZE // 2, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(shape, dtype=torch.uint8, device=weight.device)
    # One at a time: ModelOpt needs seven times an expert's size in float32.
    for expert, matrix in enumerate(weight):
        rows = matrix.t().float().contiguous()
        if not rows.isfinite().all():
            raise ValueError(
                f"Expert {expert} holds NaN or infinity, which MXFP4 cannot. Train again, with a "
                "lower learning_rate if the loss was not finite."
            )
        groups = rows.view(-1, BLOCK_SIZE)
        # A largest number between 6 and 7 steps becomes 6: ModelOpt would double the step for it,
        # and with it the error of all others, which is where a small change of a 6 leads.
        largest = groups.abs().amax(dim=1, keepdim=True)
        limit = 6 * torch.exp2(torch.ceil(torch.log2(largest / 7)).clamp(min=-127))
        rows = groups.clamp(-limit, limit).view_as(rows)
        quantized, exponents = MXFP4QTensor.quantize(rows, BLOCK_SIZE)
        blocks[expert] = quantized._quantized_data.view_as(blocks[expert])
        scales[expert] = exponents.view_as(scales[expert])
    return blocks, scales
