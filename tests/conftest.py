"""What several test files share."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every time, however slow the machine.
settings.register_profile("ticketlib", deadline=None, derandomize=True)
settings.load_profile("ticketlib")

ROOT = Path(__file__).parents[1]


def import_script(path: Path):
    """A script that lies in no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with hard cases and real tickets, which cannot be part of the project."""
    folder = Path(os.environ.get("TICKETLIB_SHARED", ROOT.parent / "shared"))
    if not (folder / "cases").is_dir():
        pytest.skip(f"{folder}/cases not found; set TICKETLIB_SHARED to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def byte_tokenizer():
    from gptoss_tokenizers import make_byte_tokenizer

    return make_byte_tokenizer()


@pytest.fixture(scope="session")
def gptoss_tokenizer(shared):
    from gptoss_tokenizers import read_gptoss_tokenizer

    return read_gptoss_tokenizer(shared / "gpt-oss-tokenizer")


@pytest.fixture(scope="session", params=["byte_tokenizer", "gptoss_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)
