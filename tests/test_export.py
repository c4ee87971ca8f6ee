"""What is exported is what was trained, in every form that leaves the project.

A random gpt-oss learns a few steps with NeMo: LoRA on each family of weights, on all of them, and
all parameters. NeMo with the adapter is the judge; NeMo's own merge in its memory, the export in
transformers, the export imported again and the adapter in PEFT must give its logits.
"""

import ctypes
import gc
import json
import shutil
import threading
import time

import pytest
import torch
from conftest import ROOT
from nemo.collections import llm
from random_gptoss import TEXTS, import_base, save
from safetensors.torch import load_file, save_file
from small_training import EXPERTS, import_proved, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from ticketlib import adapter, checkpoint, export, gptoss, mxfp4, parity, training
from ticketlib.checkpoint import Weights
from ticketlib.checksums import verify_checksums
from ticketlib.paths import Run, write_json

TOLERANCE = 1e-5
WEIGHTS = {
    "linear_qkv": [f"self_attn.{letter}_proj.weight" for letter in "qkv"],
    "linear_proj": ["self_attn.o_proj.weight"],
    "linear_fc1": ["mlp.experts.gate_up_proj"],
    "linear_fc2": ["mlp.experts.down_proj"],
}
pytestmark = pytest.mark.filterwarnings("ignore:No routing.jinja")


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    import_proved(save(folder / "base"), folder / "models" / "base")
    return folder


@pytest.fixture(scope="module")
def trained(experiments):
    """Train, export and prove a run once; give it with its checkpoint."""
    runs = {}

    def get(name, **settings):
        if name not in runs:
            run = train(experiments, name, learning_rate=3e-3, **settings)
            last = training.find_checkpoint(run)
            export.export_checkpoint(run, last)
            if adapter.is_lora(last):
                export.export_adapter(run, last)
            runs[name] = run, last
        return runs[name]

    return get


def prove(run, last, **options):
    return parity.prove_export(run, last, TEXTS, dtype="float64", tolerance=TOLERANCE, **options)


@pytest.mark.parametrize("targets", [*([target] for target in EXPERTS), EXPERTS], ids="+".join)
def test_every_form_equals_what_was_trained(trained, targets):
    run, last = trained("+".join(targets), lora_targets=targets, lora_rank=4)
    proof = prove(run, last)
    assert json.loads(run.proof.read_text()) == proof
    for form in ("merged", "exported", "imported_again", "peft"):
        assert proof[form]["max_difference"] <= TOLERANCE and proof[form]["same_argmax"] == 1
    assert proof["base"]["max_difference"] > 0.01
    before, after = (load_file(at / "model.safetensors") for at in (base_of(run), run.exported))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"model.layers.{layer}.{part}"
        for layer in range(4)
        for target in targets
        for part in WEIGHTS[target]
    }
    assert proof["weights"]["changed"] + proof["weights"]["equal"] == len(before)


def base_of(run):
    return run.experiments / "base"


def test_all_parameters_are_exported_too(trained):
    run, last = trained("full", peft_scheme="none")
    proof = prove(run, last)
    assert proof["weights"] == {"changed": 71, "targeted": 71, "equal": 0}
    assert proof["imported_again"]["max_difference"] == 0
    assert "merged" not in proof and "peft" not in proof
    with pytest.raises(ValueError, match="has no adapter"):
        export.export_adapter(run, last)


def test_proof_on_the_first_layers_says_so(trained):
    run, last = trained("linear_qkv", lora_targets=["linear_qkv"], lora_rank=4)
    proof = prove(run, last, layers=2)
    assert (proof["how"]["layers"], proof["how"]["of_layers"]) == (2, 4)
    assert proof["exported"]["max_difference"] <= TOLERANCE


def tampered(run, name, change):
    """The run with one weight of its export changed."""
    weights = load_file(run.exported / "model.safetensors")
    weights[name] = change(weights[name]).contiguous()
    save_file(weights, run.exported / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.layers.2.self_attn.q_proj.weight", lambda x: 1.01 * x, "form '(exported|imported)"),
        ("model.layers.3.self_attn.o_proj.weight", lambda x: x.roll(1, 0), "form '"),
        ("model.layers.0.self_attn.sinks", lambda x: x + 1e-3, "not trained: model.layers.0.self"),
        ("model.layers.1.mlp.experts.down_proj", lambda x: x.flip(0), "not trained: .*down_proj"),
    ],
)
def test_proof_notices_a_wrong_export(trained, name, change, message):
    run, last = trained("attention")
    kept = run.exported.with_name("kept")
    shutil.copytree(run.exported, kept)
    try:
        tampered(run, name, change)
        with pytest.raises(ValueError, match=message):
            prove(run, last)
    finally:
        shutil.rmtree(run.exported)
        kept.rename(run.exported)


def test_proof_notices_an_adapter_of_another_run_and_an_export_that_is_the_base(trained):
    run, last = trained("attention")
    other, _ = trained("linear_qkv", lora_targets=["linear_qkv"], lora_rank=4)
    kept = run.adapter.rename(run.adapter.with_name("kept"))
    shutil.copytree(other.adapter, run.adapter)
    with pytest.raises(ValueError, match="form 'peft'"):
        prove(run, last)
    shutil.rmtree(run.adapter)
    kept.rename(run.adapter)


def test_stock_merge_in_bf16_would_be_off(trained, tmp_path):
    """The correction matters: without it, the same comparison fails."""
    _, last = trained("attention")
    gptoss.start_afresh()
    llm.peft.merge_lora(str(last), str(tmp_path / "merged"))
    llm.export_ckpt(path=tmp_path / "merged", target="hf", output_path=tmp_path / "hf")
    with pytest.raises(ValueError, match="differ"):
        parity.check_parity(tmp_path / "hf", last, TEXTS, dtype="float32", tolerance=TOLERANCE)


def test_adapter_that_learned_nothing_is_not_exported(experiments, trained, monkeypatch):
    run, last = trained("attention")
    read = adapter.read_adapter

    def read_zeros(folder):
        found = read(folder)
        zeros = {name: (a, torch.zeros_like(b)) for name, (a, b) in found.factors.items()}
        return adapter.Adapter(zeros, found.rank, found.alpha)

    monkeypatch.setattr(adapter, "read_adapter", read_zeros)
    before = (run.exported / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="changes no weight"):
        export.export_checkpoint(run, last)
    assert (run.exported / "model.safetensors").read_bytes() == before


def test_exported_folder_is_complete_and_loads(trained):
    run, last = trained("attention")
    verify_checksums(run.exported)
    verify_checksums(run.adapter)
    configs = [json.loads((at / "config.json").read_text()) for at in (base_of(run), run.exported)]
    assert configs[0] == configs[1]
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (run.exported / name).read_bytes() == (base_of(run) / name).read_bytes()
    model = AutoModelForCausalLM.from_pretrained(run.exported)
    tokenizer = AutoTokenizer.from_pretrained(run.exported)
    prompt = tokenizer(TEXTS[2], return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=2).shape[1] > prompt["input_ids"].shape[1]
    assert str(run.experiments) not in (run.adapter / "adapter_config.json").read_text()
    assert str(run.experiments) not in (run.adapter / "README.md").read_text()


@pytest.mark.parametrize("fault", ["disk", "flipped"])
def test_export_that_fails_leaves_the_earlier_one(trained, monkeypatch, fault):
    run, last = trained("attention")
    before = {path.name: path.read_bytes() for path in run.exported.iterdir()}
    calls = []

    def write(tensors, path, **options):
        calls.append(path)
        if fault == "disk" and len(calls) == 2:
            raise OSError(28, "No space left on device", str(path))
        if fault == "flipped" and len(calls) == 2:
            name = next(iter(tensors))
            tensors = tensors | {name: tensors[name] + 1}
        save_file(tensors, path, **options)

    monkeypatch.setattr(checkpoint, "save_file", write)
    wanted = {
        "disk": (OSError, "No space left"),
        "flipped": (ValueError, "came back .* as another"),
    }
    with pytest.raises(wanted[fault][0], match=wanted[fault][1]):
        export.export_checkpoint(run, last, max_shard_size="300KB")
    assert {path.name: path.read_bytes() for path in run.exported.iterdir()} == before
    assert [path.name for path in run.folder.glob(".*")] == [".training.lock"]


@pytest.mark.parametrize(("prompt_format", "is_there"), [("harmony", True), ("plain", False)])
def test_template_of_the_training_is_for_chats_only(tmp_path, monkeypatch, prompt_format, is_there):
    """Chats rendered with it would be another prompt than a model tuned on plain texts knows."""
    run, folder = Run("template", str(tmp_path)), tmp_path / "folder"
    folder.mkdir()
    write_json(run.settings, {"prompt": {"prompt_format": prompt_format}})
    monkeypatch.setattr(export, "write_card", lambda *_, **__: None)
    export._finish(run, folder, ROOT / "data" / "tiny-gpt-oss")
    assert (folder / "routing.jinja").exists() == is_there


def test_base_that_went_away_is_named(trained):
    run, last = trained("attention")
    away = base_of(run).rename(run.experiments / "away")
    try:
        with pytest.raises(FileNotFoundError, match="base, the base of .*no longer there"):
            export.export_checkpoint(run, last)
    finally:
        away.rename(base_of(run))


@pytest.fixture(scope="module")
def on_mxfp4(experiments):
    """Runs on a base whose experts are MXFP4, as OpenAI's are."""
    full, written = Weights(experiments / "base"), {}
    for name, tensor in full.items():
        if name.endswith(checkpoint.EXPERTS):
            written[f"{name}_blocks"], written[f"{name}_scales"] = mxfp4.quantize(tensor)
            # Another form of the same number: what is copied is told from what is made anew
            written[f"{name}_blocks"][0, 0, 0] = 0x88
        else:
            written[name] = tensor.bfloat16()
    description = checkpoint.stored_as_mxfp4(checkpoint.describe_model(full.config, torch.bfloat16))
    base = experiments / "base-mxfp4"
    config = mxfp4.QUANTIZATION_CONFIG
    checkpoint.write_folder(
        base, experiments / "base", description, written.__getitem__, quantization_config=config
    )
    import_proved(base, experiments / "models" / "base-mxfp4")
    return lambda name, **settings: train(
        experiments, name, imported="base-mxfp4", learning_rate=3e-3, **settings
    )


def test_untouched_experts_keep_the_blocks_of_the_base(experiments, on_mxfp4):
    run = on_mxfp4("attention-on-mxfp4")
    last = training.find_checkpoint(run)
    export.export_checkpoint(run, last)
    export.export_adapter(run, last)
    folder = export.export_mxfp4(run, last, max_shard_size="100KB")
    verify_checksums(folder)
    base, written = Weights(experiments / "base-mxfp4"), Weights(folder)
    blocks = [name for name in base.stored if name.endswith(("_blocks", "_scales"))]
    assert len(blocks) == 16
    assert all(torch.equal(base.read_stored(x), written.read_stored(x)) for x in blocks)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"] == mxfp4.QUANTIZATION_CONFIG
    assert config["dtype"] == "bfloat16"
    proof = prove(run, last)
    assert proof["exported"]["max_difference"] <= TOLERANCE
    assert proof["mxfp4"]["mean_difference"] < 0.05  # What bfloat16 rounds off the attention


def test_trained_experts_are_rounded_to_the_nearest_mxfp4(on_mxfp4):
    run = on_mxfp4("experts-on-mxfp4", lora_targets=["linear_fc1", "linear_fc2"])
    last = training.find_checkpoint(run)
    export.export_checkpoint(run, last)
    export.export_mxfp4(run, last)
    full, written = Weights(run.exported), Weights(run.exported_mxfp4)
    for name in full:
        if name.endswith(checkpoint.EXPERTS):
            blocks, scales = mxfp4.quantize(full[name])
            assert torch.equal(written.read_stored(f"{name}_blocks"), blocks)
            assert torch.equal(written.read_stored(f"{name}_scales"), scales)
        else:
            assert torch.equal(written[name], full[name].bfloat16())
    assert 0 < prove(run, last)["mxfp4"]["max_difference"] < 10


def test_import_and_export_need_one_model_and_one_shard(tmp_path):
    """250 MB of weights; counted is resident memory that is not the file cache."""
    small, base = save(tmp_path / "small", torch.bfloat16), tmp_path / "base"
    import_base(small, tmp_path / "first")  # What the first import of all loads is no matter here
    config = json.loads((small / "config.json").read_text())
    config |= {"hidden_size": 512, "intermediate_size": 512, "num_local_experts": 32}
    (small / "config.json").write_text(json.dumps(config | {"head_dim": 128}))
    description = checkpoint.describe_model(checkpoint.load_config(small))
    size = checkpoint.count_bytes(description)
    assert size > 200e6

    class Random(dict):
        def __missing__(self, name):
            return torch.randn(description[name].shape, dtype=torch.bfloat16) / 50

    checkpoint.write_folder(base, small, description, Random().__getitem__)
    needed = peak_of(lambda: import_base(base, tmp_path / "imported", torch.bfloat16))
    assert needed < 1.2 * size + 30e6  # Megatron-Core's writer takes some MB for any model
    options = {"max_shard_size": "30MB"}
    written = tmp_path / "x", base, description, Weights(base).__getitem__
    assert peak_of(lambda: checkpoint.write_folder(*written, **options)) < 0.3 * size


def peak_of(action):
    """How many bytes an action needs at most, beyond what the process has before it."""
    gc.collect()
    # glibc keeps what was freed, and how much of it depends on what came before. Tensors of 256 KB
    # and more (M_MMAP_THRESHOLD is -3) now go back at once, and the rest here.
    ctypes.CDLL(None).mallopt(-3, 2**18)
    ctypes.CDLL(None).malloc_trim(0)
    start, peak, done = resident(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident() - start)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    action()
    done.set()
    thread.join()
    return peak


def resident():
    with open("/proc/self/status") as status:
        lines = [line.split() for line in status]
    return 1024 * sum(int(each[1]) for each in lines if each[0] in ("RssAnon:", "RssShmem:"))
