"""Load NeMo checkpoints for inference and compare their logits with transformers'.

A model that was imported, merged or exported is right when NeMo and transformers give the same
logits on real prompts longer than the sliding window. Training refuses an import without that
proof.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from nemo import lightning as nl
from transformers import AutoTokenizer, GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm

from ticketlib.gptoss import start_afresh
from ticketlib.paths import write_json

PARITY_FILE = "parity.json"
# Less than this share of equal next tokens is no rounding: a cancelled YaRN factor gave 65 %.
MIN_SAME_ARGMAX = 0.9


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


def load_model(checkpoint: Path, dtype: torch.dtype, **settings) -> torch.nn.Module:
    """Load an imported, merged or LoRA checkpoint of NeMo for inference, as `llm.generate` does.

    `ModelConnector.nemo_load` would leave the base of a LoRA checkpoint uninitialized.

    Args:
        checkpoint: NeMo checkpoint folder.
        dtype: Of the parameters.
        settings: Fields of the model's config to change.
    """
    from nemo.collections.llm import inference

    if dtype == torch.float64:
        settings = {"moe_router_dtype": "fp64", "attention_softmax_in_fp32": False} | settings
    wrapper, _ = inference.setup_model_and_tokenizer(
        path=Path(checkpoint),
        trainer=make_trainer(dtype),
        params_dtype=dtype,
        **settings,
    )
    return wrapper.model.eval()


def load_reference(folder: Path, dtype: torch.dtype) -> GptOssForCausalLM:
    """Load transformers' model, eager attention, with its arithmetic in `dtype` throughout."""
    model = GptOssForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    if dtype == torch.float64:  # transformers' RMSNorm goes through float32 in any dtype
        for module in list(model.modules()):
            for name, norm in list(module.named_children()):
                if isinstance(norm, GptOssRMSNorm):
                    wide = torch.nn.RMSNorm(len(norm.weight), eps=norm.variance_epsilon)
                    wide.weight = norm.weight
                    setattr(module, name, wide)
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Give the logits of a NeMo or transformers model: [batch, tokens, vocabulary], CPU."""
    device = next(model.parameters()).device
    tokens = tokens.to(device)
    if isinstance(model, GptOssForCausalLM):
        return model(tokens).logits.cpu()
    positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    return model(tokens, positions, None).cpu()


def check_parity(
    hf_folder: Path, checkpoint: Path, texts: Iterable[str], *, dtype: str, tolerance: float
) -> dict[str, float]:
    """Compare a NeMo checkpoint's logits with those of a Hugging Face folder on the same texts.

    Args:
        hf_folder: Loaded by transformers, eager attention.
        checkpoint: Loaded by NeMo: imported, merged or with an adapter.
        texts: Prompts; at least one must be longer than the sliding window.
        dtype: Of the arithmetic of both models, such as "float64": rounding can then neither hide a
            fault nor look like one.
        tolerance: Largest difference of any logit that is accepted.

    Returns:
        `max_difference`, `mean_difference`, `same_argmax` (share), `texts`, `longest` (tokens),
        `tolerance`.

    Raises:
        ValueError: The logits differ by more than the tolerance or by their largest too often, or
            no text is longer than the window.
    """
    dtype = getattr(torch, dtype)
    tokenizer = AutoTokenizer.from_pretrained(hf_folder)
    batches = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
    hf = load_reference(hf_folder, dtype)
    window = hf.config.sliding_window
    longest = max((tokens.shape[1] for tokens in batches), default=0)
    if longest <= window:
        raise ValueError(
            f"The longest text has {longest} tokens, the window {window}: pass a longer one."
        )
    expected = [logits(hf, tokens) for tokens in batches]
    del hf
    nemo = load_model(checkpoint, dtype)
    pairs = [(a, logits(nemo, tokens)) for a, tokens in zip(expected, batches, strict=True)]
    differences = torch.cat([(a - b).abs().flatten().double() for a, b in pairs])
    same = torch.cat([(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in pairs])
    result = {
        "max_difference": differences.max().item(),
        "mean_difference": differences.mean().item(),
        "same_argmax": same.float().mean().item(),
        "texts": len(batches),
        "longest": longest,
        "tolerance": tolerance,
    }
    if not (result["max_difference"] <= tolerance and result["same_argmax"] >= MIN_SAME_ARGMAX):
        raise ValueError(
            f"NeMo's logits for {checkpoint} differ from transformers' for {hf_folder} by "
            f"{result['max_difference']:.3g}; {result['same_argmax']:.0%} of next tokens equal; "
            f"at most {tolerance:g} and at least {MIN_SAME_ARGMAX:.0%} are accepted. Do not use it."
        )
    return result


def save_parity(checkpoint: Path, result: dict[str, float]) -> Path:
    """Write the result of `check_parity` beside the checkpoint, where training looks for it."""
    return write_json(Path(checkpoint) / PARITY_FILE, result)
