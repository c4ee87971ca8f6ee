"""A folder of weights is what the loaders of transformers and vLLM expect; faults are found.

`server_contract` holds the two contracts, plain and MXFP4. Their names and shapes are compared with
what transformers builds and openai published; then each promise is broken once.
"""

import json
import re
import shutil

import pytest
import random_gptoss
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from server_contract import MXFP4, NOT_CONVERTED, PLAIN, expect_weights, find_faults
from transformers import GptOssConfig, GptOssForCausalLM

EXPERTS = "model.layers.1.mlp.experts."


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """No square among its experts, so that what lies the wrong way round shows."""
    folder = tmp_path_factory.mktemp("plain")
    random_gptoss.save(folder, torch.bfloat16)
    return folder


@pytest.fixture(scope="module")
def mxfp4(plain, tmp_path_factory):
    """The plain one with random blocks, as an export would lay them out."""
    folder = tmp_path_factory.mktemp("mxfp4") / "model"
    shutil.copytree(plain, folder)

    def pack(tensors):
        for name in [name for name in tensors if name.endswith(tuple(PLAIN))]:
            experts, n_in, n_out = tensors.pop(name).shape
            shape = (experts, n_out, n_in // 32)
            tensors[name + "_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
            tensors[name + "_scales"] = torch.randint(118, 122, shape, dtype=torch.uint8)

    edit_weights(folder, pack)
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": NOT_CONVERTED}
    edit_json(folder, "config.json", lambda config: config.update(quantization_config=quantization))
    return folder


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_json(folder, name, change):
    content = json.loads((folder / name).read_text("utf-8"))
    change(content)
    (folder / name).write_text(json.dumps(content), "utf-8")


# Folders that exports make are added here.
@pytest.fixture(params=["shipped", "plain", "mxfp4"])
def folder(request):
    if request.param == "shipped":
        return ROOT / "data" / "tiny-gpt-oss"
    return request.getfixturevalue(request.param)


def test_folders_keep_the_contract(folder):
    assert find_faults(folder) == []


def test_transformers_loads_the_same_folders_without_a_word(folder):
    model, info = GptOssForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_shards_and_their_index_are_read(tmp_path):
    random_gptoss.save(tmp_path, torch.bfloat16, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert find_faults(tmp_path) == []
    next(tmp_path.glob("*-00002-of-*")).rename(tmp_path / "model-00009.safetensors")
    assert find_faults(tmp_path) == ["the index does not list what is in the shards"]


@pytest.mark.parametrize(("layers", "experts"), [(24, 32), (36, 128)], ids=["20b", "120b"])
def test_names_and_shapes_are_those_that_transformers_builds(layers, experts):
    config = GptOssConfig(num_hidden_layers=layers, num_local_experts=experts)
    with torch.device("meta"):
        state = GptOssForCausalLM(config).state_dict()
    expected = expect_weights(config.to_dict())
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected


def test_blocks_are_shaped_as_openai_published_them():
    config = GptOssConfig(num_hidden_layers=24, num_local_experts=32)
    weights = expect_weights(config.to_dict() | {"quantization_config": {"quant_method": "mxfp4"}})
    shapes = [weights["model.layers.23." + name] for name in MXFP4]
    assert shapes == [[32, 5760, 90, 16], [32, 5760, 90], [32, 2880, 90, 16], [32, 2880, 90]]
    assert len(weights) == 411 + 2 * 24


def transpose(name):
    return lambda t: t.update({name: t[name].transpose(1, 2).contiguous()})


def cast(name, dtype):
    return lambda t: t.update({name: t[name].to(dtype)})


@pytest.mark.parametrize(
    ("layout", "change", "fault"),
    [
        (
            "plain",
            transpose(EXPERTS + "gate_up_proj"),
            r"is \[4, 192, 64\], not \[4, 64, 192\]",
        ),
        (
            "plain",
            transpose(EXPERTS + "down_proj"),
            r"is \[4, 64, 96\], not \[4, 96, 64\]",
        ),
        ("plain", lambda t: t.pop(EXPERTS + "down_proj_bias"), "down_proj_bias is missing"),
        ("plain", lambda t: t.pop("model.layers.0.self_attn.sinks"), "sinks is missing"),
        ("plain", lambda t: t.update(lora_A=torch.ones(2)), "lora_A is not known"),
        ("plain", cast("lm_head.weight", torch.float32), "lm_head.weight is F32, not BF16"),
        ("mxfp4", lambda t: t.pop(EXPERTS + "down_proj_scales"), "down_proj_scales is missing"),
        ("mxfp4", transpose(EXPERTS + "gate_up_proj_scales"), r"scales is \[4, 2, 192\], not"),
        ("mxfp4", cast(EXPERTS + "down_proj_blocks", torch.int8), "blocks is I8, not U8"),
    ],
)
def test_wrong_weights_are_found(layout, change, fault, request, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(layout), tmp_path / "model")
    edit_weights(folder, change)
    (found,) = find_faults(folder)
    assert re.search(fault, found)


@pytest.mark.parametrize(
    ("layout", "change", "fault"),
    [
        ("plain", {"quantization_config": None}, "quantization_config is not for mxfp4"),
        ("plain", {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ("plain", {"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06"),
        ("plain", {"architectures": ["GptOssModel"]}, "architectures is"),
        ("plain", {"layer_types": ["full_attention"] * 4}, "layer_types do not alternate"),
        ("plain", {"rope_scaling": {"rope_type": "yarn", "factor": 32.0}}, "rope_scaling is"),
        ("mxfp4", {"quantization_config": {"quant_method": "mxfp4"}}, "modules_to_not_convert"),
    ],
    ids=str,
)
def test_wrong_configs_are_found(layout, change, fault, request, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(layout), tmp_path / "model")
    edit_json(folder, "config.json", lambda config: config.update(change))
    (found,) = find_faults(folder)
    assert fault in found


def test_plain_weights_that_claim_to_be_packed_are_found(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "model")
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": NOT_CONVERTED}
    edit_json(folder, "config.json", lambda config: config.update(quantization_config=quantization))
    assert len(find_faults(folder)) == 4 * (2 + 4)


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja"])
def test_a_missing_file_is_found(name, plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "model")
    (folder / name).unlink()
    assert find_faults(folder) == [f"{name} is not there"]


def test_a_server_that_would_not_stop_and_a_pickle_are_found(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "model")
    edit_json(folder, "generation_config.json", lambda config: config.update(eos_token_id=[0]))
    (folder / "training_args.bin").touch()
    pickle, stop = find_faults(folder)
    assert "training_args.bin is a pickle" in pickle and "without <|return|> (1)" in stop
