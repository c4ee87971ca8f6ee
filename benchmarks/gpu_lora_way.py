"""Train on tickets in one of the ways that gpu_lora.py compares, which starts this script.

    python benchmarks/gpu_lora_way.py '{"way": "ours", "folder": ..., "tokenizer": ...}'

It prints a JSON line of figures after each step.
"""

import contextlib
import importlib.metadata
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

STARTED = time.time()
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
ATTENTION, EXPERTS = ["linear_qkv", "linear_proj"], ["linear_fc1", "linear_fc2"]
WAYS = {  # Name: description, LoRA rank, targets by NeMo's names
    "ours": ("ticketlib, r=8 on attention", 8, ATTENTION),
    "ours-experts": ("ticketlib, r=32, experts too", 32, ATTENTION + EXPERTS),
    "peft": ("transformers + peft, r=8, batch 4", 8, ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "stock": ("NeMo's recipe, r=8, micro-batch 4", 8, ATTENTION),
}
MICRO_BATCH, GLOBAL_BATCH, SEQ_LENGTH = 4, 64, 2048
PACKAGES = "torch nemo_toolkit megatron-core transformer-engine transformers peft".split()


def main() -> None:
    """Train as the settings say: way, folder, tokenizer, layers, steps, pack_tokens."""
    options = SimpleNamespace(**json.loads(sys.argv[1]))
    train_with_peft(options) if options.way == "peft" else train_with_nemo(options)
    sys.stdout.flush()
    os._exit(0)  # Taking NeMo down would take seconds


def read_tickets(options: SimpleNamespace) -> list[list[int]]:
    """Give the tokens of each ticket as NeMo makes them: prompt, answer, end."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer, trust_remote_code=False)
    lines = Path(options.folder, "training.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    prompts = tokenizer([record["input"] for record in records])["input_ids"]
    answers = tokenizer([f" {record['output']}" for record in records])["input_ids"]
    end = [tokenizer.eos_token_id]
    return [prompt + answer + end for prompt, answer in zip(prompts, answers, strict=True)]


class Meter:
    """Counts what steps read, and prints the figures so far after each."""

    def __init__(self):
        """Begin before anything is loaded."""
        self.tickets = self.tokens = 0
        self.marks, self.versions = [], []
        for name in PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                self.versions.append(f"{name} {importlib.metadata.version(name)}")

    def read(self, tickets: int, tokens: int) -> None:
        """Count a micro-batch."""
        self.tickets, self.tokens = self.tickets + tickets, self.tokens + tokens

    def mark(self) -> None:
        """Call once before the first step and after each; waits for the GPU."""
        import torch

        has_gpu = torch.cuda.is_available()
        if has_gpu:
            torch.cuda.synchronize()
        self.marks.append((time.time(), self.tickets, self.tokens))
        steps = len(self.marks) - 1
        if steps == 0:
            return
        first, middle, last = self.marks[0][0], self.marks[steps // 2], self.marks[-1]
        figures = {
            "steps": steps,
            "seconds": last[0] - middle[0],
            "tickets": last[1] - middle[1],
            "tokens": last[2] - middle[2],
            "start": first - STARTED,
            "first": self.marks[1][0] - first,
            "peak": torch.cuda.max_memory_allocated() / 2**30 if has_gpu else 0.0,
            "card": torch.cuda.get_device_name() if has_gpu else "CPU",
            "versions": self.versions,
        }
        print("\n" + json.dumps(figures), flush=True)


def train_with_nemo(options: SimpleNamespace) -> None:
    """Run NeMo's recipe, with its own model and data or with ours."""
    import fiddle

    fiddle.build(make_recipe(options, Meter()))()


def make_recipe(options: SimpleNamespace, meter: Meter):
    """Give `llm.gpt_oss_20b.finetune_recipe` with random weights, on the tickets of the folder."""
    import torch
    from lightning.pytorch.callbacks import Callback
    from megatron.core.fusions.fused_bias_geglu import quick_gelu
    from nemo import lightning as nl
    from nemo.collections import llm
    from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer
    from nemo.collections.llm.gpt.data.packed_sequence import PackedSequenceSpecs
    from nemo.collections.llm.gpt.model.base import gpt_data_step
    from nemo_run import Config

    class Watch(Callback):
        def on_train_start(self, trainer, module):
            # Uninitialized memory, without a checkpoint
            for name, parameter in module.named_parameters():
                if "softmax_offset" in name or ".bias" in name:
                    parameter.data.zero_()

        def on_train_batch_start(self, *args):
            if not meter.marks:
                meter.mark()

        def on_train_batch_end(self, *args):
            meter.mark()

    def read(batches):
        batch = next(batches)
        meter.read(*count_batch(batch[0] if isinstance(batch, tuple) else batch))
        return gpt_data_step(iter([batch]))

    _, rank, targets = WAYS[options.way]
    recipe = llm.gpt_oss_20b.finetune_recipe(
        dir=str(Path(options.folder, options.way)), name=options.way, num_gpus_per_node=1
    )
    data = {"micro_batch_size": MICRO_BATCH, "global_batch_size": GLOBAL_BATCH}
    model, make_config = llm.GPTOSSModel, llm.GPTOSSConfig20B
    if options.way != "stock":
        from ticketlib import gptoss, training

        model, make_config = gptoss.GptOssModel, partial(gptoss.GptOssConfig, window_size=(127, 0))
        tickets = read_tickets(options)
        tokens = sum(map(len, tickets)) / len(tickets) - 1
        data = {
            "micro_batch_size": 1,
            "num_workers": 1,
            "global_batch_size": max(1, round(GLOBAL_BATCH * tokens / options.pack_tokens)),
            "packed_sequence_specs": PackedSequenceSpecs(options.pack_tokens),
            "dataset_kwargs": {
                "prompt_template": training.PROMPT_TEMPLATES["plain"],
                "pad_to_max_length": True,
            },
        }
    config = make_config(
        num_layers=options.layers,
        num_moe_experts=32,
        activation_func=quick_gelu,  # With another the config refuses itself
        bf16=True,
        params_dtype=torch.bfloat16,
        seq_length=SEQ_LENGTH,
        data_step_fn=read,
    )
    tokenizer = AutoTokenizer(str(options.tokenizer))
    recipe.model = model(config, tokenizer=tokenizer)
    recipe.data = Config(
        llm.FineTuningDataModule,
        dataset_root=str(options.folder),
        seq_length=SEQ_LENGTH,
        tokenizer=tokenizer,
        **{"num_workers": 0} | data,
    )
    recipe.peft.target_modules, recipe.peft.dim, recipe.peft.alpha = targets, rank, 2 * rank
    recipe.optim.lr_scheduler = None
    recipe.resume = None
    recipe.log = Config(nl.NeMoLogger, log_dir=str(Path(options.folder, options.way)), ckpt=None)
    trainer = recipe.trainer
    trainer.strategy.ckpt_async_save = False
    trainer.max_steps, trainer.val_check_interval = options.steps, None
    trainer.limit_val_batches = trainer.num_sanity_val_steps = 0
    trainer.enable_checkpointing = trainer.enable_progress_bar = trainer.logger = False
    trainer.callbacks = [Watch()]
    return recipe


def count_batch(batch: dict) -> tuple[int, int]:
    """Tickets and tokens of a micro-batch of NeMo's, packed or not, without padding.

    The end token of a ticket, which is only predicted, is not counted.
    """
    position_ids, counts = batch["position_ids"], batch["token_count"]
    counts = [int(count) - ("cu_seqlens" not in batch) for count in counts]
    starts = [int((row[:n] == 0).sum()) for row, n in zip(position_ids, counts, strict=True)]
    return sum(starts), sum(counts)


def train_with_peft(options: SimpleNamespace) -> None:
    """Run the plain loop: eager attention, micro-batches padded to their longest ticket."""
    import peft
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = GptOssConfig(num_hidden_layers=options.layers, num_local_experts=32)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = GptOssForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model = model.to_empty(device=device)
    model.model.rotary_emb = GptOssRotaryEmbedding(config).to(device)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1)
        elif "bias" in name or "sinks" in name:
            parameter.data.zero_()
        else:
            parameter.data.normal_(0, 0.02)
    model.set_attn_implementation("eager")
    if hasattr(model, "set_experts_implementation"):  # From transformers 5 on
        model.set_experts_implementation("grouped_mm")
    _, rank, targets = WAYS["peft"]
    lora = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    model = peft.get_peft_model(model, lora).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    tickets = [torch.tensor(ids) for ids in read_tickets(options)]
    meter = Meter()
    meter.mark()
    for step in range(options.steps):
        for begin in range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH, MICRO_BATCH):
            part = tickets[begin : begin + MICRO_BATCH]
            ids, mask = (
                torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
                for rows in (part, [torch.ones_like(row) for row in part])
            )
            labels = ids.clone()
            for row, length in zip(labels, map(len, part), strict=True):
                row[: length - 4], row[length:] = -100, -100  # An answer is 2 to 4 tokens
            inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
            loss = model(**inputs, use_cache=False).loss
            (loss * MICRO_BATCH / GLOBAL_BATCH).backward()
            meter.read(len(part), sum(map(len, part)) - len(part))
        optimizer.step()
        optimizer.zero_grad()
        meter.mark()


if __name__ == "__main__":
    main()
