"""What runs where: a profile names the base model and the settings that fit it and its hardware."""

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

from ticketlib.paths import project_root


@dataclass(frozen=True)
class Profile:
    """The defaults of a base model; the notebooks' parameters override them one by one.

    Lengths are in tokens, batch sizes in tickets, `parity_tolerance` is in logits. In float64
    rounding stays far below 1e-5; in float32 it reaches 1e-4 for logits of 30. In bfloat16 single
    logits of the tiny model move by 4 to 11 between libraries, when a router's choice flips;
    there the share of equal next tokens counts.
    """

    name: str
    base: str  # Folder under the project, or repository on the Hugging Face hub
    hardware: str
    dtype: str  # Of parameters in memory, in the merged and in the exported checkpoint
    parity_dtype: str  # Of the arithmetic in which logits are compared
    parity_tolerance: float
    seq_length: int
    micro_batch_size: int
    global_batch_size: int
    max_steps: int
    warmup_steps: int
    learning_rate: float
    adam_eps: float
    lora_rank: int
    max_batch_tokens: int  # Of one pass of the scorer, padding included
    lora_targets: tuple[str, ...] = ("linear_qkv", "linear_proj")
    devices: int = 1
    expert_parallel: int = 1
    pack_tokens: int = 0  # Of a row of several tickets in training; 0 is a row a ticket
    parity_layers: int = 0  # Compared in the proofs, the first ones; 0 is all


_TINY = Profile(
    name="tiny",
    base="data/tiny-gpt-oss",
    hardware="any computer with 4 GB of memory, no GPU",
    dtype="float32",
    parity_dtype="float64",
    parity_tolerance=1e-5,
    seq_length=512,
    micro_batch_size=16,
    global_batch_size=16,
    max_steps=150,
    warmup_steps=10,
    learning_rate=3e-3,
    adam_eps=1e-8,  # Gradients are small: the recipe's 1e-5 slows learning down
    lora_rank=16,
    max_batch_tokens=1024,
)
_20B = Profile(
    name="gpt-oss-20b",
    base="openai/gpt-oss-20b",
    hardware="one GPU with 80 GB, 128 GB of memory, 200 GB of disk",
    dtype="bfloat16",
    parity_dtype="bfloat16",
    parity_tolerance=16.0,
    seq_length=2048,
    micro_batch_size=4,
    global_batch_size=64,
    max_steps=1000,
    warmup_steps=50,
    learning_rate=1e-4,
    adam_eps=1e-5,
    lora_rank=8,
    max_batch_tokens=32768,
    pack_tokens=8192,
)
_120B = replace(
    _20B,
    name="gpt-oss-120b",
    base="openai/gpt-oss-120b",
    hardware="eight GPUs with 80 GB, 600 GB of memory, 1 TB of disk",
    micro_batch_size=2,
    devices=8,
    expert_parallel=8,
    parity_layers=4,  # The whole model fits no single GPU
)
PROFILES = {profile.name: profile for profile in (_TINY, _20B, _120B)}


def get_profile(name: str) -> Profile:
    """Give a profile by its name.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in PROFILES:
        near = difflib.get_close_matches(name.lower(), PROFILES, n=1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise ValueError(f'Unknown profile "{name}". Accepted: {", ".join(PROFILES)}.{hint}')
    return PROFILES[name]


def name_base(folder: str | Path) -> str:
    """Give the name of a base that others know: its repository on the hub, or its folder's name.

    Args:
        folder: Of a base; one that `locate_base` downloaded is known by its last two parts.
    """
    hub = [profile.base for profile in PROFILES.values() if not profile.base.startswith("data/")]
    path = f"/{Path(folder).as_posix()}"
    return next((name for name in hub if path.endswith(f"/{name}")), Path(folder).name)


def locate_base(profile: Profile, models_cache: Path, base_model: str = "") -> Path:
    """Give the folder of the base model, downloading it once where the profile names a repository.

    Only safetensors, configs and tokenizer are fetched, not the `original/` and `metal/` copies
    (27 of 41 GB). A download that breaks off goes on at the next call. The access token is read
    from the environment variable `HF_TOKEN` by huggingface_hub.

    Args:
        profile: Names the base.
        models_cache: Where downloads go, a folder per repository.
        base_model: A folder that you have already; it is used in place of the profile's base.

    Returns:
        A folder with `config.json`, `*.safetensors` and tokenizer files.

    Raises:
        FileNotFoundError: There is no checkpoint in the folder.
    """
    if base_model:
        folder = Path(base_model).expanduser()
    elif profile.base.startswith("data/"):
        folder = project_root() / profile.base
    else:
        from huggingface_hub import snapshot_download

        folder = Path(models_cache) / profile.base
        snapshot_download(
            profile.base,
            local_dir=folder,
            allow_patterns=["*.json", "*.safetensors", "*.jinja"],
            ignore_patterns=["original/*", "metal/*"],
        )
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{folder}/config.json not found. Set base_model to a folder with a gpt-oss "
            "checkpoint in Hugging Face format, or run from within the project's folder."
        )
    return folder
