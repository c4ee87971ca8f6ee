"""Folders of Hugging Face are read and written tensor by tensor, and faults have names.

transformers is the judge of what is read and of what is written.
"""

import json
import shutil

import pytest
import torch
from random_gptoss import make_model, save
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM

from ticketlib import checkpoint, mxfp4
from ticketlib.checkpoint import Weights

GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("hf") / "base", torch.bfloat16)


@pytest.fixture(scope="module")
def mxfp4_folder(folder, tmp_path_factory):
    """The same model with its experts rounded to MXFP4."""
    full, written = Weights(folder), {}
    for name, tensor in full.items():
        if name.endswith(checkpoint.EXPERTS):
            written[f"{name}_blocks"], written[f"{name}_scales"] = mxfp4.quantize(tensor)
        else:
            written[name] = tensor
    output = tmp_path_factory.mktemp("hf") / "mxfp4"
    config = mxfp4.QUANTIZATION_CONFIG
    description = checkpoint.stored_as_mxfp4(full.stored)
    checkpoint.write_folder(
        output, folder, description, written.__getitem__, quantization_config=config
    )
    return output


def copy_with(folder, target, change):
    """A copy of a folder whose weights went through `change`."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def edit_config(folder, **fields):
    """Set fields of `config.json`; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | fields
    config = {key: value for key, value in config.items() if value is not None or key not in fields}
    (folder / "config.json").write_text(json.dumps(config))


def test_weights_are_those_of_transformers(folder):
    weights = Weights(folder)
    expected = GptOssForCausalLM.from_pretrained(folder).state_dict()
    assert list(weights) == list(expected) and len(weights) == len(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not weights.is_mxfp4 and not weights.nonfinite
    with pytest.raises(KeyError):
        weights["model.layers.9.self_attn.sinks"]


def test_mxfp4_is_dequantized_bit_for_bit_as_transformers_does(mxfp4_folder):
    weights = Weights(mxfp4_folder)
    expected = GptOssForCausalLM.from_pretrained(mxfp4_folder).state_dict()
    assert weights.is_mxfp4 and weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert weights.stored[f"{GATE_UP}_blocks"].shape == (4, 192, 2, 16)


@pytest.mark.parametrize("kind", ["plain", "mxfp4"])
def test_model_has_one_dtype_and_as_many_layers_as_asked_for(folder, mxfp4_folder, kind):
    source = folder if kind == "plain" else mxfp4_folder
    model = checkpoint.load_model(source, torch.float64, layers=2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert len(model.model.layers) == 2
    model(torch.tensor([[5, 6, 7]]))


def test_a_loaded_model_takes_the_weights_that_differ(folder, tmp_path):
    name = "model.layers.0.self_attn.q_proj.weight"
    other = copy_with(folder, tmp_path / "other", lambda weights: weights[name].mul_(2))
    tokens = torch.arange(20)[None]
    model = checkpoint.load_model(folder, torch.float32)
    before, wanted = (
        checkpoint.load_model(each, torch.float32)(tokens).logits for each in (folder, other)
    )
    assert not torch.equal(before, wanted)
    checkpoint.update_model(model, other, ["model.norm.weight"])
    assert torch.equal(model(tokens).logits, before)
    checkpoint.update_model(model, other, [name])
    assert torch.equal(model(tokens).logits, wanted)
    checkpoint.update_model(model, folder)
    assert torch.equal(model(tokens).logits, before)
    with pytest.raises(KeyError, match="q_proj.bias2"):
        checkpoint.update_model(model, other, ["model.layers.0.self_attn.q_proj.bias2"])


def test_written_shards_load_in_transformers_with_the_base_around_them(folder, tmp_path):
    weights = Weights(folder)
    description = checkpoint.describe_model(weights.config, torch.float32)
    checkpoint.write_folder(
        tmp_path, folder, description, weights.__getitem__, max_shard_size="300KB"
    )
    model = GptOssForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    expected = GptOssForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path / "again", max_shard_size="300KB")
    names = [sorted(p.name for p in at.glob("model*")) for at in (tmp_path, tmp_path / "again")]
    assert names[0] == names[1] and len(names[0]) > 3
    indexes = [
        json.loads((at / checkpoint.INDEX).read_text()) for at in (tmp_path, tmp_path / "again")
    ]
    assert indexes[0]["weight_map"].keys() == indexes[1]["weight_map"].keys()
    configs = [json.loads((at / "config.json").read_text()) for at in (folder, tmp_path)]
    assert {key for key in configs[0] if configs[0][key] != configs[1].get(key)} == {"dtype"}
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_quantization_config_of_the_base_does_not_stay(mxfp4_folder, tmp_path):
    weights = Weights(mxfp4_folder)
    description = checkpoint.describe_model(weights.config)
    checkpoint.write_folder(tmp_path, mxfp4_folder, description, weights.__getitem__)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert not Weights(tmp_path).is_mxfp4


def remove(weights):
    del weights[GATE_UP], weights["lm_head.weight"]


def add(weights):
    weights["model.layers.9.self_attn.sinks"] = torch.zeros(4)


def transpose(weights):
    weights[GATE_UP] = weights[GATE_UP].mT.contiguous()


def widen(weights):
    weights[GATE_UP] = weights[GATE_UP].float()


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (remove, [f"missing {GATE_UP}", "missing lm_head.weight"]),
        (add, ["unexpected model.layers.9.self_attn.sinks"]),
        (transpose, [rf"{GATE_UP} is \[4, 192, 64\], not \[4, 64, 192\]"]),
        (widen, [f"{GATE_UP} is F32, not BF16"]),
    ],
)
def test_every_weight_that_does_not_fit_the_config_is_named(folder, tmp_path, change, messages):
    faulty = copy_with(folder, tmp_path / "faulty", change)
    for message in messages:
        with pytest.raises(ValueError, match=message):
            Weights(faulty)


def test_dtype_of_a_block_matters_as_well(mxfp4_folder, tmp_path):
    def change(weights):
        weights[f"{GATE_UP}_scales"] = weights[f"{GATE_UP}_scales"].float()

    faulty = copy_with(mxfp4_folder, tmp_path / "faulty", change)
    with pytest.raises(ValueError, match=f"{GATE_UP}_scales is F32, not U8"):
        Weights(faulty)


@pytest.mark.parametrize("which", ["stale", "lost", "foreign"])
def test_config_and_files_must_agree_on_quantization(folder, mxfp4_folder, tmp_path, which):
    """Public exports keep a quantization_config that no longer holds; loaders then fail oddly."""
    source = mxfp4_folder if which == "lost" else folder
    copy = shutil.copytree(source, tmp_path / which)
    method = "bitsandbytes" if which == "foreign" else "mxfp4"
    edit_config(copy, quantization_config=None if which == "lost" else {"quant_method": method})
    wanted = {
        "stale": f"MXFP4 experts.*missing {GATE_UP}_blocks.*unexpected {GATE_UP}",
        "lost": f"plain experts.*missing {GATE_UP};.*unexpected {GATE_UP}_blocks",
        "foreign": "bitsandbytes.*accepted is none",
    }
    with pytest.raises(ValueError, match=wanted[which]):
        Weights(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_each_weight_that_is_not_finite_is_named(folder, tmp_path, value):
    def change(weights):
        weights["model.norm.weight"][3] = value
        weights[GATE_UP][1, 2, :2] = value

    weights = Weights(copy_with(folder, tmp_path / "faulty", change))
    for name in weights:
        weights[name]
    assert weights.nonfinite == [
        f"{GATE_UP} has 2 values that are not finite",
        "model.norm.weight has 1 values that are not finite",
    ]
    with pytest.raises(ValueError, match=f"Not exported.*{GATE_UP} has 2.*model.norm.weight"):
        checkpoint.write_folder(tmp_path / "x", folder, weights.stored, weights.__getitem__)


def test_scale_that_overflows_bfloat16_counts_as_not_finite(mxfp4_folder, tmp_path):
    def change(weights):
        weights[f"{GATE_UP}_scales"][0, 0, 0] = 255  # NaN in E8M0
        weights[f"{GATE_UP}_blocks"][0, 0, 0] = 0x77

    weights = Weights(copy_with(mxfp4_folder, tmp_path / "faulty", change))
    weights[GATE_UP]
    assert weights.nonfinite == [f"{GATE_UP} has 32 values that are not finite"]


@pytest.mark.parametrize("keep", [0, 7, 3000, -1])
def test_truncated_shard_is_named_before_anything_is_read(folder, tmp_path, keep):
    weights = Weights(folder)
    checkpoint.write_folder(
        tmp_path, folder, weights.stored, weights.__getitem__, max_shard_size="200KB"
    )
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{shard.name} is cut short or damaged .*Download it"):
        Weights(tmp_path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"does not hold {shard.name}"):
        Weights(tmp_path)


def test_other_formats_and_other_models_are_refused(folder, tmp_path):
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model.bin, are not read"):
        Weights(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match='"gpt_oss" is accepted'):
        Weights(tmp_path)


def test_config_without_a_dtype_takes_any_float(folder, tmp_path):
    copy = copy_with(folder, tmp_path / "mixed", widen)
    edit_config(copy, dtype=None)
    assert Weights(copy)[GATE_UP].dtype == torch.float32


def test_export_of_another_shape_is_refused(folder, tmp_path):
    weights = dict(Weights(folder))
    transpose(weights)
    with pytest.raises(ValueError, match=rf"{GATE_UP} is \[4, 192, 64\]"):
        checkpoint.write_folder(tmp_path, folder, Weights(folder).stored, weights.__getitem__)


def test_odd_sizes_have_no_mxfp4():
    config = make_model().config
    config.intermediate_size = 90
    with pytest.raises(ValueError, match="90 inputs; MXFP4 needs a multiple of 32"):
        checkpoint.stored_as_mxfp4(checkpoint.describe_model(config))


def test_full_disk_is_seen_before_anything_is_written(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    weights = Weights(folder)
    with pytest.raises(OSError, match=r"0\.0 GB are needed and 0\.0 GB are free. Remove old runs"):
        checkpoint.write_folder(tmp_path / "new" / "x", folder, weights.stored, weights.__getitem__)
    assert not (tmp_path / "new").exists()


def test_fingerprint_changes_with_the_weights(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = checkpoint.fingerprint(copy)
    assert checkpoint.fingerprint(copy) == before
    save_file({"x": torch.zeros(1)}, copy / "model.safetensors")
    assert checkpoint.fingerprint(copy) != before
