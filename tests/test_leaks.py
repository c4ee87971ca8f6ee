"""Nothing leaks: no token gets out, and no code gets in from a model's folder or a data file.

What the notebooks write is searched in tests/test_notebooks.py. What NeMo's own checkpoints need,
and why only this project's are loaded, is said in ticketlib/resume.py.
"""

import ast
import builtins
import json
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jinja2
import nbformat
import pytest
import torch
import transformers.dynamic_module_utils
from planted import SECRETS, find_planted
from transformers import AutoTokenizer

from ticketlib import checkpoint, profiles, scoring, template, tickets
from ticketlib.paths import project_root

ROOT = project_root()
TINY = ROOT / "data" / "tiny-gpt-oss"


def find_faults(code: str) -> list[str]:
    """Calls that would run what a file says, wherever in the code they stand."""
    faults = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {getattr(node, "module", None), *(alias.name for alias in node.names)}
            modules = {str(name).split(".")[0] for name in modules}
            faults += sorted(modules & {"pickle", "cPickle", "dill", "cloudpickle", "joblib"})
        if isinstance(node, ast.Name | ast.Attribute):
            name = ast.unparse(node)
            faults += [name] if name.split(".")[-1] in ("read_pickle", "unsafe_load") else []
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
        values = {k: getattr(value, "value", "?") for k, value in keywords.items()}
        if values.get("trust_remote_code", False) is not False:
            faults.append("trust_remote_code")
        if values.get("allow_pickle", False) is not False:
            faults.append("allow_pickle")
        if (
            name.startswith("Auto")
            and "from_pretrained" in name
            and "trust_remote_code" not in values
        ):
            faults.append(f"{name} asks whether to trust; say trust_remote_code=False")
        if name == "torch.load" and values.get("weights_only") is not True:
            faults.append(name)
    return faults


def sources() -> dict[str, str]:
    code = {
        str(path.relative_to(ROOT)): path.read_text("utf-8")
        for folder in ("ticketlib", "data", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        code[path.name] = "\n".join(c.source for c in cells if c.cell_type == "code")
    return code


def test_nothing_of_ours_trusts_code_or_pickles():
    code = sources()
    assert len(code) > 40 and "03_train_lora.ipynb" in code
    assert {name: found for name, text in code.items() if (found := find_faults(text))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "f(trust_remote_code=flag)",
        "AutoTokenizer.from_pretrained(folder)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "import pickle",
        "def f():\n    from pickle import load as read",
        "import os, joblib",
        "pd.read_pickle(path)",
        "from pandas import read_pickle\nread_pickle(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.unsafe_load(text)",
    ],
)
def test_the_search_finds_each(code):
    assert find_faults(f"x = 1\n{code}\n")


@pytest.mark.parametrize(
    "code", ["torch.load(p, weights_only=True)", "f(x, trust_remote_code=False)", "json.load(p)"]
)
def test_the_search_lets_the_rest_be(code):
    assert not find_faults(code)


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A whole base in a folder to plant something in; whoever is asked for permission says yes."""
    modules = tmp_path / "modules"
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    # transformers keeps modules of one name: each test needs its own.
    folder = tmp_path / f"base_{tmp_path.name}"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.py"))
    return folder


@pytest.fixture
def marker(tmp_path):
    """A file that is there once planted code has run."""
    return tmp_path / "executed"


def plant(base: Path, marker: Path, name: str) -> None:
    (base / name).parent.mkdir(exist_ok=True)
    # Classes of its own: transformers marks those that it loads as custom, for the whole process.
    code = f"""from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

open({str(marker)!r}, "w").close()


class C(GptOssConfig):
    pass


class M(GptOssForCausalLM):
    pass


class T(PreTrainedTokenizerFast):
    pass


def generate(*args, **kwargs):
    pass
"""
    (base / name).write_text(code)


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values))


def plant_in_config(base, marker):
    plant(base, marker, "evil.py")
    auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    change(base / "config.json", auto_map=auto_map | {"AutoTokenizer": ["evil.T", "evil.T"]})


def plant_in_config_of_another_type(base, marker):
    plant_in_config(base, marker)
    change(base / "config.json", model_type="evil")


def plant_in_tokenizer(base, marker):
    plant(base, marker, "evil.py")
    change(base / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})


def plant_in_tokenizer_of_another_class(base, marker):
    plant_in_tokenizer(base, marker)
    change(base / "tokenizer_config.json", tokenizer_class="Evil")


def plant_generate(base, marker):
    """transformers 4.57 runs this for any local folder, whatever trust_remote_code says."""
    plant(base, marker, "custom_generate/generate.py")


def import_tokenizer(base):
    """NeMo's own importer loads it with `trust_remote_code=True`."""
    from ticketlib.gptoss import GptOssImporter

    return GptOssImporter(base).tokenizer


def make_config(base):
    from ticketlib.gptoss import config_from_hf

    return config_from_hf(base, torch.float32)


READERS = [
    checkpoint.load_config,
    checkpoint.Weights,
    scoring.load_model,
    make_config,
    import_tokenizer,
]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize(
    "attack",
    [
        plant_in_config,
        plant_in_config_of_another_type,
        plant_in_tokenizer,
        plant_in_tokenizer_of_another_class,
        plant_generate,
    ],
    ids=lambda attack: attack.__name__,
)
def test_code_in_a_base_is_not_run(base, marker, attack, read):
    attack(base, marker)
    try:
        read(base)
    except ValueError:
        pass  # Refused; where it is not, the planted code must have been passed over.
    assert not marker.exists()


def test_planted_code_would_have_shown(base, marker):
    plant_in_tokenizer_of_another_class(base, marker)
    AutoTokenizer.from_pretrained(base, trust_remote_code=True)
    assert marker.exists()


def test_a_base_that_brings_its_own_generate_is_named(base, marker):
    plant_generate(base, marker)
    with pytest.raises(ValueError, match="custom_generate"):
        scoring.load_model(base, device="cpu")


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("read", READERS[1:3], ids=lambda read: read.__name__)
def test_a_pickle_is_not_opened(base, marker, read, zipped):
    payload = {"lm_head.weight": Payload(marker)}
    file = base / "pytorch_model.bin"
    torch.save(payload, file) if zipped else file.write_bytes(pickle.dumps(payload))
    read(base)  # Beside safetensors it is passed over.
    assert not marker.exists()
    (base / "model.safetensors").unlink()
    with pytest.raises((OSError, ValueError), match="safetensors"):
        read(base)
    assert not marker.exists()
    pickle.loads(pickle.dumps(payload))
    assert marker.exists(), "the pickle is harmless and proves nothing"


def test_weights_in_a_harmless_pickle_are_not_read_either(base):
    """Which of two files would count, nobody could tell."""
    weights = scoring.load_model(base, device="cpu")[0].state_dict()
    torch.save(weights, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    for read in (checkpoint.Weights, scoring.load_model):
        with pytest.raises(OSError, match="safetensors"):
            read(base)


def test_a_chat_template_does_not_reach_python(base):
    """transformers renders in Jinja's sandbox; our own template is checked by rendering it."""
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    original = (base / "chat_template.jinja").read_text("utf-8")
    (base / "chat_template.jinja").write_text(attack + original, "utf-8")
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    with pytest.raises(jinja2.exceptions.SecurityError):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    with pytest.raises(jinja2.exceptions.SecurityError):
        template.render_template(attack + original)


@pytest.fixture
def planted(monkeypatch):
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)


def test_downloads_neither_print_nor_keep_a_token(planted, tmp_path, monkeypatch, capfd):
    asked = []

    def snapshot_download(*args, **kwargs):
        asked.append((args, kwargs))
        kwargs["local_dir"].mkdir(parents=True)
        (kwargs["local_dir"] / "config.json").touch()

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    profiles.locate_base(profiles.get_profile("gpt-oss-20b"), tmp_path / "models")

    command = tmp_path / "kaggle"
    command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\necho x > "$6/none.csv"\n')
    command.chmod(0o755)
    monkeypatch.setattr(tickets.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tickets.shutil, "which", lambda name: str(command))
    with pytest.raises(RuntimeError) as raised:
        tickets.download_kaggle_tickets(tmp_path / "data")
    said = "".join(capfd.readouterr()) + str(raised.value) + str(asked)
    assert not [secret for secret in SECRETS.values() if secret in said]
    assert (tmp_path / "arguments").exists() and find_planted(tmp_path) == []


def test_planted_tokens_are_found_where_they_are(planted, tmp_path):
    """The search of test_notebooks.py can fail."""
    (tmp_path / "deep").mkdir()
    with (tmp_path / "deep" / "log.bin").open("wb") as file:
        file.write(b"\x00\xff")
        file.flush()
        subprocess.run([sys.executable, "-c", "import os; print(os.environ)"], stdout=file)
    (tmp_path / "other.txt").write_text("hf_another")
    assert find_planted(tmp_path) == [str(tmp_path / "deep" / "log.bin")]
