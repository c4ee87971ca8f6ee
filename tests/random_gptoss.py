"""A random gpt-oss in Hugging Face format, small and with every feature on, for tests of NeMo."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GptOssConfig,
    GptOssForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<|endoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"]
WORDS = "my printer router laptop shows an error was charged twice and needs a new password please"
QUEUES = ["IT Support", "Billing and Payments", "Human Resources"]
WINDOW = 16
# Longer than the window, with characters that fall into several byte tokens.
TEXTS = [f"Ticket {n}: {WORDS} – Größe {n}, 問題. {WORDS}" for n in (17, 230)] + [WORDS]


def make_tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([WORDS, *QUEUES] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        model_input_names=["input_ids", "attention_mask"],
        chat_template="{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
        "<|end|>{% endfor %}<|start|>assistant",
    )


def make_model(vocab_size: int = 384) -> GptOssForCausalLM:
    """Weights are large enough for the clamp at 7 and the sinks to matter."""
    torch.manual_seed(0)
    config = GptOssConfig(
        num_hidden_layers=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        head_dim=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=WINDOW,
        initializer_range=0.08,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        attn_implementation="eager",
    )
    model = GptOssForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_(0, 1)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name.endswith("gate_up_proj"):
                parameter.mul_(5)
    model.generation_config = GenerationConfig(eos_token_id=[1], pad_token_id=0)
    return model


def save(folder: Path, dtype: torch.dtype = torch.float32, **kwargs) -> Path:
    """Write model and tokenizer as transformers does; `kwargs` go to `save_pretrained`."""
    tokenizer = make_tokenizer()
    model = make_model().to(dtype)
    model.save_pretrained(folder, **kwargs)
    tokenizer.save_pretrained(folder)
    return folder


def import_base(folder: Path, output: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Import a Hugging Face folder into NeMo, as notebook 03 does."""
    from nemo.collections import llm

    from ticketlib import gptoss

    model = gptoss.build_model(folder, dtype)
    return llm.import_ckpt(model, f"hf://{folder}", output_path=output, dtype=dtype)
