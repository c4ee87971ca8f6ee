"""The proof that a model is still the same after an import, a merge or an export.

It is when NeMo and transformers give the same logits on real prompts longer than the sliding
window. Training refuses an import without that proof.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from nemo.collections.llm.peft.lora import LoRALinear
from peft import PeftModel
from transformers import AutoTokenizer

from ticketlib import adapter, checkpoint
from ticketlib.checkpoint import Weights
from ticketlib.gptoss import hf_folder_of, load_weights
from ticketlib.inference import load_model, load_reference, logits
from ticketlib.paths import Run, require, write_json

PARITY_FILE = "parity.json"
# Less than this share of equal next tokens is no rounding: a cancelled YaRN factor gave 65 %.
MIN_SAME_ARGMAX = 0.9


def compare_logits(expected: torch.Tensor, found: torch.Tensor) -> dict[str, float]:
    """Give how far two models' logits for the same tokens are apart.

    Args:
        expected: [tokens, vocabulary], of `logits`.
        found: The same of the other model.

    Returns:
        `max_difference` and `mean_difference` in logits, `same_argmax` (share of tokens).
    """
    difference = (expected.double() - found.double()).abs()
    return {
        "max_difference": difference.max().item(),
        "mean_difference": difference.mean().item(),
        "same_argmax": (expected.argmax(-1) == found.argmax(-1)).double().mean().item(),
    }


def _check(result: dict[str, float], tolerance: float, what: str) -> None:
    # "not (<=)" rather than ">": logits that are no numbers must not pass
    if not (result["max_difference"] <= tolerance and result["same_argmax"] >= MIN_SAME_ARGMAX):
        raise ValueError(
            f"The logits of {what} differ by {result['max_difference']:.3g}, and "
            f"{result['same_argmax']:.0%} of next tokens are equal; at most {tolerance:g} and at "
            f"least {MIN_SAME_ARGMAX:.0%} are accepted. Do not use it."
        )


def _tokenize(
    folder: Path, texts: Iterable[str], layers: int
) -> tuple[list[torch.Tensor], dict[str, int]]:
    """Token numbers [1, tokens] of each text, and what is compared on them."""
    config = checkpoint.load_config(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    batches = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
    longest = max((tokens.shape[1] for tokens in batches), default=0)
    if longest <= config.sliding_window:
        raise ValueError(
            f"The longest text has {longest} tokens, the window {config.sliding_window}: pass a "
            "longer one."
        )
    total = config.num_hidden_layers
    how = {"texts": len(batches), "longest": longest, "layers": layers or total, "of_layers": total}
    return batches, how


def check_parity(
    hf_folder: Path,
    imported: Path,
    texts: Iterable[str],
    *,
    dtype: str,
    tolerance: float,
    layers: int = 0,
) -> dict[str, float]:
    """Compare a NeMo checkpoint's logits with those of a Hugging Face folder on the same texts.

    Args:
        hf_folder: Loaded by transformers, eager attention.
        imported: NeMo checkpoint.
        texts: Prompts; at least one must be longer than the sliding window.
        dtype: Of the arithmetic of both models, such as "float64": rounding can then neither hide a
            fault nor look like one.
        tolerance: Largest difference of any logit that is accepted.
        layers: Only the first ones, for a model that is too large for one device; 0 is all.

    Returns:
        What `compare_logits` gives, and `texts`, `longest` (tokens), `tolerance`, `dtype`,
        `layers` that were compared, `of_layers`, `attention` that NeMo's model ran on.

    Raises:
        ValueError: The logits differ by more than the tolerance or by their largest too often, or
            no text is longer than the window.
    """
    kind = getattr(torch, dtype)
    batches, how = _tokenize(hf_folder, texts, layers)
    # Never two models in memory
    expected = logits(load_reference(hf_folder, kind, layers=layers), batches)
    model = load_model(imported, kind, layers=layers)
    result = compare_logits(expected, logits(model, batches))
    _check(result, tolerance, f"{imported} in NeMo and {hf_folder} in transformers")
    return result | how | {"tolerance": tolerance, "dtype": dtype} | _name_attention(model)


def _name_attention(model: torch.nn.Module) -> dict[str, str]:
    if not model.config.moe_grouped_gemm:  # `gptoss.LocalGptOssConfig`
        return {"attention": "Megatron-Core"}
    from ticketlib.te_layers import name_attention  # Needs Transformer Engine

    return {"attention": name_attention(model)}


def prove_export(
    run: Run,
    trained: Path,
    texts: Iterable[str],
    *,
    dtype: str,
    tolerance: float,
    layers: int = 0,
) -> dict[str, dict[str, float]]:
    """Show that what was exported computes what was trained, and write it to `run.proof`.

    The trained model, as NeMo trains it, is compared with each form that it then takes: its adapter
    merged in NeMo's memory, the export in transformers, the export imported into NeMo again, and
    the adapter's folder on the base with PEFT where it was exported. The base must differ from it;
    how far 4-bit experts do, where they were exported, is measured.

    Args:
        run: Its `exported` folder, and `adapter` and `exported_mxfp4` if they are there.
        trained: NeMo checkpoint that they were made from.
        texts: As for `check_parity`.
        dtype: As for `check_parity`.
        tolerance: As for `check_parity`.
        layers: As for `check_parity`; the weights are compared in all.

    Returns:
        `merged`, `exported`, `imported_again`, `peft`, `base`, `mxfp4`, each as `compare_logits`;
        `weights`: how many `changed`, of `targeted`, and how many others are `equal`, bit for bit;
        `how` with the arguments.

    Raises:
        FileNotFoundError: The run has no export.
        ValueError: A form differs from what was trained, or a weight changed that was not trained.
    """
    require(run.exported, made_by="04_evaluate_and_export.ipynb", run_name=run.run_name)
    base, kind = hf_folder_of(trained), getattr(torch, dtype)
    exported = Weights(run.exported)
    weights = _compare_weights(Weights(base), exported, trained)
    batches, how = _tokenize(run.exported, texts, layers)
    found = {}

    model = load_model(trained, kind, layers=layers)
    expected = logits(model, batches)
    if adapter.is_lora(trained):
        _merge(model)
        found["merged"] = logits(model, batches)
    load_weights(model, exported)
    found["imported_again"] = logits(model, batches)
    del model
    found["exported"] = logits(load_reference(run.exported, kind, layers=layers), batches)
    model = load_reference(base, kind, layers=layers)
    found["base"] = logits(model, batches)
    if run.adapter.exists():
        found["peft"] = logits(PeftModel.from_pretrained(model, run.adapter), batches)
    del model
    if run.exported_mxfp4.exists():
        quantized = load_reference(run.exported_mxfp4, kind, layers=layers)
        found["mxfp4"] = logits(quantized, batches)

    result = {name: compare_logits(expected, each) for name, each in found.items()}
    for name in result.keys() - {"base", "mxfp4"}:
        _check(result[name], tolerance, f"what was trained and its form {name!r}")
    if result["base"]["max_difference"] <= tolerance:
        raise ValueError(f"{run.exported} computes what its base computes: nothing was learned.")
    how |= {"tolerance": tolerance, "dtype": dtype}
    write_json(run.proof, result | {"weights": weights, "how": how})
    return result | {"weights": weights, "how": how}


@torch.no_grad()
def _merge(model: torch.nn.Module) -> None:
    """Merge a NeMo model's adapter in place, in float32 at least; the adapter gives 0 after it."""
    for module in model.modules():
        if isinstance(module, LoRALinear):
            down, up = module.adapter.linear_in.weight, module.adapter.linear_out.weight
            wide = torch.promote_types(down.dtype, torch.float32)
            delta = module.adapter.alpha / module.adapter.dim * up.to(wide) @ down.to(wide)
            for name, weight in module.to_wrap.named_parameters():
                if name.startswith("weight"):  # TE's grouped experts: weight0, weight1 ...
                    weight.copy_(weight.to(wide) + delta)
            up.zero_()


def _compare_weights(base: Weights, exported: Weights, trained: Path) -> dict[str, int]:
    """Count the weights that changed; only those of the adapter may."""
    every = set(base)
    targeted = set(adapter.read_adapter(trained).factors) if adapter.is_lora(trained) else every
    changed = {
        name
        for name, tensor in exported.items()
        if not torch.equal(tensor, base[name].to(tensor.dtype))
    }
    if wrong := sorted(changed - targeted):
        raise ValueError(f"Weights changed that were not trained: {', '.join(wrong)}. Do not use.")
    return {
        "changed": len(changed),
        "targeted": len(targeted),
        "equal": len(every - changed - targeted),
    }


def save_parity(imported: Path, result: dict[str, float]) -> Path:
    """Write the result of `check_parity` into the NeMo checkpoint, where training looks for it.

    Args:
        imported: NeMo checkpoint of the base.
        result: What `check_parity` gave for it.
    """
    return write_json(Path(imported) / PARITY_FILE, result)
