"""What a training needs and how long it takes: known, and checked, before anything is begun.

Memory is a straight line, weights + a fixed part + a part for each token of a row, through two
peaks measured with gpt-oss-20b. Time is tokens by measured tokens a second. Nothing here imports
NeMo.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil
import torch

from ticketlib import checkpoint
from ticketlib.packs import BLOCK
from ticketlib.paths import Run
from ticketlib.profiles import Profile

# Peak GiB by tokens of a packed row: before the first one, and forward and backward; LoRA of rank 8
# on attention, one H100 80GB. gpt-oss-20b: 24 layers, hidden size 2,880, 4 experts a token,
# bfloat16. A row of 16,384 ran out of memory.
PEAKS = {0: 39.0, 8192: 59.6}
_WEIGHTS, _WIDTH = 41_829_514_368, 24 * 2880 * 4
_FEW, _MANY = PEAKS
_SLOPE = (PEAKS[_MANY] - PEAKS[_FEW]) * 2**30 / (_MANY - _FEW)  # Bytes a token
TOKEN_BYTES = _SLOPE / _WIDTH  # A token, layer, hidden channel and expert: 9.7
FIXED_BYTES = PEAKS[_FEW] * 2**30 - _FEW * _SLOPE - _WEIGHTS  # 0.05 GB
# Megatron-Core without data parallelism, for each bfloat16 weight: itself, its gradient in float32,
# and the optimizer's copy and two moments in float32 (2 + 4 + 12 bytes)
ALL_TRAINED = 18 / 2
CARD_SHARE = 0.9  # Of a card's memory: CUDA takes 0.6 GiB, and the line is no more than a line
FRAGMENTS = 1.03  # Of what is free, PyTorch's allocator cannot use every byte
LONGEST_ROW = 16384  # Longer ones were not tried
# Disk, as shares of the weights. Training: the latest checkpoint, the best and one being written,
# small where there is only an adapter, else with the optimizer's float32 (2 + 12 bytes for 2).
# Export: all weights, again with the experts in MXFP4 (0.33 for gpt-oss-20b), the adapter.
DISK = {"import": 1, "train": 0.02, "export": 4 / 3}
DISK_ALL_TRAINED = 3 * 7
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # Linux, cgroup v2


class Speed(NamedTuple):
    """What was measured."""

    tokens_per_second: float  # Without padding, in training
    start_seconds: float  # Until the first step has ended: building, loading, compiling
    machine: str


SPEEDS = {
    "tiny": Speed(5_000, 5, "two CPU cores"),
    "gpt-oss-20b": Speed(21_876, 65, "one H100"),  # Rows of 8,192 tokens
}
UNKNOWN = Speed(math.nan, math.nan, "a machine that was not measured")


def fit_pack(
    profile: Profile,
    base: Path,
    card_bytes: float = 0,
    *,
    seq_length: int = 0,
    peft_scheme: str = "lora",
) -> int:
    """Give the tokens of the longest packed row that a card can train on, for `make_recipe`.

    It depends on the kind of card, not on what is free now, so that a training that was
    interrupted goes on with the same rows.

    Args:
        profile: One that packs; for others this gives 0.
        base: Folder of the base model.
        card_bytes: The card's memory; 0 for that of this machine's GPU.
        seq_length: No row may be shorter; 0 for the profile's.
        peft_scheme: "lora", or "none" to train all parameters.

    Returns:
        A multiple of `packs.BLOCK`, at most 16,384; 0 where nothing is packed or there is no GPU.

    Raises:
        ValueError: Not even a row of `seq_length` fits, with what would.
    """
    gpus = list_gpus()[: profile.devices]
    card_bytes = card_bytes or min((total for _, total in gpus), default=0)
    if not (profile.pack_tokens and card_bytes):
        return 0
    shortest = math.ceil((seq_length or profile.seq_length) / BLOCK) * BLOCK
    weights, fixed, a_token = _line(profile, base, peft_scheme)
    fitting = (CARD_SHARE * card_bytes - fixed) / a_token
    tokens = min(LONGEST_ROW, math.floor(fitting / BLOCK) * BLOCK)
    if tokens < shortest:
        peak = fixed + shortest * a_token
        raise ValueError(
            f"{profile.name} does not fit a GPU with {card_bytes / 1e9:.0f} GB: in "
            f"{profile.dtype} its weights alone take {weights / 1e9:.0f} GB, training in rows of "
            f"{shortest:,} tokens {peak / 1e9:.0f} GB. Take a GPU with at least "
            f'{math.ceil(peak / CARD_SHARE / 1e9)} GB, or profile = "tiny".'
        )
    return tokens


def _line(profile: Profile, base: Path, peft_scheme: str) -> tuple[float, float, float]:
    """Bytes of a GPU: its weights; all that no length changes; what a token adds to that."""
    config = checkpoint.load_config(base)
    model = checkpoint.describe_model(config, getattr(torch, profile.dtype))
    experts = {name: tensor for name, tensor in model.items() if ".experts." in name}
    elsewhere = checkpoint.count_bytes(experts) * (1 - 1 / profile.expert_parallel)
    weights = checkpoint.count_bytes(model) - elsewhere
    width = config.num_hidden_layers * config.hidden_size * config.num_experts_per_tok
    fixed = weights * (ALL_TRAINED if peft_scheme == "none" else 1) + FIXED_BYTES
    return weights, fixed, TOKEN_BYTES * width


def list_gpus() -> list[tuple[int, int]]:
    """Give free and total bytes of each GPU; what this process holds unused counts as free."""
    gpus = []
    for device in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        gpus.append((free + unused, total))
    return gpus


def free_memory() -> int:
    """Give the bytes of memory that can be taken; a container's limit is respected."""
    text = CONTAINER_LIMIT.read_text("ascii").strip() if CONTAINER_LIMIT.exists() else "max"
    return min(psutil.virtual_memory().available, math.inf if text == "max" else int(text))


def check_machine(
    profile: Profile,
    base: Path,
    run: Run,
    *,
    steps: Sequence[str] = ("import", "train", "export"),
    pack_tokens: int = 0,
    seq_length: int = 0,
    peft_scheme: str = "lora",
) -> pd.DataFrame:
    """Give what the steps need of this machine and what is there; raise where it is not enough.

    Without a GPU, only disk and memory are looked at.

    Args:
        profile: What is to be trained.
        base: Folder of the base model.
        run: Where it is to be written.
        steps: Those to come.
        pack_tokens: As for `make_recipe`; 0 for `fit_pack`'s.
        seq_length: Longest ticket in tokens; 0 for the profile's.
        peft_scheme: "lora", or "none" to train all parameters.

    Returns:
        A row for each resource with `needed` and `available`, in GB.

    Raises:
        ValueError: All that is missing, in one message; or a step is unknown.
    """
    if unknown := set(steps) - set(DISK):
        raise ValueError(f"Unknown steps {sorted(unknown)}. Accepted: {', '.join(DISK)}.")
    model = checkpoint.describe_model(checkpoint.load_config(base), getattr(torch, profile.dtype))
    weights = checkpoint.count_bytes(model)
    largest = max(tensor.numel() for tensor in model.values()) * 4  # In float32
    folder = run.experiments.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    shares = DISK | ({"train": DISK_ALL_TRAINED} if peft_scheme == "none" else {})
    disk = weights * sum(shares[step] for step in steps)
    rows = {
        f"disk of {folder}": (disk, shutil.disk_usage(existing).free),
        # Import and proofs hold the model and one weight; what training holds is less
        "memory": (weights + largest, free_memory()),
    }
    faults, gpus = [], list_gpus() if "train" in steps else []
    if 0 < len(gpus) < profile.devices:
        faults.append(f"{profile.devices} GPUs are needed and {len(gpus)} are there")
    if gpus:
        try:
            sizes = {"seq_length": seq_length, "peft_scheme": peft_scheme}
            tokens = pack_tokens or fit_pack(profile, base, **sizes)
            if tokens < 1:  # A row a ticket, at worst all of them the longest
                tokens = profile.micro_batch_size * (seq_length or profile.seq_length)
            _, fixed, a_token = _line(profile, base, peft_scheme)
            needed = (fixed + tokens * a_token) * FRAGMENTS
            rows["GPU memory"] = (needed, min(free for free, _ in gpus[: profile.devices]))
        except ValueError as error:
            faults.append(str(error).rstrip("."))
    faults += [
        f"{name}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
        for name, (needed, free) in rows.items()
        if free < needed
    ]
    if faults:
        raise ValueError(
            f'Not enough for profile = "{profile.name}" ({", ".join(steps)}). {". ".join(faults)}. '
            "Shut down other notebooks and programs, remove old runs or set experiments_dir to a "
            "larger disk, or take a larger machine."
        )
    return (pd.DataFrame(rows, index=["needed", "available"]).T / 1e9).round(1)


def estimate_time(
    profile: Profile,
    tickets: int,
    tokens_per_ticket: float,
    *,
    tokens_per_step: float,
    steps: int = 0,
    validation_tickets: int = 0,
    validations: int = 3,
    speed: Speed | None = None,
) -> dict[str, float]:
    """Estimate the steps of one pass over the training tickets, and the time of a training.

    Args:
        profile: What is trained.
        tickets: In training.
        tokens_per_ticket: Mean, prompt and answer.
        tokens_per_step: Of an optimizer step, without padding.
        steps: Optimizer steps; 0 for the profile's, -1 for one pass.
        validation_tickets: Each is passed once in each validation, forward only.
        validations: How many there will be.
        speed: Of your machine; default is `SPEEDS`.

    Returns:
        `steps_per_pass` and `steps`; seconds of `start`, `training`, `validation`, and `total`.
        Seconds are NaN where nothing was measured with the profile.
    """
    speed = speed or SPEEDS.get(profile.name, UNKNOWN)
    a_pass = math.ceil(tickets * tokens_per_ticket / tokens_per_step)
    steps = a_pass if steps == -1 else steps or profile.max_steps
    # With LoRA, backward costs as much as forward: the base's weights have no gradients
    passed = validations * validation_tickets * tokens_per_ticket / 2
    seconds = {
        "start": speed.start_seconds,
        "training": steps * tokens_per_step / speed.tokens_per_second,
        "validation": passed / speed.tokens_per_second,
    }
    return {"steps_per_pass": a_pass, "steps": steps, **seconds, "total": sum(seconds.values())}
