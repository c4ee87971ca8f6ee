"""A few steps of NeMo's training on the random gpt-oss, for tests of what comes after."""

from dataclasses import replace
from pathlib import Path

import torch
from random_gptoss import QUEUES, TEXTS, import_base

from ticketlib import parity, training
from ticketlib.jsonl import write_jsonl
from ticketlib.paths import Run
from ticketlib.profiles import Profile, get_profile

SIZES = {"max_steps": 8, "micro_batch_size": 8, "global_batch_size": 8, "seq_length": 96}
PROFILE = replace(get_profile("tiny"), **SIZES)
EXPERTS = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]


def import_proved(base: Path, imported: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Import a folder as notebook 03 does, with a stand-in for the parity result."""
    import_base(base, imported, dtype)
    parity.save_parity(imported, {"max_difference": 0.0})
    return imported


def prepare(experiments: Path, name: str) -> Run:
    """A run with 48 records in each split."""
    run = Run(name, str(experiments))
    records = [
        {"input": f"{TEXTS[2]} {i}: {QUEUES[i % 3]}?", "output": f" {QUEUES[i % 3]}"}
        for i in range(48)
    ]
    for path in (run.training_jsonl, run.validation_jsonl, run.test_jsonl):
        write_jsonl(path, records)
    return run


def train(
    experiments: Path, name: str, *, imported: str = "base", profile: Profile = PROFILE, **settings
) -> Run:
    """Train 8 steps on `models/<imported>`."""
    run = prepare(experiments, name)
    base = experiments / "models" / imported
    recipe = training.make_recipe(run, profile, base, prompt_format="plain", **settings)
    training.run_recipe(run, recipe)
    return run
