"""The corrected gpt-oss of NeMo equals transformers', and each correction matters.

transformers' GptOssForCausalLM is the independent implementation: logits in float32 on texts
longer than the sliding window are at most 1e-5 apart after import, and far apart as soon as one
detail is wrong.
"""

import json
import shutil

import pytest
import torch
from nemo.collections import llm
from random_gptoss import TEXTS, WINDOW, import_base, make_model, save
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GptOssForCausalLM

from ticketlib import gptoss, inference, parity
from ticketlib.checkpoint import Weights
from ticketlib.paths import project_root

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("hf") / "base")


@pytest.fixture(scope="module")
def imported(hf_folder, tmp_path_factory):
    return import_base(hf_folder, tmp_path_factory.mktemp("nemo") / "imported")


@pytest.fixture(scope="module")
def tokens(hf_folder):
    tokenizer = AutoTokenizer.from_pretrained(hf_folder)
    tokens = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    assert tokens.shape[1] > 2 * WINDOW
    return tokens


@pytest.fixture(scope="module")
def expected(hf_folder, tokens):
    model = GptOssForCausalLM.from_pretrained(hf_folder, attn_implementation="eager").eval()
    return inference.logits(model, [tokens])


def largest_difference(model, tokens, expected):
    return (inference.logits(model, [tokens]) - expected).abs().max().item()


def test_import_equals_transformers(hf_folder, imported):
    result = parity.check_parity(hf_folder, imported, TEXTS, dtype="float32", tolerance=TOLERANCE)
    assert result["longest"] > 2 * WINDOW
    assert result["same_argmax"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_size": (WINDOW, 0)},  # NeMo's stock value: one key too many
        {"yarn_mscale_all_dim": 1.0},  # NeMo's stock value: cancels the attention factor
        {"yarn_rotary_scaling_factor": 16.0},
        {"yarn_beta_fast": 16.0},
        {"rotary_base": 10_000},
        {"activation_func_clamp_value": None},
        {"glu_linear_offset": 0.0},
        {"layernorm_epsilon": 1e-2},
        {"moe_router_topk": 3},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_parity_notices_a_wrong_setting(imported, tokens, expected, wrong):
    model = inference.load_model(imported, torch.float32, **wrong)
    assert largest_difference(model, tokens, expected) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "softmax_offset",
        "experts.local_experts.3.linear_fc1.bias",
        "experts.local_experts.0.linear_fc2.bias",
        "linear_qkv.bias",
        "linear_proj.bias",
        "router.bias",
    ],
)
def test_parity_notices_a_lost_parameter(imported, tokens, expected, name):
    model = inference.load_model(imported, torch.float32)
    lost = [parameter for key, parameter in model.named_parameters() if name in key]
    assert lost
    with torch.no_grad():
        for parameter in lost:
            parameter.zero_()
    assert largest_difference(model, tokens, expected) > 100 * TOLERANCE


def test_check_parity_refuses_a_difference_and_too_short_texts(hf_folder, imported, tmp_path):
    other = save(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.layers.2.self_attn.sinks"] += 0.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="at most 1e-05 and at least 90%"):
        parity.check_parity(other, imported, TEXTS, dtype="float32", tolerance=TOLERANCE)
    with pytest.raises(ValueError, match="pass a longer one"):
        parity.check_parity(hf_folder, imported, ["ok"], dtype="float32", tolerance=TOLERANCE)


def test_shipped_base_imports_with_parity(tmp_path):
    """Its logits reach 30, where float32 rounds by over 1e-5; float64 tells that from faults."""
    base = project_root() / "data" / "tiny-gpt-oss"
    text = "Subject: VPN\n\nBody: " + "Seit heute erreicht unser Team den Server nicht mehr. " * 9
    imported = import_base(base, tmp_path / "imported")
    for dtype, tolerance in (("float64", TOLERANCE), ("float32", 5e-5)):
        result = parity.check_parity(base, imported, [text], dtype=dtype, tolerance=tolerance)
        assert result["same_argmax"] == 1
    model = inference.load_model(imported, torch.float64, window_size=(32, 0))
    tokens = torch.tensor([AutoTokenizer.from_pretrained(base)(text)["input_ids"]])
    expected = inference.logits(inference.load_reference(base, torch.float64), [tokens])
    assert largest_difference(model, tokens, expected) > 100 * TOLERANCE


def test_reference_in_float64_is_the_same_model(hf_folder, tokens, expected):
    """Its norms are replaced; what it computes is not."""
    assert (
        inference.logits(inference.load_reference(hf_folder, torch.float64), [tokens]) - expected
    ).abs().max() < TOLERANCE


def test_export_gives_back_the_same_folder(hf_folder, imported, tmp_path):
    exported = tmp_path / "exported"
    llm.export_ckpt(path=imported, target="hf", output_path=exported)
    before, after = (load_file(f / "model.safetensors") for f in (hf_folder, exported))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (exported / name).read_bytes() == (hf_folder / name).read_bytes()
    configs = [json.loads((f / "config.json").read_text()) for f in (hf_folder, exported)]
    assert configs[0] == configs[1]
    model = AutoModelForCausalLM.from_pretrained(exported)
    prompt = AutoTokenizer.from_pretrained(exported)(TEXTS[0], return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3).shape[1] <= prompt["input_ids"].shape[1] + 3


def test_sharded_export_loads(imported, hf_folder, tmp_path):
    llm.export_ckpt(path=imported, target="hf", output_path=tmp_path / "x", max_shard_size="400KB")
    assert len(list((tmp_path / "x").glob("*.safetensors"))) > 1
    weights = Weights(tmp_path / "x")
    expected = load_file(hf_folder / "model.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_mxfp4_experts_are_read_as_transformers_dequantizes_them(hf_folder, tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder = shutil.copytree(hf_folder, tmp_path / "mxfp4")
    weights = load_file(folder / "model.safetensors")
    expected = {}
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, rows_in, rows_out = weights.pop(name).shape
        generator = torch.Generator().manual_seed(len(name))
        blocks = torch.randint(
            0, 256, (experts, rows_out, rows_in // 32, 16), dtype=torch.uint8, generator=generator
        )
        scales = torch.randint(
            118, 124, (experts, rows_out, rows_in // 32), dtype=torch.uint8, generator=generator
        )
        expected[name] = convert_moe_packed_tensors(blocks, scales)
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    read = Weights(folder)
    assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())
    # The same values as a BF16 file, through transformers, give the same logits as through the
    # import.
    model = make_model()
    model.load_state_dict(read)
    model.save_pretrained(tmp_path / "as-bf16")
    for file in hf_folder.glob("*token*"):
        shutil.copy(file, tmp_path / "as-bf16")
    imported = import_base(folder, tmp_path / "imported")
    parity.check_parity(tmp_path / "as-bf16", imported, TEXTS, dtype="float32", tolerance=TOLERANCE)


def test_config_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match='"gpt_oss" is accepted'):
        gptoss.config_from_hf(tmp_path, torch.float32)
