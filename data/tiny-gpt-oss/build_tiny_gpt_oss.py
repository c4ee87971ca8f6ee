"""Make the tiny gpt-oss base model of this folder: tokenizer, pre-training, files.

    python data/tiny-gpt-oss/build_tiny_gpt_oss.py --device cuda --minutes 7 --output FOLDER

The model has the true gpt-oss architecture in small. It learns to continue support tickets and to
name a ticket's topic, type, language and tags when a harmony conversation asks for it. It never
sees which queue a ticket belongs to, nor a ticket of the shipped tickets.csv.
"""

import argparse
import csv
import json
import math
import os
import random
import re
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import make_tickets  # noqa: E402

VOCABULARY = 2560
SEED, HELD_OUT_SEED = 1_000_000, 7_000_000  # chunk i of the training tickets has seed SEED + i
CHUNK, TASKS_PER_TICKET, HELD_OUT = 2_000, 3, 2_000
PEAK_LR, WARMUP, WEIGHT_DECAY, BALANCE = 3e-3, 0.03, 0.05, 0.01
TEXT_WEIGHT, MARKER_WEIGHT = 0.1, 0.2  # loss weights of a ticket's tokens and of <|channel|>final…
SPECIAL = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>"]
SPECIAL += ["<|start|>", "<|end|>", "<|message|>", "<|call|>"]
PAD, EOS, CALL = 1, 2, 8
# One token each, which saves a CPU a third of every prompt. Not special: decoded as any text.
BOILERPLATE = [
    "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
    "Current date: ",
    "\n\nReasoning: ",
    "\n\n# Valid channels: analysis, commentary, final. "
    "Channel must be included for every message.",
    "\n- ",
]
SPLIT_PATTERN = (  # gpt-oss's own pre-tokenizer
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": True,
    "attention_dropout": 0.0,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "experts_per_token": 2,
    "router_aux_loss_coef": BALANCE,
    "output_router_logits": False,
    "hidden_act": "silu",
    "swiglu_limit": 7.0,
    "rms_norm_eps": 1e-5,
    "initial_context_length": 4096,
    "max_position_embeddings": 131072,
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
    "use_cache": True,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "torch_dtype": "bfloat16",
}
SYSTEM = f"{BOILERPLATE[0]}2025-08-05{BOILERPLATE[1]}low{BOILERPLATE[2]}"
ASKED = {  # developer messages: what is asked for, in several wordings
    "topic": [
        "Name the topic of the customer's ticket. Answer with the topic's name only.",
        "Read the customer's ticket and say what it is about. Answer with the topic only.",
        "What is the ticket about? Give the name of the topic that should be noted for it.",
    ],
    "type": [
        "Name the type of the ticket: Incident, Problem, Request or Change. Answer with it only.",
        "Which type should the customer's ticket have? Answer with the type's name only.",
    ],
    "language": [
        "Name the language of the customer's ticket. Answer with the language's name only.",
        "In which language does the customer write? Answer with its name only.",
    ],
    "tags": [
        "Name two tags for the customer's ticket. Answer with the tags only.",
        "Which tags should the ticket have? Answer with two names only.",
    ],
    "copy": [
        "Answer with item {n} of the list only.\n\n{title}:\n{list}",
        "The customer names a number. Answer with that entry's name only.\n\n{title}:\n{list}",
    ],
}
TITLES = ["Topics", "Items", "Names", "Entries", "Teams", "Labels", "Choices"]
TELLTALE = set(re.findall("[a-z]+", " ".join([*make_tickets.QUEUE_COUNTS, "outage hr"]).lower()))


def write_tokenizer(folder: Path) -> None:
    """Train the byte-level BPE tokenizer on made-up tickets and write its three files."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rows = make_tickets.draw_tickets(24_000, seed=SEED - 1)
    texts = [render_ticket(row) for row in rows] + [row["topic"] for row in rows[:8000]]
    fixed = "system developer user assistant final analysis commentary low medium high".split()
    fixed += ["2025-08-05", "# Instructions\n\n", ".\n\nQueues:", ".\n\nTopics:", "\n\nDepartment:"]
    fixed += ["Please route it to the correct queue that should handle it, the queue's department."]
    fixed += [w for wordings in ASKED.values() for w in wordings] + list(make_tickets.QUEUE_COUNTS)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts + fixed * 400,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - len(BOILERPLATE),
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in BOILERPLATE])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    tokens = {tokenizer.token_to_id(text): text for text in SPECIAL + BOILERPLATE}
    names = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[EOS], "pad_token": SPECIAL[PAD]}
    write_json(folder / "special_tokens_map.json", names)
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(i): dict.fromkeys(["lstrip", "normalized", "rstrip", "single_word"], False)
                | {"content": text, "special": i < len(SPECIAL)}
                for i, text in tokens.items()
            },
            **names,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": CONFIG["max_position_embeddings"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def render_ticket(row: dict) -> str:
    """Give the user message of a ticket, as ticketlib renders it."""
    subject = f"Subject: {row['subject']}\n\n" if row["subject"] else ""
    return f"{subject}Body: {row['body']}"


def render_conversation(instructions: str, user: str, answer: str) -> list[tuple[str, float]]:
    """Give a harmony conversation as pieces of text with the loss weight of their tokens."""
    head = f"<|start|>system<|message|>{SYSTEM}<|end|><|start|>developer<|message|>"
    return [
        (f"{head}# Instructions\n\n{instructions}\n\n<|end|><|start|>user<|message|>", 0),
        (user, TEXT_WEIGHT),
        ("<|end|><|start|>assistant", 0),
        ("<|channel|>final<|message|>", MARKER_WEIGHT),
        (answer + "<|return|>", 1),
    ]


@cache
def read_tokenizer(file: str):
    """Give a function from text to token ids that remembers recent texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(file)
    return lru_cache(maxsize=2000)(lambda text: tokenizer.encode(text).ids)


def encode_pieces(file: str, pieces: list[tuple[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Give token ids and their loss weights."""
    ids = [read_tokenizer(file)(text) for text, _ in pieces]
    weights = [np.full(len(i), w, np.float16) for i, (_, w) in zip(ids, pieces, strict=True)]
    return np.array(sum(ids, []), np.uint16), np.concatenate(weights)


def join_samples(samples: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Give all ids, all weights and the samples' lengths: three arrays travel fast."""
    ids, weights = zip(*samples, strict=True)
    return np.concatenate(ids), np.concatenate(weights), np.array([len(i) for i in ids])


def draw_task(rng: random.Random, row: dict, topics: list[dict]) -> list[tuple[str, float]]:
    """Draw something to learn from a ticket: never its queue."""
    kind = rng.choices(
        ["topic", "listed", "type", "language", "tags", "copy", "text"], TASK_SHARES
    )[0]
    ticket, names = render_ticket(row), [t["name"] for t in topics]
    if kind == "text":
        if rng.random() < 0.5:
            return [(ticket + "<|endoftext|>", TEXT_WEIGHT)]
        cue = rng.choice(["Topic", "Subject matter", "About"])
        return [(f"{ticket}\n\n{cue}:", TEXT_WEIGHT), (f" {row['topic']}<|return|>", 1)]
    if kind == "copy":  # a list of anything, so that each name's tokens are known; no ticket here
        pools = [
            names,
            list(make_tickets.QUEUE_COUNTS),
            sorted({g for t in topics for g in t["tags"]}),
        ]
        items = rng.sample(rng.choice(pools), rng.randint(3, 10))
        n = rng.randrange(len(items))
        wording = rng.choice(ASKED["copy"]).format(
            n=n + 1, title=rng.choice(TITLES), list="\n".join(f"- {item}" for item in items)
        )
        return render_conversation(wording, f"Item {n + 1}", items[n])
    wording = rng.choice(ASKED["topic" if kind == "listed" else kind])
    if kind == "listed":
        options = [
            row["topic"],
            *rng.sample([n for n in names if n != row["topic"]], rng.randint(5, 11)),
        ]
        rng.shuffle(options)
        wording += f"\n\n{rng.choice(TITLES)}:\n" + "\n".join(f"- {option}" for option in options)
    tags = [row[f"tag_{i}"] for i in range(1, 9)]
    # Tags that give the queue away are not asked for.
    tags = [t for t in tags if t and not TELLTALE & set(re.findall("[a-z]+", t.lower()))]
    if kind == "tags" and len(tags) < 2:
        kind = "topic"
    answer = {
        "type": row["type"],
        "language": "German" if row["language"] == "de" else "English",
        "tags": ", ".join(tags[:2]),
    }.get(kind, row["topic"])
    return render_conversation(wording, ticket, answer)


TASK_SHARES = [0.40, 0.22, 0.05, 0.03, 0.10, 0.10, 0.10]


@cache
def read_shipped_bodies() -> frozenset[str]:
    """Give the texts that the model must not see."""
    with (HERE.parent / "tickets.csv").open(encoding="utf-8", newline="") as file:
        return frozenset(row["body"] for row in csv.DictReader(file))


def encode_chunk(job: tuple[int, str, int]) -> tuple[np.ndarray, ...]:
    """Draw the tickets of one seed and give token ids, loss weights and lengths of their tasks."""
    seed, file, tickets = job
    rng, topics, samples = random.Random(seed), make_tickets.read_banks()[1], []
    for row in make_tickets.draw_tickets(tickets, seed=seed):
        if row["body"] not in read_shipped_bodies():
            tasks = [draw_task(rng, row, topics) for _ in range(TASKS_PER_TICKET)]
            samples += [encode_pieces(file, pieces) for pieces in tasks]
    return join_samples(samples)


def draw_batches(samples: tuple[np.ndarray, ...], batch: int, rng: random.Random):
    """Yield endless batches of similar lengths: (ids, weights), right-padded [batch, tokens]."""
    all_ids, all_weights, lengths = samples
    starts = np.concatenate([[0], np.cumsum(lengths)])
    while True:
        order = list(range(len(lengths)))
        rng.shuffle(order)
        for start in range(0, len(order) - batch + 1, batch * 16):
            part = sorted(order[start : start + batch * 16], key=lambda i: lengths[i])
            groups = [part[i : i + batch] for i in range(0, len(part) - batch + 1, batch)]
            rng.shuffle(groups)
            for group in groups:
                width = -(-int(lengths[group].max()) // 16) * 16
                ids = np.full((batch, width), PAD, np.int64)
                weights = np.zeros((batch, width), np.float32)
                for line, i in enumerate(group):
                    span = slice(starts[i], starts[i + 1])
                    ids[line, : lengths[i]], weights[line, : lengths[i]] = (
                        all_ids[span],
                        all_weights[span],
                    )
                yield ids, weights


def build_model(device: str):
    """Give the model with random weights, sinks and biases included."""
    import torch
    import transformers
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(SEED)
    settings = {
        k: v for k, v in CONFIG.items() if k not in ("architectures", "model_type", "torch_dtype")
    }
    if int(transformers.__version__.split(".")[0]) >= 5:
        rope = settings.pop("rope_scaling") | {"rope_theta": settings.pop("rope_theta")}
        settings["rope_parameters"] = rope
    config = GptOssConfig(**settings)
    config._attn_implementation = "eager"
    model = GptOssForCausalLM(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("sinks"):
                weight.normal_(0, 1)
            elif name.endswith("bias"):
                weight.normal_(0, 0.02)
    return model.to(device)


def compute_all_experts(self, hidden_states, router_indices=None, routing_weights=None):
    """Stand in for the experts' loop on a GPU: three large products instead of many small ones."""
    import torch

    shape, experts = hidden_states.shape, self.gate_up_proj.shape[0]
    x = hidden_states.reshape(1, -1, shape[-1]).expand(experts, -1, -1)
    weights = routing_weights.reshape(x.shape[1], -1)
    if weights.shape[1] != experts:
        weights = (
            torch.zeros_like(weights[:, :1])
            .expand(-1, experts)
            .scatter(1, router_indices.reshape(x.shape[1], -1), weights)
        )
    gate_up = torch.bmm(x, self.gate_up_proj) + self.gate_up_proj_bias[:, None]
    gate = gate_up[..., ::2].clamp(max=self.limit)
    up = gate_up[..., 1::2].clamp(-self.limit, self.limit)
    hidden = (up + 1) * gate * torch.sigmoid(gate * self.alpha)
    out = torch.bmm(hidden, self.down_proj) + self.down_proj_bias[:, None]
    return (out * weights.t()[..., None]).sum(0).reshape(shape).to(hidden_states.dtype)


def train(model, batches, *, steps: int, minutes: float, device: str) -> list[dict]:
    """Train until `steps` or `minutes` are over, whichever comes first; give the loss history."""
    import torch
    from torch.nn import functional

    balance = []

    def keep_balance(router, inputs, _):
        x = inputs[0].reshape(-1, router.weight.shape[1])
        p = functional.linear(x.float(), router.weight, router.bias).softmax(-1)
        chosen = torch.zeros_like(p).scatter(
            1, p.topk(CONFIG["num_experts_per_tok"], -1).indices, 1.0
        )
        balance.append(p.shape[1] * (chosen.mean(0) * p.mean(0)).sum())

    hooks = [layer.mlp.router.register_forward_hook(keep_balance) for layer in model.model.layers]
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98))
    history, start = [], time.monotonic()
    for step, (ids, weights) in enumerate(batches):
        done = max(step / steps, (time.monotonic() - start) / 60 / minutes)
        if done >= 1:
            break
        rate = PEAK_LR * min(done / WARMUP, 0.5 + 0.5 * math.cos(math.pi * done)) + 1e-5
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, weights = torch.from_numpy(ids).to(device), torch.from_numpy(weights).to(device)
        balance.clear()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            hidden = model.model(
                input_ids=ids, attention_mask=(ids != PAD).long(), use_cache=False
            )[0]
            wanted = weights[:, 1:] > 0
            logits = model.lm_head(hidden[:, :-1][wanted])
        w = weights[:, 1:][wanted]
        losses = functional.cross_entropy(logits.float(), ids[:, 1:][wanted], reduction="none")
        loss = (losses * w).sum() / w.sum() + BALANCE * sum(balance) / len(balance)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step < 3:
            answer, text = (
                losses[w == 1].mean().item(),
                losses[w < MARKER_WEIGHT * 0.9].mean().item(),
            )
            seconds = round(time.monotonic() - start, 1)
            history.append({"step": step, "answer": answer, "text": text, "seconds": seconds})
            print(
                json.dumps(
                    history[-1] | {"lr": rate, "balance": sum(balance).item() / len(balance)}
                ),
                flush=True,
            )
    for hook in hooks:
        hook.remove()
    return history


def measure_topics(model, tokenizer_file: str, *, device: str) -> float:
    """Share of held-out tickets whose topic name, token for token, is the model's first choice."""
    import torch

    rows = make_tickets.draw_tickets(HELD_OUT, seed=HELD_OUT_SEED)
    pieces = [render_conversation(ASKED["topic"][0], render_ticket(r), r["topic"]) for r in rows]
    samples = join_samples([encode_pieces(tokenizer_file, p) for p in pieces])
    batches = draw_batches(samples, 50, random.Random(0))
    right, model = 0, model.eval()
    for _, (ids, weights) in zip(range(HELD_OUT // 50), batches, strict=False):
        ids = torch.from_numpy(ids).to(device)
        wanted = torch.from_numpy(weights[:, 1:] == 1).to(device)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits
        right += int(((logits[:, :-1].argmax(-1) == ids[:, 1:]) | ~wanted).all(1).sum())
    return right / HELD_OUT


def write_json(path: Path, content) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Build everything into one folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="upper limit of the training loop"
    )
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--tickets", type=int, default=600_000)
    args = parser.parse_args()
    import torch
    from safetensors.torch import save_file

    started = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    write_tokenizer(args.output)
    tokenizer_file = str(args.output / "tokenizer.json")
    print(f"tokenizer {time.monotonic() - started:.0f} s", flush=True)
    jobs = [(SEED + i, tokenizer_file, CHUNK) for i in range(args.tickets // CHUNK)]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with ProcessPoolExecutor() as pool:
        samples = tuple(map(np.concatenate, zip(*pool.map(encode_chunk, jobs), strict=True)))
    seconds = time.monotonic() - started
    print(f"{len(samples[2])} samples, {len(samples[0])} tokens, {seconds:.0f} s", flush=True)
    model = build_model(args.device)
    if args.device == "cuda":
        type(model.model.layers[0].mlp.experts).forward = compute_all_experts
        torch.backends.cuda.matmul.allow_tf32 = True
    batches = draw_batches(samples, args.batch, random.Random(SEED))
    history = train(model, batches, steps=args.steps, minutes=args.minutes, device=args.device)
    model.to(torch.bfloat16)
    accuracy = measure_topics(model, tokenizer_file, device=args.device)
    weights = {
        name: weight.detach().cpu().contiguous()
        for name, weight in sorted(model.state_dict().items())
    }
    save_file(weights, args.output / "model.safetensors", metadata={"format": "pt"})
    write_json(args.output / "config.json", CONFIG)
    ids = {"bos_token_id": 0, "do_sample": False, "eos_token_id": [EOS, CALL], "pad_token_id": PAD}
    write_json(args.output / "generation_config.json", ids)
    if args.output.resolve() != HERE:
        shutil.copy(HERE / "chat_template.jinja", args.output)
    log = {
        "device": args.device,
        "batch": args.batch,
        "tickets": args.tickets,
        "seconds": round(time.monotonic() - started),
    }
    log |= {
        "parameters": sum(w.numel() for w in weights.values()),
        "held_out_topic_accuracy": accuracy,
    }
    write_json(
        args.output / "training_log.json", log | {"history": history[:: max(1, len(history) // 30)]}
    )
    print(json.dumps(log), flush=True)


if __name__ == "__main__":
    main()
