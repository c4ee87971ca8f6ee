"""Run the whole NeMo pipeline once for each CPU patch, without that patch; called by test_cpu.py.

usage: ablate_cpu_patches.py FOLDER        writes FOLDER/outcomes.json: patch -> what happened

NeMo is imported once; each run is a fork of that process, so that it starts unpatched.
"""

import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

WORKS = "works"


def run_pipeline(folder: Path, base: Path) -> None:
    # Megatron-Core's checkpoint writer spawns a process that imports this file: keep that cheap.
    import torch
    from megatron.core.inference.common_inference_params import CommonInferenceParams
    from nemo.collections import llm
    from random_gptoss import QUEUES, TEXTS, import_base

    from ticketlib import export, inference, parity, training
    from ticketlib.jsonl import write_jsonl
    from ticketlib.paths import Run
    from ticketlib.profiles import get_profile

    run = Run("run", str(folder))
    records = [
        {"input": f"{TEXTS[i % 3]} {i}", "output": f" {QUEUES[i % 3]}", "ticket_id": i}
        for i in range(32)
    ]
    for path in (run.training_jsonl, run.validation_jsonl, run.test_jsonl):
        write_jsonl(path, records)
    imported = run.models / "base"
    import_base(base, imported)
    result = parity.check_parity(base, imported, TEXTS, dtype="float32", tolerance=1e-5)
    parity.save_parity(imported, result)
    profile = replace(get_profile("tiny"), max_steps=2, micro_batch_size=4, global_batch_size=8)
    recipe = training.make_recipe(run, profile, imported, prompt_format="plain")
    checkpoint = training.run_recipe(run, recipe)
    llm.generate(
        path=checkpoint,
        trainer=inference.make_trainer(torch.float32),
        prompts=TEXTS[:1],
        inference_params=CommonInferenceParams(top_k=1, num_tokens_to_generate=3),
        params_dtype=torch.float32,
        enable_flash_decode=False,
    )
    export.export_checkpoint(run, checkpoint)


def outcome_without(skipped: str, folder: Path, base: Path) -> str:
    import torch

    from ticketlib import cpu

    for name, patch in cpu.PATCHES.items():
        if name != skipped:
            patch.apply()
    cpu._applied.append("all but one")
    frames_before = torch._dynamo.utils.counters["frames"]["total"]
    try:
        run_pipeline(folder, base)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    compiled = torch._dynamo.utils.counters["frames"]["total"] - frames_before
    return f"compiled {compiled} functions" if compiled else WORKS


def fork(name: str, folder: Path, base: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    own = folder / name.replace(" ", "-")
    own.mkdir()
    log = os.open(own / "log.txt", os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    (own / "outcome.txt").write_text(outcome_without(name, own, base))
    os._exit(0)


def untouched_with_cuda() -> bool:
    """Whether patch_for_cpu leaves everything alone where CUDA is available."""
    import torch

    from ticketlib import cpu

    real, before = torch.cuda.is_available, torch.cuda.current_device
    torch.cuda.is_available = lambda: True
    try:
        return cpu.patch_for_cpu() == [] and torch.cuda.current_device is before
    finally:
        torch.cuda.is_available = real


def main(folder: Path) -> None:
    import torch
    from random_gptoss import save

    from ticketlib import cpu, export, training  # noqa: F401 - once, for all forks

    torch.set_num_threads(1)
    outcomes = {"with CUDA": "untouched" if untouched_with_cuda() else "patched"}
    base = save(folder / "base")
    names = ["no patch left out", *cpu.PATCHES]
    for pair in (names[i : i + 2] for i in range(0, len(names), 2)):
        for pid in [fork(name, folder, base) for name in pair]:
            os.waitpid(pid, 0)
            with suppress(ProcessLookupError):  # What the fork spawned
                os.killpg(pid, signal.SIGKILL)
        for name in pair:
            file = folder / name.replace(" ", "-") / "outcome.txt"
            outcomes[name] = file.read_text() if file.exists() else "the process died"
    (folder / "outcomes.json").write_text(json.dumps(outcomes, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
