"""Proves what data/ promises.

Tickets: the script beside tickets.csv makes the shipped bytes again; columns, queues, languages,
missing subjects, line breaks, placeholders, paraphrases and wrong labels have the shares that the
README names; TF-IDF with logistic regression finds them neither easy nor hopeless; other seeds give
other tickets. Tiny model: small enough for git, every feature of gpt-oss on and not trivial, its
tokenizer loses no character, its prompt is that of the chat template, and it names the topic of
tickets that it has not seen, but does not know queues.
"""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import import_script

DATA = Path(__file__).parents[1] / "data"
TINY = DATA / "tiny-gpt-oss"


make_tickets = import_script(DATA / "make_tickets.py")
build = import_script(TINY / "build_tiny_gpt_oss.py")


@pytest.fixture(scope="module")
def tickets() -> pd.DataFrame:
    """The shipped tickets with their hidden columns."""
    return make_tickets.generate_tickets(make_tickets.SHIPPED_ROWS, make_tickets.SHIPPED_SEED)


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def config():
    return json.loads((TINY / "config.json").read_text())


@pytest.fixture(scope="module")
def weights():
    from safetensors import safe_open

    with safe_open(TINY / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def test_script_makes_the_shipped_file(tmp_path):
    rows = make_tickets.draw_tickets(make_tickets.SHIPPED_ROWS, seed=make_tickets.SHIPPED_SEED)
    make_tickets.write_csv(tmp_path / "tickets.csv", rows)
    assert (tmp_path / "tickets.csv").read_bytes() == (DATA / "tickets.csv").read_bytes()


def test_shipped_file_reads_as_made(tickets):
    shipped = pd.read_csv(DATA / "tickets.csv", keep_default_na=False, dtype=str)
    columns = "subject body answer type queue priority language version".split()
    assert list(shipped.columns) == columns + [f"tag_{i}" for i in range(1, 9)]
    assert shipped.equals(tickets[shipped.columns])
    assert (shipped.body.str.strip() != "").all()
    assert not shipped.body.duplicated().any()
    assert set(shipped.type) == {"Incident", "Request", "Problem", "Change"}
    assert set(shipped.priority) == {"low", "medium", "high"}
    # No choice or slot of a phrase bank is left unfilled.
    texts = shipped.subject + shipped.body + shipped.answer
    assert not texts.str.contains(r"[{}\[\]]").any()


def test_queues_have_the_proportions_of_the_kaggle_file(tickets):
    expected = pd.Series(make_tickets.QUEUE_COUNTS) / sum(make_tickets.QUEUE_COUNTS.values())
    shares = tickets.queue.value_counts(normalize=True)
    assert set(shares.index) == set(expected.index)
    assert (shares - expected).abs().max() < 0.025
    assert shares.idxmax() == "Technical Support"
    assert tickets.queue.value_counts().min() >= 20


def test_shares_named_in_the_readme(tickets):
    assert tickets.language.value_counts(normalize=True)["en"] == pytest.approx(0.57, abs=0.03)
    assert (tickets.subject == "").mean() == pytest.approx(0.13, abs=0.02)
    assert tickets.body.str.contains(r"\n", regex=False).mean() == pytest.approx(0.45, abs=0.03)
    assert not tickets.body.str.contains("\n").any()
    assert tickets.body.str.contains(r"<\w+>").mean() == pytest.approx(0.04, abs=0.015)
    assert tickets.body.str.len().mean() == pytest.approx(250, abs=25)
    assert tickets.body.str.len().max() <= 1000
    sizes = tickets.groupby("group").body.transform("size")
    assert sizes.max() == 3
    assert 0.22 < (sizes > 1).mean() < 0.32


def test_wrong_labels_are_few_and_mostly_between_the_two_support_queues(tickets):
    wrong = tickets[tickets.queue != tickets.true_queue]
    assert len(wrong) / len(tickets) == pytest.approx(0.06, abs=0.01)
    pair = {"Technical Support", "Product Support"}
    assert (wrong.queue.isin(pair) & wrong.true_queue.isin(pair)).mean() > 0.6
    same = tickets.groupby("group").queue.nunique()[tickets.groupby("group").size() > 1] == 1
    assert same.mean() > 0.9


def test_other_seeds_give_other_tickets(tickets):
    other = make_tickets.generate_tickets(2000, 1)
    assert not set(other.body) & set(tickets.body)
    assert other.equals(make_tickets.generate_tickets(2000, 1))
    with pytest.raises(ValueError, match="n = 0"):
        make_tickets.generate_tickets(0, 1)


def test_tfidf_finds_the_tickets_neither_easy_nor_hopeless(tickets):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupShuffleSplit

    texts, queues = (tickets.subject + "\n" + tickets.body).to_numpy(), tickets.queue.to_numpy(str)
    scores = []
    splits = GroupShuffleSplit(2, test_size=0.2, random_state=0)
    for training, test in splits.split(texts, groups=tickets.group):
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        model = LogisticRegression(C=10, max_iter=60, tol=1e-2)
        model.fit(vectorizer.fit_transform(texts[training]), queues[training])
        scores.append(model.score(vectorizer.transform(texts[test]), queues[test]))
    assert 0.70 < min(scores) <= max(scores) < 0.88, scores


def test_every_topic_is_named_by_no_queue():
    topics = make_tickets.read_banks()[1]
    names = {topic["name"] for topic in topics}
    assert len(names) == len(topics) == 72
    assert not names & set(make_tickets.QUEUE_COUNTS)
    for topic in topics:
        assert topic["queue"] in make_tickets.QUEUE_COUNTS
        for language in ("en", "de"):
            assert len(topic[language]["says"]) >= 5 and len(topic[language]["about"]) >= 4


def test_tiny_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in TINY.iterdir() if path.is_file()}
    assert sum(files.values()) <= 6e6
    needed = "config.json generation_config.json model.safetensors tokenizer.json README.rst"
    needed += " tokenizer_config.json special_tokens_map.json chat_template.jinja"
    assert set(needed.split()) <= set(files)


def test_tiny_config_has_every_feature_of_gpt_oss(config, tickets, tokenizer):
    assert config["architectures"] == ["GptOssForCausalLM"]
    for name in "vocab_size hidden_size intermediate_size head_dim sliding_window".split():
        assert config[name] % 32 == 0, name
    assert 1 < config["num_experts_per_tok"] < config["num_local_experts"]
    assert 1 < config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["layer_types"] == ["sliding_attention", "full_attention"] * 2
    rope = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
    rope |= {"truncate": False, "original_max_position_embeddings": 4096}
    assert (config["rope_theta"], config["rope_scaling"]) == (150000, rope)
    assert config["max_position_embeddings"] == 32 * 4096
    assert config["attention_bias"] and not config["tie_word_embeddings"]
    assert config["swiglu_limit"] == 7.0
    lengths = [len(ids) for ids in tokenizer(list(tickets.body[:300])).input_ids]
    assert config["sliding_window"] < np.median(lengths)


def test_tiny_weights_are_not_trivial(weights, config):
    import torch

    assert {str(w.dtype) for w in weights.values()} == {"torch.bfloat16"}
    for name, weight in weights.items():
        assert torch.isfinite(weight).all(), name
        if name.endswith(("bias", "sinks")):
            assert (weight != 0).float().mean() > 0.9 and weight.float().std() > 1e-3, name
        if name.endswith("norm.weight"):
            assert weight.float().std() > 1e-3, name
    assert sum(name.endswith("sinks") for name in weights) == config["num_hidden_layers"]
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_tiny_model_uses_window_yarn_sinks_and_clamp():
    """Each feature switched off changes the logits: none is there in name only."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    ids = torch.tensor([build.read_tokenizer(str(TINY / "tokenizer.json"))(prompt_of("x"))])

    def logits(edit=lambda model: None, **changes):
        config = GptOssConfig.from_pretrained(TINY, **changes)
        model = GptOssForCausalLM.from_pretrained(
            TINY, config=config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        edit(model)
        with torch.inference_mode():
            return model(ids).logits

    def without(suffix):
        def edit(model):
            for name, weight in model.named_parameters():
                if name.endswith(suffix):
                    weight.data.fill_(-1e4 if suffix == "sinks" else 0)

        return edit

    def unclamped(model):
        for layer in model.model.layers:
            layer.mlp.experts.limit = 1e9

    reference = logits()
    assert torch.equal(reference, logits())
    others = {
        "window": logits(sliding_window=33),
        "yarn": logits(rope_scaling=None),
        "sinks": logits(without("sinks")),
        "expert bias": logits(without("down_proj_bias")),
        "attention bias": logits(without("q_proj.bias")),
        "clamp": logits(unclamped),
        "top-k": logits(num_experts_per_tok=3),
    }
    for name, other in others.items():
        assert (reference - other).abs().max() > 1e-2, name


def prompt_of(body: str) -> str:
    pieces = build.render_conversation(build.ASKED["topic"][0], f"Body: {body}", "")
    return "".join(text for text, _ in pieces[:3])


def test_training_prompts_are_those_of_the_chat_template(tokenizer):
    messages = [
        {"role": "developer", "content": build.ASKED["topic"][0]},
        {"role": "user", "content": "Body: Ärger mit dem Paket 📦"},
    ]
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, reasoning_effort="low"
    )
    rendered = re.sub(r"(?<=Current date: )[\d-]+", "2025-08-05", rendered)
    assert rendered == prompt_of("Ärger mit dem Paket 📦")


@pytest.mark.parametrize(
    "text",
    [
        "Grüße, schöne Straße",
        "📦👩‍🔧 done",
        r"a\n\nb <name>",
        "日本語 и ελληνικά",
        "\n- x\r\n\t 1234567",
    ],
)
def test_tokenizer_loses_no_character(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_tokenizer_knows_harmony_and_queues(tokenizer, config):
    special = tokenizer.convert_tokens_to_ids(build.SPECIAL)
    assert special == list(range(len(build.SPECIAL)))
    assert len(tokenizer) == config["vocab_size"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|return|>", "<|endoftext|>")
    generation = json.loads((TINY / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.convert_tokens_to_ids(["<|return|>", "<|call|>"])
    assert generation["pad_token_id"] == config["pad_token_id"] == tokenizer.pad_token_id
    answers = tokenizer(list(make_tickets.QUEUE_COUNTS), add_special_tokens=False).input_ids
    assert len({ids[0] for ids in answers}) == len(answers)
    assert max(map(len, answers)) <= 4


def test_pretraining_tells_no_queue():
    import random

    rng, topics = random.Random(0), make_tickets.read_banks()[1]
    rows = make_tickets.draw_tickets(1500, seed=5)
    for row in rows:
        *prompt, (answer, weight) = build.draw_task(rng, row, topics)
        if weight == 1 and not any("\nItem" in text or "Item " in text for text, _ in prompt[1:2]):
            assert answer.removesuffix("<|return|>").strip() not in make_tickets.QUEUE_COUNTS
            words = set(re.findall("[a-z]+", answer.lower())) if "," in answer else set()
            assert not words & build.TELLTALE


def test_tiny_model_names_topics_of_unseen_tickets(tickets, tokenizer):
    """Tickets of the shipped seed, which pre-training left out."""
    import torch
    from transformers import GptOssForCausalLM

    model = GptOssForCausalLM.from_pretrained(
        TINY, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    right, n = 0, 40
    for row in tickets.to_dict("records")[:n]:
        pieces = build.render_conversation(
            build.ASKED["topic"][0], build.render_ticket(row), row["topic"]
        )
        prompt = tokenizer("".join(t for t, _ in pieces[:-1]), add_special_tokens=False)
        answer = tokenizer(pieces[-1][0], add_special_tokens=False).input_ids
        ids = torch.tensor([prompt.input_ids + answer])
        with torch.inference_mode():
            best = model(ids).logits[0, len(prompt.input_ids) - 1 : -1].argmax(-1)
        right += best.tolist() == answer
    assert right / n >= 0.9
