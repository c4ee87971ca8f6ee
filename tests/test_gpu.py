"""On a GPU, packed rows, fused kernels and Transformer Engine change nothing but rounding.

A LoRA adapter on the shipped tiny model is trained a little with NeMo; transformers and PEFT, eager
attention in float32 on the CPU, are the judges of its losses and gradients. Tolerances: Transformer
Engine multiplies float32 in TF32, which has 10 bits and moves a loss here by up to 0.02.
"""

from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from small_training import SIZES, import_proved, train
from transformers import AutoTokenizer

from ticketlib import adapter, checkpoint, convert, export, gptoss, inference, parity, training
from ticketlib.profiles import get_profile

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
BASE = ROOT / "data" / "tiny-gpt-oss"
TEXTS = [
    "Subject: VPN\n\nBody: " + "Seit heute erreicht unser Team den Server nicht mehr. " * 5,
    "My printer shows an error.",
    "I was charged twice for one order, please refund the second payment. " * 3,
    "Login?",
]
PROFILE = replace(get_profile("gpt-oss-20b"), **SIZES, pack_tokens=0, learning_rate=5e-3)


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    import_proved(BASE, folder / "models" / "base", torch.bfloat16)
    return folder


@pytest.fixture(scope="module")
def trained(experiments):
    runs = {}

    def get(name, **settings):
        if name not in runs:
            runs[name] = train(experiments, name, profile=PROFILE, **settings)
        return runs[name], training.find_checkpoint(runs[name])

    return get


@pytest.fixture(scope="module")
def tickets():
    tokenizer = AutoTokenizer.from_pretrained(BASE, trust_remote_code=False)
    return [torch.tensor(tokenizer(text)["input_ids"]) for text in TEXTS]


def as_rows(tickets, length):
    """A padded row for each ticket."""
    shape = (len(tickets), length)
    batch = {name: torch.zeros(shape, dtype=torch.long) for name in ("tokens", "labels")}
    batch |= {"loss_mask": torch.zeros(shape), "position_ids": torch.arange(length).expand(shape)}
    for row, ticket in enumerate(tickets):
        n = len(ticket) - 1
        batch["tokens"][row, :n], batch["labels"][row, :n] = ticket[:-1], ticket[1:]
        batch["loss_mask"][row, :n] = 1
    return {name: each.cuda() for name, each in batch.items()} | {"attention_mask": None}


def as_pack(tickets, length):
    """All tickets in one row, as NeMo packs them."""
    rows = as_rows(tickets, length)
    del rows["attention_mask"]
    kept = rows["loss_mask"].bool()
    packed = {name: torch.zeros(1, length, dtype=each.dtype) for name, each in rows.items()}
    for name, each in rows.items():
        packed[name][0, : int(kept.sum())] = each[kept].cpu()
    packed["cu_seqlens"] = torch.tensor([0])
    return {name: each.cuda() for name, each in packed.items()} | {"attention_mask": None}


def losses_and_gradients(model, batch):
    """Losses of the tokens that count, [tokens], and the gradients of their sum by name."""
    model.zero_grad(set_to_none=True)
    losses = gptoss.answers_forward_step(model, batch)
    losses.sum().backward()
    kept = losses.detach()[batch["loss_mask"].bool()].float().cpu()
    gradients = {
        name: parameter.grad.float().cpu()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return kept, gradients


def largest_error(expected, found):
    """The largest difference of two gradients, as a share of the largest value."""
    return max(
        ((expected[name] - found[name]).abs().max() / expected[name].abs().max()).item()
        for name in expected
    )


@pytest.fixture(scope="module")
def model(trained):
    _, last = trained("attention")
    model = inference.load_model(last, torch.float32).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".adapter." in name)
    return model


def test_a_packed_row_is_the_same_as_padded_rows(model, tickets):
    padded = losses_and_gradients(model, as_rows(tickets, 256))
    packed = losses_and_gradients(model, as_pack(tickets, 512))
    assert packed[0].shape == padded[0].shape and (packed[0] - padded[0]).abs().max() < 0.02
    assert padded[1].keys() == packed[1].keys() and len(padded[1]) == 16
    assert largest_error(padded[1], packed[1]) < 0.02
    # And after it, rows that are not packed are still right.
    again = losses_and_gradients(model, as_rows(tickets, 256))
    assert torch.equal(again[0], padded[0])


def test_padding_and_the_neighbors_in_a_row_do_not_matter(model, tickets):
    alone = [losses_and_gradients(model, as_pack([ticket], 512)) for ticket in tickets]
    together = losses_and_gradients(model, as_pack(tickets, 512))
    assert (torch.cat([losses for losses, _ in alone]) - together[0]).abs().max() < 0.02
    # Gradients of four passes add up to those of one: accumulation changes nothing.
    total = {name: sum(each[name] for _, each in alone) for name in together[1]}
    assert largest_error(total, together[1]) < 0.02


def test_losses_and_gradients_are_those_of_transformers_and_peft(trained, model, tickets):
    from peft import PeftModel

    run, last = trained("attention")
    export.export_checkpoint(run, last)
    export.export_adapter(run, last)
    base = checkpoint.load_model(BASE, torch.float32)
    judge = PeftModel.from_pretrained(base, run.adapter, is_trainable=True)
    expected = []
    for ticket in tickets:
        logits = judge(ticket[None, :-1]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, ticket[1:], reduction="none")
        losses.sum().backward()
        expected.append(losses.detach())
    losses, gradients = losses_and_gradients(model, as_pack(tickets, 512))
    assert (torch.cat(expected) - losses).abs().max() < 0.05
    theirs = {
        name.replace("base_model.model.", "").replace(".default", ""): parameter.grad
        for name, parameter in judge.named_parameters()
        if parameter.grad is not None
    }
    rows = convert.qkv_rows(gptoss.config_of(last))
    for layer in range(4):
        ours = f"decoder.layers.{layer}.self_attention."
        prefix = f"model.layers.{layer}.self_attn."
        found = {name.split(ours)[1]: each for name, each in gradients.items() if ours in name}
        a, b = (found[f"linear_qkv.adapter.linear_{side}.weight"] for side in ("in", "out"))
        shared = sum(theirs[f"{prefix}{letter}_proj.lora_A.weight"] for letter in "qkv")
        pairs = {"A": shared}, {"A": a}
        for letter, part in zip("qkv", rows, strict=True):
            pairs[0][letter] = theirs[f"{prefix}{letter}_proj.lora_B.weight"]
            pairs[1][letter] = b[part]
        for side, name in (("in", "A"), ("out", "B")):
            pairs[0][f"o{side}"] = theirs[f"{prefix}o_proj.lora_{name}.weight"]
            pairs[1][f"o{side}"] = found[f"linear_proj.adapter.linear_{side}.weight"]
        assert largest_error(*pairs) < 0.05


def test_import_is_the_same_model_in_both_dtypes(experiments):
    imported = experiments / "models" / "base"
    exact = parity.check_parity(BASE, imported, TEXTS, dtype="float32", tolerance=0.1)
    assert exact["same_argmax"] == 1 and "Transformer Engine (" in exact["attention"]
    rounded = parity.check_parity(BASE, imported, TEXTS, dtype="bfloat16", tolerance=16)
    assert rounded["mean_difference"] < 0.2 and rounded["same_argmax"] > 0.95


def test_layers_without_transformer_engine_are_the_same_model(tmp_path, monkeypatch):
    monkeypatch.setattr(gptoss, "config_class", lambda: gptoss.LocalGptOssConfig)
    import_proved(BASE, tmp_path / "local", torch.float32)
    exact = parity.check_parity(BASE, tmp_path / "local", TEXTS, dtype="float32", tolerance=0.1)
    assert exact["same_argmax"] == 1 and exact["attention"] == "Megatron-Core"
    rounded = parity.check_parity(BASE, tmp_path / "local", TEXTS, dtype="bfloat16", tolerance=16)
    assert rounded["mean_difference"] < 0.2 and rounded["same_argmax"] > 0.95


def test_adapters_of_experts_are_merged_as_they_train(trained):
    """Transformer Engine groups the experts; NeMo trains one adapter for all of them."""
    targets = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
    run, last = trained("experts", lora_targets=targets, lora_rank=4)
    export.export_checkpoint(run, last)
    export.export_adapter(run, last)
    factors = adapter.read_adapter(last).factors
    a, b = factors["model.layers.2.mlp.experts.gate_up_proj"]
    assert len(a) == len(b) == 8 and torch.equal(b[0], b[7])
    # Only the merged weights are rounded to bfloat16; the adapter in PEFT is not
    proof = parity.prove_export(run, last, TEXTS, dtype="float32", tolerance=10)
    assert proof["peft"]["max_difference"] < 0.1 and proof["peft"]["same_argmax"] > 0.98
    assert proof["merged"]["max_difference"] < 0.1
    assert proof["weights"] == {"changed": 24, "targeted": 24, "equal": 47}


def test_packed_training_learns_what_padded_training_learns(trained):
    run, _ = trained("attention")
    packed, _ = trained("packed", pack_tokens=256)
    history = [training.read_history(each)["val_loss"].dropna() for each in (run, packed)]
    assert history[1].iloc[-1] < history[1].iloc[0]
    assert abs(history[0].iloc[-1] - history[1].iloc[-1]) < 0.5
