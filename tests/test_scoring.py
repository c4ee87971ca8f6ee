"""Scoring is exact: one tree pass equals a plain forward pass for each prompt and answer.

A tiny random gpt-oss with everything on (experts, sinks, biases, YaRN, a sliding window shorter
than the prompts) is compared with a loop over transformers' own forward pass, which shares no code
with the tree: no 4D mask, no padding, no batch.
"""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GptOssConfig,
    GptOssForCausalLM,
    PreTrainedTokenizerFast,
)

from ticketlib import scoring

WORDS = "printer router invoice refund password does not work since today please help über".split()
QUEUES = ["IT Support", "IT", "Human Resources", "IT Support Desk", "Billing and Payments"]
HARMONY = [f"<|channel|>final<|message|>{queue}" for queue in QUEUES]
WINDOW = 16
SPECIAL = ["<|return|>", "<|endoftext|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
TINY_BASE = Path(__file__).parents[1] / "data" / "tiny-gpt-oss"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Passes this small are slower with two threads, on a busy machine 50 times."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(WORDS), "user assistant final"] * 9 + QUEUES * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=SPECIAL[0], pad_token=SPECIAL[1], padding_side="right"
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = GptOssConfig(
        num_hidden_layers=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        head_dim=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=WINDOW,
        initializer_range=0.08,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    model = GptOssForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_(0, 1)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.05)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id
    )
    return model


@pytest.fixture(scope="module")
def prompts(tokenizer):
    rng = random.Random(0)
    prompts = [
        f"<|start|>user<|message|>{' '.join(rng.choices(WORDS, k=k))}<|end|><|start|>assistant"
        for k in (1, 40, 3, 22, 9, 60, 9)
    ]
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert min(lengths) < WINDOW and max(lengths) > 3 * WINDOW
    return prompts


def score_one_by_one(model, tokenizer, prompts, answers):
    """log p(answer + end | prompt), one plain forward pass for each pair."""
    scores = np.zeros((len(prompts), len(answers)))
    for i, prompt in enumerate(prompts):
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        for j, answer in enumerate(answers):
            answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
            answer_ids = [*answer_ids, tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([prompt_ids + answer_ids])).logits[0]
            log_probs = logits.double().log_softmax(-1)
            for k, token in enumerate(answer_ids):
                scores[i, j] += log_probs[len(prompt_ids) + k - 1, token].item()
    return scores


@pytest.mark.parametrize("answers", [HARMONY, [" " + queue for queue in QUEUES]])
def test_equals_scoring_each_answer_by_itself(model, tokenizer, prompts, answers):
    expected = score_one_by_one(model, tokenizer, prompts, answers)
    scores = scoring.score_labels(model, tokenizer, prompts, answers)
    assert scores.dtype == np.float64
    assert scores.shape == (len(prompts), len(answers))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("max_batch_tokens", [1, 150, 300])
def test_batches_and_padding_do_not_change_the_result(model, tokenizer, prompts, max_batch_tokens):
    one_batch = scoring.score_labels(model, tokenizer, prompts, HARMONY, max_batch_tokens=10**6)
    batched = scoring.score_labels(
        model, tokenizer, prompts, HARMONY, max_batch_tokens=max_batch_tokens
    )
    np.testing.assert_allclose(batched, one_batch, rtol=0, atol=1e-5)


def test_order_of_prompts_and_answers_is_kept(model, tokenizer, prompts):
    scores = scoring.score_labels(model, tokenizer, prompts, HARMONY)
    reversed_scores = scoring.score_labels(model, tokenizer, prompts[::-1], HARMONY[::-1])
    np.testing.assert_allclose(reversed_scores[::-1, ::-1], scores, rtol=0, atol=1e-5)
    assert np.ptp(scores, axis=0).min() > 1e-3, (
        "prompts must differ for this test to mean something"
    )


def test_tree_shares_prefixes_and_hides_other_branches():
    tree = scoring.build_answer_tree([[5, 6, 0], [5, 0], [5, 7, 8, 0]])
    assert tree.tokens.tolist() == [5, 6, 7, 8]
    assert tree.depths.tolist() == [1, 2, 2, 3]
    assert tree.is_visible.int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 1, 0],
        [1, 0, 1, 1],
    ]
    assert tree.owners.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert tree.targets.tolist() == [5, 6, 0, 5, 0, 5, 7, 8, 0]
    assert tree.nodes.tolist() == [0, 1, 2, 0, 1, 0, 1, 3, 4]


def test_only_label_positions_reach_the_output_layer(model, tokenizer, prompts):
    seen = []
    hook = model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    scoring.score_labels(model, tokenizer, prompts[:1], ["IT", "IT Support"])
    hook.remove()
    ids = [tuple(tokenizer(answer)["input_ids"]) for answer in ("IT", "IT Support")]
    n_nodes = len({answer[:end] for answer in ids for end in range(len(answer) + 1)})
    assert [shape[1] for shape in seen] == [n_nodes]


def test_label_probabilities_sum_to_one():
    log_probs = np.log([[0.2, 0.1, 0.1], [0.001, 0.003, 1e-300]])
    probabilities = scoring.label_probabilities(log_probs)
    np.testing.assert_allclose(probabilities, [[0.5, 0.25, 0.25], [0.25, 0.75, 0]], atol=1e-12)
    assert scoring.label_probabilities(np.array([[-1e4, -1e4]])).tolist() == [[0.5, 0.5]]
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        scoring.label_probabilities([0.1, 0.2])


def test_no_prompts_give_no_rows(model, tokenizer):
    assert scoring.score_labels(model, tokenizer, [], HARMONY).shape == (0, len(HARMONY))
    assert scoring.generate_answers(model, tokenizer, []) == []


def test_bad_input_is_named(model, tokenizer, monkeypatch):
    with pytest.raises(ValueError, match="answers is empty"):
        scoring.score_labels(model, tokenizer, ["a"], [])
    with pytest.raises(ValueError, match=r"prompts\[1\] is ''"):
        scoring.score_labels(model, tokenizer, ["a", ""], ["IT"])
    with pytest.raises(ValueError, match=r"answers\[0\] is ''"):
        scoring.score_labels(model, tokenizer, ["a"], [""])
    monkeypatch.setattr(model.config, "_attn_implementation", "sdpa")
    with pytest.raises(ValueError, match='"sdpa".*"eager"'):
        scoring.score_labels(model, tokenizer, ["a"], ["IT"])


def test_nan_is_an_error(model, tokenizer):
    hook = model.lm_head.register_forward_hook(lambda _, __, output: output * torch.nan)
    with pytest.raises(ValueError, match="NaN for 2 of 2 prompts"):
        scoring.score_labels(model, tokenizer, ["a", "b"], ["IT"])
    hook.remove()


def test_generation_is_greedy_and_independent_of_the_batch(model, tokenizer, prompts):
    answers = scoring.generate_answers(model, tokenizer, prompts, max_new_tokens=6)
    assert answers == scoring.generate_answers(
        model, tokenizer, prompts, max_new_tokens=6, batch_size=2
    )
    assert tokenizer.padding_side == "right"
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        new = []
        while len(new) < 6 and (not new or new[-1] != tokenizer.eos_token_id):
            with torch.no_grad():
                new.append(model(torch.tensor([ids + new])).logits[0, -1].argmax().item())
        new = [token for token in new if token != tokenizer.eos_token_id]
        assert answer == tokenizer.decode(new, skip_special_tokens=False)


def test_generation_stops_at_every_end_and_keeps_special_tokens(
    model, tokenizer, prompts, monkeypatch
):
    """Force "<|channel|>IT" and then an end token, another one for each row."""
    channel, it, end = tokenizer.convert_tokens_to_ids(["<|channel|>", "I", "<|end|>"])
    monkeypatch.setattr(model.generation_config, "eos_token_id", [tokenizer.eos_token_id, end])
    step = {"n": 0}

    def force(_, __, output):
        wanted = [[channel, channel], [it, it], [end, it], [it, tokenizer.eos_token_id]]
        row = wanted[min(step["n"], 3)]
        step["n"] += 1
        return torch.nn.functional.one_hot(torch.tensor(row), output.shape[-1])[:, None].float()

    hook = model.lm_head.register_forward_hook(force)
    short_then_long = sorted(prompts[:2], key=len)
    answers = scoring.generate_answers(model, tokenizer, short_then_long, max_new_tokens=9)
    hook.remove()
    assert answers == ["<|channel|>I", "<|channel|>II"]
    assert step["n"] == 4


def test_load_model_gives_back_what_was_saved(model, tokenizer, prompts, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, loaded_tokenizer = scoring.load_model(tmp_path, device="cpu")
    assert loaded.dtype == torch.float32 and not loaded.training
    np.testing.assert_allclose(
        scoring.score_labels(loaded, loaded_tokenizer, prompts[:2], HARMONY),
        scoring.score_labels(model, tokenizer, prompts[:2], HARMONY),
        rtol=0,
        atol=1e-6,
    )
    half, _ = scoring.load_model(tmp_path, device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    np.testing.assert_allclose(
        scoring.score_labels(half, tokenizer, prompts[:2], HARMONY),
        scoring.score_labels(model, tokenizer, prompts[:2], HARMONY),
        rtol=0.05,
    )
    with pytest.raises(ValueError, match='"int8" is unknown'):
        scoring.load_model(tmp_path, dtype="int8")


def test_load_model_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json in it is missing"):
        scoring.load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="the folder is missing"):
        scoring.load_model(tmp_path / "nowhere")


def test_a_full_gpu_is_told_with_what_to_do(model, tokenizer, prompts, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr(scoring, "_score_batch", fail)
    with pytest.raises(torch.OutOfMemoryError) as error:
        scoring.score_labels(model, tokenizer, prompts, HARMONY, max_batch_tokens=4096)
    assert "Halve max_batch_tokens (4096)" in error.value.__notes__[0]


@pytest.mark.skipif(not (TINY_BASE / "config.json").is_file(), reason=f"{TINY_BASE} is not there")
def test_the_shipped_base_model_is_scored_exactly():
    model, tokenizer = scoring.load_model(TINY_BASE, device="cpu")
    prompts = ["<|start|>user<|message|>Body: " + "my printer is broken. " * k for k in (1, 30)]
    np.testing.assert_allclose(
        scoring.score_labels(model, tokenizer, prompts, HARMONY),
        score_one_by_one(model, tokenizer, prompts, HARMONY),
        rtol=0,
        atol=1e-4,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives(model, tokenizer, prompts, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = scoring.score_labels(model, tokenizer, prompts, HARMONY)
    for dtype, tolerance in {"float32": 1e-3, "": 1.0}.items():
        on_gpu, _ = scoring.load_model(tmp_path, dtype=dtype)
        assert on_gpu.device.type == "cuda"
        assert on_gpu.dtype == (torch.float32 if dtype else torch.bfloat16)
        scores = scoring.score_labels(on_gpu, tokenizer, prompts, HARMONY)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)
        one_by_one = scoring.score_labels(on_gpu, tokenizer, prompts, HARMONY, max_batch_tokens=1)
        np.testing.assert_allclose(scores, one_by_one, rtol=0, atol=tolerance)
        answers = scoring.generate_answers(on_gpu, tokenizer, prompts, max_new_tokens=4)
        assert len(answers) == len(prompts)
