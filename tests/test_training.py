"""Recipes hold what was asked for, training is repeatable, what is exported is what was trained.

A random gpt-oss learns a few steps with NeMo. The adapter in NeMo, the merged checkpoint and the
exported folder in transformers must give the same logits, for LoRA on attention and experts and
for full training.
"""

from dataclasses import replace

import pytest
import torch
from nemo.collections import llm
from random_gptoss import QUEUES, TEXTS, import_base, save
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ticketlib import export, gptoss, parity, training
from ticketlib.jsonl import read_jsonl, write_jsonl
from ticketlib.paths import Run
from ticketlib.profiles import get_profile

TOLERANCE = 1e-5
PROFILE = replace(
    get_profile("tiny"), max_steps=8, micro_batch_size=8, global_batch_size=8, seq_length=96
)
EXPERTS = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    import_base(save(folder / "base"), folder / "models" / "base")
    parity.save_parity(folder / "models" / "base", {"max_difference": 0.0})
    return folder


def prepare(experiments, name):
    run = Run(name, str(experiments))
    records = [
        {"input": f"{TEXTS[2]} {i}: {QUEUES[i % 3]}?", "output": f" {QUEUES[i % 3]}"}
        for i in range(48)
    ]
    for path in (run.training_jsonl, run.validation_jsonl, run.test_jsonl):
        write_jsonl(path, records)
    return run


def train(experiments, name, **settings):
    run = prepare(experiments, name)
    recipe = training.make_recipe(
        run, PROFILE, experiments / "models" / "base", prompt_format="plain", **settings
    )
    training.run_recipe(run, recipe)
    return run


@pytest.fixture(scope="module")
def attention_run(experiments):
    return train(experiments, "attention")


def export_run(run):
    checkpoint = training.find_checkpoint(run)
    return export.export_checkpoint(run, export.merge_adapter(run, checkpoint)), checkpoint


def changed_tensors(experiments, exported):
    before, after = (load_file(f / "model.safetensors") for f in (experiments / "base", exported))
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_adapter_equals_exported_and_only_targets_change(experiments, attention_run):
    exported, checkpoint = export_run(attention_run)
    result = parity.check_parity(exported, checkpoint, TEXTS, dtype="float32", tolerance=TOLERANCE)
    assert result["same_argmax"] == 1
    assert changed_tensors(experiments, exported) == {
        f"model.layers.{layer}.self_attn.{name}_proj.weight"
        for layer in range(4)
        for name in "qkvo"
    }


def test_expert_adapters_equal_exported(experiments):
    run = train(experiments, "experts", lora_targets=EXPERTS, lora_rank=4)
    exported, checkpoint = export_run(run)
    parity.check_parity(exported, checkpoint, TEXTS, dtype="float32", tolerance=TOLERANCE)
    changed = changed_tensors(experiments, exported)
    assert "model.layers.0.mlp.experts.gate_up_proj" in changed
    assert "model.layers.3.mlp.experts.down_proj" in changed
    assert not [name for name in changed if "bias" in name or "router" in name]


def test_full_training_exports_without_a_merge(experiments):
    run = train(experiments, "full", peft_scheme="none", learning_rate=1e-3)
    exported, checkpoint = export_run(run)
    parity.check_parity(exported, checkpoint, TEXTS, dtype="float32", tolerance=TOLERANCE)
    assert "lm_head.weight" in changed_tensors(experiments, exported)
    assert not run.merged.exists()


def test_stock_merge_in_bf16_would_be_off(attention_run, tmp_path):
    """The correction matters: without it, the same proof fails."""
    checkpoint = training.find_checkpoint(attention_run)
    llm.peft.merge_lora(str(checkpoint), str(tmp_path / "merged"))
    llm.export_ckpt(path=tmp_path / "merged", target="hf", output_path=tmp_path / "hf")
    with pytest.raises(ValueError, match="differ"):
        parity.check_parity(
            tmp_path / "hf", checkpoint, TEXTS, dtype="float32", tolerance=TOLERANCE
        )


def test_exported_folder_loads_and_generates(attention_run):
    exported, _ = export_run(attention_run)
    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    prompt = tokenizer(TEXTS[2], return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=2).shape[1] > prompt["input_ids"].shape[1]
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(exported).chat_template


def test_loss_on_answers_only_is_the_plain_loss_with_the_same_gradients(experiments):
    """Against NeMo's own forward step, on a batch with padding and with masks of unequal length."""
    from nemo.collections.llm.gpt.model.base import gpt_forward_step

    model = parity.load_model(experiments / "models" / "base", torch.float32).train()
    tokens = torch.randint(6, 380, (3, 33), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(3, 32)
    mask[0, 20:25] = mask[1, 28:] = mask[2, 5:7] = 1
    batch = {
        "tokens": tokens[:, :-1],
        "labels": tokens[:, 1:],
        "loss_mask": mask,
        "position_ids": torch.arange(32).expand(3, 32),
        "attention_mask": torch.triu(torch.ones(32, 32), 1).bool()[None, None].expand(3, 1, 32, 32),
    }
    results = []
    for step in (gpt_forward_step, gptoss.answers_forward_step):
        model.zero_grad()
        losses = step(model, batch)
        assert losses.shape == mask.shape
        ((losses * mask).sum() / mask.sum()).backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((losses.detach() * mask, grads))
    (plain, plain_grads), (ours, our_grads) = results
    assert ours.sum() > 1 and plain_grads.abs().max() > 1e-3
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_grads, plain_grads, atol=1e-6, rtol=1e-4)


def test_history_holds_every_step(attention_run):
    history = training.read_history(attention_run)
    assert history["step"].tolist() == list(range(1, 9))
    assert history["train_loss"].notna().all() and history["val_loss"].notna().sum() == 4
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    assert attention_run.history.exists()


def test_same_seed_gives_the_same_losses_and_replaces_the_run(experiments, attention_run):
    again = train(experiments, "again")
    first, second = (training.read_history(run)["train_loss"] for run in (attention_run, again))
    assert second.tolist() == pytest.approx(first.tolist(), abs=1e-5)
    (again.training / "stale").touch()
    again.exported.mkdir()
    train(experiments, "again")
    assert not (again.training / "stale").exists()
    assert not again.exported.exists()


def test_interrupted_training_is_not_taken_for_a_finished_one(experiments):
    run = prepare(experiments, "interrupted")
    with pytest.raises(FileNotFoundError, match="Run 03_train_lora.ipynb"):
        training.find_checkpoint(run)
    (run.training / "checkpoints" / "model_name=0--val_loss=1.00-step=3-last").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='run_name = "interrupted"'):
        training.find_checkpoint(run)


def test_latest_step_counts_not_the_name(experiments):
    run = prepare(experiments, "steps")
    for loss, step in (("9.00", 5), ("0.10", 40)):
        name = f"model_name=0--val_loss={loss}-step={step}-consumed_samples=8.0-last"
        (run.training / "checkpoints" / name / "context").mkdir(parents=True)
    assert "step=40" in training.find_checkpoint(run).name


def test_recipe_takes_parameters_over_the_profile(experiments):
    run = prepare(experiments, "recipe")
    recipe = training.make_recipe(
        run,
        PROFILE,
        experiments / "models" / "base",
        prompt_format="plain",
        max_steps=40,
        learning_rate=1e-3,
        lora_rank=4,
        lora_targets=["linear_fc1"],
        micro_batch_size=2,
        global_batch_size=4,
        seq_length=128,
    )
    assert recipe.trainer.max_steps == 40 and recipe.optim.config.lr == 1e-3
    assert recipe.peft.dim == 4 and recipe.peft.alpha == 8
    assert recipe.peft.target_modules == ["linear_fc1"]
    data = recipe.data
    assert (data.micro_batch_size, data.global_batch_size, data.seq_length) == (2, 4, 128)
    assert data.dataset_kwargs == {"prompt_template": "{input} {output}"}
    described = training.describe_recipe(recipe)
    assert described["lora_rank"] == 4 and described["lora_targets"] == "linear_fc1"
    assert (described["max_steps"], described["learning_rate"]) == (40, 1e-3)
    full = training.make_recipe(
        run, PROFILE, experiments / "models" / "base", prompt_format="plain", peft_scheme="none"
    )
    assert training.describe_recipe(full)["lora_rank"] == 0


def test_data_that_nemo_would_misread_is_refused(experiments):
    run, base = prepare(experiments, "faulty"), experiments / "models" / "base"
    with pytest.raises(ValueError, match='prompt_format is "harmony", but .*training.jsonl'):
        training.make_recipe(run, PROFILE, base)
    options = {"prompt_format": "plain"}
    write_jsonl(run.validation_jsonl, read_jsonl(run.validation_jsonl)[:5])
    with pytest.raises(ValueError, match="validation.jsonl has 5 records, and a step takes 8"):
        training.make_recipe(run, PROFILE, base, **options, micro_batch_size=4, global_batch_size=8)
    stale = run.dataset / "training.jsonl.idx.npy"
    stale.write_bytes(b"of an older version")
    options |= {"micro_batch_size": 1, "global_batch_size": 4}
    training.make_recipe(run, PROFILE, base, **options)
    assert not stale.exists()
    with run.training_jsonl.open("a") as file:
        file.write("not JSON\n")
    with pytest.raises(ValueError, match="line 49: is not JSON"):
        training.make_recipe(run, PROFILE, base, **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_targets": ["q_proj"]}, "match no module. Accepted"),
        ({"peft_scheme": "dora"}, '"lora" and "none" are accepted'),
        ({"micro_batch_size": 3, "global_batch_size": 8}, "must be a multiple"),
    ],
)
def test_bad_settings_are_refused(experiments, settings, message):
    run = prepare(experiments, "bad")
    with pytest.raises(ValueError, match=message):
        training.make_recipe(run, PROFILE, experiments / "models" / "base", **settings)


def test_training_refuses_missing_data_and_an_unproved_import(experiments):
    with pytest.raises(FileNotFoundError, match="Run 02_prepare_jsonl.ipynb"):
        training.make_recipe(Run("new", str(experiments)), PROFILE, experiments / "models" / "base")
    run = prepare(experiments, "unproved")
    with pytest.raises(FileNotFoundError, match="parity.json not found"):
        training.make_recipe(run, PROFILE, experiments / "models" / "other")


@pytest.mark.parametrize("prompt_format", ["harmony", "plain"])
def test_nemo_tokenizes_as_the_scorer_does(experiments, prompt_format):
    """NeMo's dataset turns a record into exactly input + output + end token, loss on the answer."""
    from nemo.collections.llm.gpt.data.core import create_sft_dataset

    from ticketlib import prompts

    run = prepare(experiments, f"tokens-{prompt_format}")
    prompt = prompts.render_prompt(
        "Größe", " x\n\ny <|end|>", queues=QUEUES, prompt_format=prompt_format
    )
    answer = prompts.render_answer(QUEUES[1], prompt_format=prompt_format)
    write_jsonl(run.training_jsonl, [{"input": prompt, "output": answer}])
    tokenizer = gptoss.GptOssImporter(experiments / "base").tokenizer
    template = training.PROMPT_TEMPLATES[prompt_format]
    dataset = create_sft_dataset(
        run.training_jsonl, tokenizer, seq_length=2048, prompt_template=template
    )
    hf = AutoTokenizer.from_pretrained(experiments / "base")
    ids = [hf(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)]
    assert dataset[0]["input_ids"] == [*ids[0], *ids[1], hf.eos_token_id]
    assert dataset[0]["answer_start_idx"] == len(ids[0])
