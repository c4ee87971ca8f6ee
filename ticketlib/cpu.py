"""What NeMo and Megatron-Core need patched to run where there is no CUDA.

Megatron-Core 0.15 calls `torch.cuda` without asking whether it is there. `patch_for_cpu` puts a CPU
equivalent in place of each of those calls. It does nothing where CUDA is available. Each entry of
`PATCHES` says which call it stands for, and `tests/test_cpu.py` fails when one is no longer needed.
"""

import contextlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Patch:
    """One stand-in: what calls CUDA, and the function that puts the CPU equivalent in its place."""

    stands_for: str
    apply: Callable[[], Any]


class _CudaLiteralsToCpu(TorchFunctionMode):
    """Send `device="cuda"`, `.cuda()`, `.to("cuda")` and `pin_memory=True` to the CPU."""

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:  # noqa: D105
        if func is torch.Tensor.cuda:
            return args[0]
        kwargs = {k: _without_cuda(v) for k, v in (kwargs or {}).items() if k != "pin_memory"}
        return func(*map(_without_cuda, args), **kwargs)


def _without_cuda(value: object) -> object:
    is_cuda = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
    return CPU if is_cuda else value


class _NoStream:
    """A CUDA stream or event that has nothing to wait for."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., float]:
        return lambda *args, **kwargs: 0.0


def _set(owner: object, **attributes: object) -> None:
    for name, value in attributes.items():
        setattr(owner, name, value)


def _patch_megatron_rng_fork():
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    CudaRNGStatesTracker.fork = lambda self, *args, **kwargs: contextlib.nullcontext()


def _patch_megatron_router():
    from megatron.core.transformer.moe import moe_utils

    moe_utils.te_general_gemm = None


def _patch_nemo_lora():
    from nemo.collections.llm.peft import lora

    lora.te = types.SimpleNamespace(Linear=type("NoTransformerEngineLinear", (), {}))


def _patch_nemo_lora_shapes():
    from nemo.collections.llm.peft import utils

    utils.HAVE_TE = False


def _patch_nemo_checkpoint_io():
    from nemo.lightning.io import pl

    pl._fix_tensors_device = lambda checkpoint: checkpoint


PATCHES = {
    "compile": Patch(
        "torch.compile of small functions: 15 s of start-up and a C compiler for no gain on a CPU",
        lambda: torch.compiler.set_stance("force_eager"),
    ),
    "device literals": Patch(
        'device="cuda", .cuda() and pin_memory=True in batches, schedules, masks and metrics',
        lambda: _CudaLiteralsToCpu().__enter__(),
    ),
    "current_device": Patch(
        "torch.cuda.current_device() as the device of new tensors",
        lambda: _set(torch.cuda, current_device=lambda: CPU),
    ),
    "synchronize": Patch(
        "torch.cuda.synchronize() around timers",
        lambda: _set(torch.cuda, synchronize=lambda *args, **kwargs: None),
    ),
    "streams": Patch(
        "torch.cuda.Stream, Event, current_stream and stream() of overlapped copies",
        lambda: _set(
            torch.cuda,
            Stream=_NoStream,
            Event=_NoStream,
            current_stream=lambda *args, **kwargs: _NoStream(),
            stream=lambda stream=None: contextlib.nullcontext(),
        ),
    ),
    "tensor types": Patch(
        "torch.cuda.LongTensor of the generation code",
        lambda: _set(torch.cuda, LongTensor=torch.LongTensor),
    ),
    "megatron rng fork": Patch("the forked CUDA random state of dropout", _patch_megatron_rng_fork),
    "megatron router": Patch(
        "moe_utils.te_general_gemm, undefined without Transformer Engine", _patch_megatron_router
    ),
    "nemo lora": Patch(
        "peft.lora.te.Linear in an isinstance check, without Transformer Engine", _patch_nemo_lora
    ),
    "nemo lora shapes": Patch(
        "peft.utils.HAVE_TE, true as soon as Megatron-Core's wrappers import",
        _patch_nemo_lora_shapes,
    ),
    "nemo checkpoint io": Patch(
        "moving every loaded tensor to torch.cuda.current_device()", _patch_nemo_checkpoint_io
    ),
}

_applied: list[str] = []


def patch_for_cpu() -> list[str]:
    """Let NeMo and Megatron-Core run on the CPU of a machine without CUDA.

    Call it before the first NeMo call of a process; calling it again changes nothing. It holds for
    the thread that calls it and for the life of the process.

    Returns:
        The names of the patches now in force; empty where CUDA is available, and nothing was
        touched.
    """
    if not torch.cuda.is_available() and not _applied:
        for name, patch in PATCHES.items():
            patch.apply()
            _applied.append(name)
    return list(_applied)
