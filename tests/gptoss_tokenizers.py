"""Tokenizers with gpt-oss's special tokens, for tests of prompts."""

import json
import lzma
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = [
    *["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>"],
    *["<|start|>", "<|end|>", "<|message|>", "<|call|>", "<|endofprompt|>", "<|reserved_200010|>"],
]


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|return|>")


def read_gptoss_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the real model."""
    tokenizer = Tokenizer.from_str(lzma.open(folder / "tokenizer.json.xz", "rt").read())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=config["eos_token"], pad_token=config["pad_token"]
    )
