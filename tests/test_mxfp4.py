"""MXFP4: transformers' dequantization is the judge, and no other code would have been nearer."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_gptoss import TEXTS, make_model, make_tokenizer
from safetensors.torch import save_file
from transformers import GptOssForCausalLM
from transformers.integrations.mxfp4 import (
    FP4_VALUES,
    convert_moe_packed_tensors,
    should_convert_module,
)

from ticketlib.mxfp4 import BLOCK_SIZE, QUANTIZATION_CONFIG, quantize

E2M1 = torch.tensor(FP4_VALUES, dtype=torch.float64)


def dequantize(blocks, scales):
    return convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)


def random_weight(seed: int, spread: float, dtype=torch.float32):
    """[2, 64, 6], with numbers of very different size, zeros and blocks of zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 64, 6, generator=generator) * 0.02
    weight *= torch.exp2(spread * torch.randn(2, 64, 6, generator=generator))
    weight[:, ::7] = 0
    weight[0, :BLOCK_SIZE, 0] = 0
    return weight.to(dtype)


def nearest_error(weight, scales):
    """Brute force: the error that the best of all 16 codes leaves, given each block's scale."""
    steps = torch.exp2(scales.double() - 127).repeat_interleave(BLOCK_SIZE, -1).transpose(1, 2)
    choices = steps[..., None] * E2M1  # [experts, in, out, 16]
    return (choices - weight.double()[..., None]).abs().amin(-1), steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.0, 1.0, 8.0]))
def test_no_other_code_is_nearer_and_the_error_is_at_most_half_a_step(dtype, seed, spread):
    weight = random_weight(seed, spread, dtype)
    blocks, scales = quantize(weight)
    error = (dequantize(blocks, scales).double() - weight.double()).abs()
    nearest, steps = nearest_error(weight, scales)
    assert (error <= nearest * (1 + 1e-6)).all()
    # The grid's widest step is 2, from 4 to 6; it is 0.5 below 2 and 1 below 4.
    scaled = weight.double().abs() / steps
    widths = torch.where(scaled < 2, 0.5, torch.where(scaled < 4, 1.0, 2.0))
    assert (error <= steps * widths / 2 * (1 + 1e-6)).all()


@given(seed=st.integers(0, 10**6))
def test_what_was_not_changed_stays(seed):
    """Random codes, scales as in OpenAI's files; a block of one small code among them."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (2, 5, 3, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(100, 130, (2, 5, 3), dtype=torch.uint8, generator=generator)
    blocks[0, 0], blocks[0, 1, 0], blocks[0, 2, 0] = 0, 0x11, 0x99
    values = convert_moe_packed_tensors(blocks, scales)
    again = convert_moe_packed_tensors(*quantize(values))
    assert values.dtype == torch.bfloat16 and values.abs().max() > 0
    assert torch.equal(again, values)


def test_layout_is_that_of_openai():
    weight = torch.zeros(2, 64, 3)
    weight[1, 33, 2], weight[1, 34, 2] = 6.0, -1.0
    blocks, scales = quantize(weight)
    assert blocks.shape == (2, 3, 2, 16) and scales.shape == (2, 3, 2)
    assert blocks.dtype == scales.dtype == torch.uint8
    # Second block of 32; numbers 1 and 2 in it: high half of byte 0, low half of byte 1.
    assert blocks[1, 2, 1, 0] >> 4 == 7 and blocks[1, 2, 1, 1] & 15 == 10
    assert scales[1, 2, 1] == 127


def test_numbers_at_the_edges():
    """Ties go to the smaller number; tiny and denormal numbers and zeros are numbers."""
    weight = torch.zeros(1, 32, 5)
    weight[0, :9, 0] = torch.tensor([6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -5])
    weight[0, 0, 1] = 1e-40
    weight[0, 0, 2] = 2.0**-120
    weight[0, 0, 3] = 1e30
    values = dequantize(*quantize(weight))
    assert values[0, :9, 0].tolist() == [6, 0, 0.5, 1, 1.5, 2, 3, 4, -4]
    assert values[0, 0, 1] == 0 and values[0, 0, 2] == 2.0**-120
    assert abs(values[0, 0, 3] / 1e30 - 1) <= 1 / 4
    assert (values[..., 4] == 0).all() and values.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_a_number_that_has_no_code_is_named(bad):
    weight = torch.zeros(3, 32, 4, dtype=torch.float64)
    weight[2, 5, 1] = bad
    with pytest.raises(ValueError, match="Expert 2 holds NaN or infinity"):
        quantize(weight)


@pytest.mark.parametrize("shape", [(2, 33, 4), (32, 4), (2, 2, 32, 4)])
def test_a_shape_that_does_not_divide_is_refused(shape):
    with pytest.raises(ValueError, match=r"\[experts, in, out\] with in divisible by 32"):
        quantize(torch.zeros(shape))


def test_config_says_that_the_experts_and_nothing_else_are_mxfp4():
    patterns = QUANTIZATION_CONFIG["modules_to_not_convert"]
    layer = "model.layers.11."
    for name in ("model.embed_tokens", "lm_head", f"{layer}mlp.router", f"{layer}self_attn.q_proj"):
        assert not should_convert_module(name.split("."), patterns)
    assert should_convert_module(f"{layer}mlp.experts".split("."), patterns)


def test_memory_does_not_grow_with_the_number_of_experts(monkeypatch):
    """ModelOpt is handed one expert at a time."""
    from ticketlib import mxfp4

    seen, original = [], mxfp4.MXFP4QTensor.quantize
    monkeypatch.setattr(
        mxfp4.MXFP4QTensor,
        "quantize",
        lambda rows, size: seen.append(rows.numel()) or original(rows, size),
    )
    quantize(torch.ones(5, 64, 7))
    assert seen == [64 * 7] * 5


@pytest.fixture(scope="module")
def model():
    return make_model().to(torch.bfloat16)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A random model as OpenAI's release stores its own: experts in MXFP4, the rest bfloat16."""
    folder = tmp_path_factory.mktemp("mxfp4")
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    weights = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            weights[f"{name}_blocks"], weights[f"{name}_scales"] = quantize(tensor)
        else:
            weights[name] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = QUANTIZATION_CONFIG
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def expected_weights(model):
    return {
        name: convert_moe_packed_tensors(*quantize(tensor))
        if name.endswith(("gate_up_proj", "down_proj"))
        else tensor
        for name, tensor in model.state_dict().items()
    }


def test_transformers_loads_what_was_dequantized_bit_for_bit(model, folder):
    loaded, report = GptOssForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    expected = expected_weights(model)
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name]), name
        is_rounded = not torch.equal(tensor, model.state_dict()[name])
        assert is_rounded == name.endswith(("gate_up_proj", "down_proj")), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_scoring_loads_it_in_any_dtype(model, folder, dtype):
    from ticketlib import scoring

    loaded, tokenizer = scoring.load_model(folder, device="cpu", dtype=dtype)
    expected = expected_weights(model)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == getattr(torch, dtype), name
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
    scores = scoring.score_labels(loaded, tokenizer, TEXTS[-1:], ["IT Support", "Human Resources"])
    assert scores.shape == (1, 2)


def test_a_small_change_costs_no_more_than_itself():
    """Half of the blocks have a 6; one that grows a little must not double the step of all 32."""
    torch.manual_seed(0)
    before = dequantize(*quantize(torch.randn(1, 640, 64)))
    change = 0.01 * torch.randn(1, 640, 64)
    error = dequantize(*quantize(before + change)) - (before + change)
    assert error.square().mean() <= 1.01 * change.square().mean()
