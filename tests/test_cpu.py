"""Each CPU patch is needed: without it NeMo's pipeline fails, or compiles; with all it runs.

The pipeline is NeMo's own: import, parity, LoRA training, generation, merge, export.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ticketlib import cpu

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="nothing is patched where CUDA is available"
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    paths = [str(HERE.parent), str(HERE)]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "ablate_cpu_patches.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / "outcomes.json").read_text())


def test_all_patches_together_make_the_pipeline_run(outcomes):
    assert outcomes["no patch left out"] == "works"


@pytest.mark.parametrize("name", [name for name in cpu.PATCHES if name != "compile"])
def test_pipeline_fails_without(outcomes, name):
    assert outcomes[name] not in ("works", "the process died")
    assert not outcomes[name].startswith("compiled")


def test_functions_are_compiled_without_the_compile_patch(outcomes):
    assert outcomes["compile"].startswith("compiled")


def test_nothing_is_patched_where_cuda_is_available(outcomes):
    assert outcomes["with CUDA"] == "untouched"
