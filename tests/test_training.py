"""Recipes hold what was asked for, training is repeatable, and the best checkpoint is found.

A random gpt-oss learns a few steps with NeMo.
"""

import io
import traceback

import pytest
import torch
from random_gptoss import QUEUES, save
from small_training import PROFILE, import_proved, prepare, train
from transformers import AutoTokenizer

from ticketlib import callbacks, gptoss, inference, resume, training
from ticketlib.checksums import write_checksums
from ticketlib.jsonl import read_jsonl, write_jsonl
from ticketlib.paths import Run, write_json

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    import_proved(save(folder / "base"), folder / "models" / "base")
    return folder


@pytest.fixture(scope="module")
def attention_run(experiments):
    return train(experiments, "attention")


def test_loss_on_answers_only_is_the_plain_loss_with_the_same_gradients(experiments):
    """Against NeMo's own forward step, on a batch with padding and with masks of unequal length."""
    from nemo.collections.llm.gpt.model.base import gpt_forward_step

    model = inference.load_model(experiments / "models" / "base", torch.float32).train()
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
    assert history["train_loss"].notna().all()
    assert history.dropna()["step"].tolist() == [3, 6, 8]  # Each third, and the last
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    assert attention_run.history.exists()


def test_same_seed_gives_the_same_losses_and_a_restart_replaces_the_run(experiments, attention_run):
    again = train(experiments, "again")
    first, second = (training.read_history(run)["train_loss"] for run in (attention_run, again))
    assert second.tolist() == pytest.approx(first.tolist(), abs=1e-5)
    (again.training / "stale").touch()
    made_from_it = (again.exported, again.adapter, again.exported_mxfp4)
    for folder in made_from_it:
        folder.mkdir()
    before = again.history.read_bytes()
    train(experiments, "again")  # It has ended: nothing is done
    assert all(folder.exists() for folder in made_from_it)
    assert again.history.read_bytes() == before
    base = experiments / "models" / "base"
    recipe = training.make_recipe(again, PROFILE, base, prompt_format="plain", lora_rank=4)
    training.run_recipe(again, recipe, restart=True)
    assert not (again.training / "stale").exists()
    assert not any(folder.exists() for folder in made_from_it)
    assert again.history.read_bytes() != before


def fake_checkpoints(run, losses, finished=True):
    """Folders with the names that rounding gives, and the losses as they are."""
    for step, loss in losses.items():
        shown = float("nan") if loss is None else loss
        folder = run.training / "checkpoints" / f"step={step}-val_loss={shown:.4f}"
        progress = {"step": step, "max_steps": max(losses), "val_loss": loss}
        progress["finished"] = finished and step == max(losses)
        write_json(folder / resume.PROGRESS_FILE, progress)
        write_checksums(folder)


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({5: 0.12344, 40: 0.12336}, 40),  # Both 0.1234 or 0.1233 when rounded
        ({5: 0.123441, 40: 0.123442}, 5),
        ({5: 9.5, 40: 10.5}, 5),
        ({5: 0.25, 40: 0.25}, 5),
        ({5: None, 40: 3.0}, 40),
    ],
)
def test_the_lowest_validation_loss_counts_not_the_name(tmp_path, losses, best):
    run = Run("best", str(tmp_path))
    fake_checkpoints(run, losses)
    assert training.find_checkpoint(run).name.startswith(f"step={best}-")


def test_no_checkpoint_is_given_of_a_training_that_has_not_ended_or_diverged(tmp_path):
    run = Run("unfinished", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="left no checkpoint. Run 03_train_lora.ipynb"):
        training.find_checkpoint(run)
    fake_checkpoints(run, {5: 0.5}, finished=False)
    with pytest.raises(FileNotFoundError, match='step 5 of 5.* run_name = "unfinished" first'):
        training.find_checkpoint(run)
    run = Run("diverged", str(tmp_path))
    fake_checkpoints(run, {5: None, 40: None})
    with pytest.raises(ValueError, match="training diverged. Lower learning_rate"):
        training.find_checkpoint(run)


def test_recipe_takes_parameters_over_the_profile(experiments):
    run = prepare(experiments, "recipe")
    recipe = training.make_recipe(
        run,
        PROFILE,
        experiments / "models" / "base",
        prompt_format="plain",
        max_steps=40,
        val_check_interval=5,
        patience=2,
        learning_rate=1e-3,
        lora_rank=4,
        lora_targets=["linear_fc1"],
        micro_batch_size=2,
        global_batch_size=4,
        seq_length=128,
    )
    assert recipe.trainer.max_steps == 40 and recipe.optim.config.lr == 1e-3
    assert recipe.trainer.val_check_interval == 5 and recipe.trainer.callbacks[-1].patience == 2
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
    described |= {"val_check_interval": 5, "patience": 2}
    assert described.items() <= training.describe_recipe(recipe).items()
    plain = {"peft_scheme": "none", "lora_rank": 0, "val_check_interval": 3, "patience": 0}
    assert plain.items() <= training.describe_recipe(full).items()


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
        ({"patience": -1}, "patience is -1; 0 or more are accepted"),
        ({"val_check_interval": -5, "lora_rank": -8}, "val_check_interval is -5, lora_rank is -8;"),
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


def test_trained_parameters_are_shown_by_family(experiments, monkeypatch):
    lines = io.StringIO()
    monkeypatch.setattr(callbacks, "console", lambda: lines)
    train(experiments, "families", lora_targets=["linear_qkv", "linear_fc2"], lora_rank=4)
    # 4 layers: 64 -> 256 fused rows; 4 experts 96 -> 64 each
    shown = f"linear_qkv {4 * 4 * (64 + 256):,}, linear_fc2 {4 * 4 * 4 * (96 + 64):,}; 15,360 of"
    assert shown in lines.getvalue()
    train(experiments, "families-full", peft_scheme="none")
    for family in ("word_embeddings", "router", "softmax_offset", "layernorm", "linear_fc1"):
        assert f"{family} " in lines.getvalue()


def test_a_target_of_an_edited_recipe_that_matches_nothing_is_an_error(experiments):
    """NeMo trains the others and says nothing."""
    run = prepare(experiments, "edited")
    recipe = training.make_recipe(
        run, PROFILE, experiments / "models" / "base", prompt_format="plain"
    )
    recipe.peft.target_modules = ["linear_qkv", "linear_q"]
    with pytest.raises(ValueError, match="'linear_q' matches no module.*linear_qkv"):
        training.run_recipe(run, recipe)


def test_what_is_not_committed_stays_out_of_the_run(experiments, monkeypatch):
    """NeMo writes `git diff` into the run's folder; a token may be in it."""
    monkeypatch.setattr("nemo.utils.exp_manager.get_git_diff", lambda: "hf_planted")
    run = train(experiments, "diff")
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert (run.training / "git-info.log") in files
    assert not [path for path in files if b"hf_planted" in path.read_bytes()]


def test_a_second_training_of_a_session_may_have_another_batch_size(experiments):
    """Megatron-Core keeps the batch size of the first and stops with a bare AssertionError."""
    for size in (8, 16):
        run = train(experiments, f"batch-{size}", global_batch_size=size, max_steps=2)
        assert len(training.read_history(run)) == 2


def test_a_full_gpu_is_answered_with_what_to_do(experiments, monkeypatch):
    def fill(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(callbacks.Progress, "on_train_batch_end", fill)
    with pytest.raises(torch.OutOfMemoryError) as error:
        train(experiments, "full", max_steps=2)
    assert "halve pack_tokens" in "".join(traceback.format_exception(error.value)).splitlines()[-1]
