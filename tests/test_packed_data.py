"""Packed rows hold the tickets that rows of one ticket hold, each once an epoch and whole.

The rows come from NeMo's own FineTuningDataModule and batch sampler, set up as `make_recipe` sets
them. What the model reads, what it is to predict and where the loss counts must be the same for
each ticket, packed or not, and the same as `tokenizer(input) + tokenizer(output) + end token`.
Positions tell tickets apart: they begin at 0 with each, and the padding is all 0.
"""

from collections import Counter, namedtuple
from types import SimpleNamespace

import fiddle
import nemo_run
import numpy as np
import pytest
import torch
from conftest import ROOT, import_script
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nemo.collections import llm
from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer
from test_nemo_data import PIECES, TEXTS, TINY, one_process  # noqa: F401

from ticketlib import training
from ticketlib.jsonl import write_jsonl
from ticketlib.paths import Run
from ticketlib.prompts import PROMPT_FORMATS, render_answer, render_prompt

QUEUES = ["Support", "Support Tier 2", "R&D"]
LENGTH = 2048  # Of the longest ticket and of a row
# Enough for several rows, however short the other tickets are.
FILLING = [f"The {words} does not work. " * n for n, words in enumerate(PIECES, start=1)][:30]

Case = namedtuple("Case", "folder wrapped")
Ticket = namedtuple("Ticket", "tokens labels mask")


@pytest.fixture(scope="module", params=["tiny", "byte"])
def case(request, tmp_path_factory, one_process):  # noqa: F811
    """A tokenizer's folder, and the tokenizer as NeMo's model wraps it."""
    folder = TINY
    if request.param == "byte":
        folder = tmp_path_factory.mktemp("byte")
        request.getfixturevalue("byte_tokenizer").save_pretrained(folder)
    return Case(folder, AutoTokenizer(str(folder)))


def write_records(folder, texts, prompt_format):
    """A run with the same tickets in training and validation, and their records."""
    records = [
        {
            "input": render_prompt("Help", text, queues=QUEUES, prompt_format=prompt_format),
            "output": render_answer(QUEUES[n % 3], prompt_format=prompt_format),
        }
        for n, text in enumerate([*texts, *FILLING])
    ]
    run = Run("packed", str(folder))
    for path in (run.training_jsonl, run.validation_jsonl):
        write_jsonl(path, records)
    return run, records


def load_data(case, run, prompt_format, *, packed=True, seed=0):
    """NeMo's data, prepared, with a row a step."""
    template = {"prompt_template": training.PROMPT_TEMPLATES[prompt_format]}
    sizes = {"seq_length": LENGTH, "micro_batch_size": 1, "global_batch_size": 1}
    config = nemo_run.Config(
        llm.FineTuningDataModule,
        dataset_root=str(run.dataset),
        num_workers=0,
        seed=seed,
        dataset_kwargs=template,
        **sizes,
    )
    if packed:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            one = SimpleNamespace(devices=1, num_nodes=1)
            training._pack(run, SimpleNamespace(data=config, trainer=one), case.folder, LENGTH)
        config.num_workers = 0  # Faster for so few rows
    data = fiddle.build(config)
    data.tokenizer = case.wrapped  # As llm.finetune does with the model's
    data.prepare_data()
    return data


def read_rows(data, steps):
    """The batches of so many steps of training, and those of a whole validation."""
    data.trainer = SimpleNamespace(max_steps=steps, global_step=0)
    data.setup("fit")
    loaders = (data.train_dataloader(), data.val_dataloader())
    trained, validated = (list(data.data_sampler.transform_dataloader(each)) for each in loaders)
    return trained[:steps], validated


def take_apart(batch, count):
    """The tickets of the one row of a batch, of which `count` tokens are no padding."""
    tokens, labels, mask, positions = (
        batch[key][0].tolist() for key in ("tokens", "labels", "loss_mask", "position_ids")
    )
    assert not any(mask[count:])
    starts = [i for i in range(count) if positions[i] == 0]
    tickets = []
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        assert positions[start:end] == list(range(end - start))
        tickets.append(Ticket(*(tuple(each[start:end]) for each in (tokens, labels, mask))))
    return tickets


def take_all_apart(batches):
    """How often each ticket comes in packed rows, all of one length."""
    tickets = Counter()
    for batch in batches:
        assert "cu_seqlens" in batch  # By which `answers_forward_step` knows them
        assert batch["tokens"].shape == (1, LENGTH)
        [count] = batch["token_count"]
        assert not batch["position_ids"][0, count:].any()
        tickets.update(take_apart(batch, count))
    return tickets


def count_expected(case, records):
    """How often each ticket must come, by the tokenizer alone."""
    tokenizer = case.wrapped.tokenizer
    expected = Counter()
    for record in records:
        prompt, answer = (
            tokenizer(record[key], add_special_tokens=False)["input_ids"]
            for key in ("input", "output")
        )
        ids = (*prompt, *answer, tokenizer.eos_token_id)
        # What is predicted last is not read; the last token of the prompt predicts the answer.
        mask = (0,) * (len(prompt) - 1) + (1,) * (len(answer) + 1)
        expected[Ticket(ids[:-1], ids[1:], mask)] += 1
    return expected


def check(case, folder, texts, prompt_format):
    run, records = write_records(folder, texts, prompt_format)
    expected = count_expected(case, records)
    packed = load_data(case, run, prompt_format)
    rows = len(np.load(packed.train_path_packed, allow_pickle=True))
    assert 1 < rows < len(records)
    trained, validated = read_rows(packed, 2 * rows)
    assert take_all_apart(trained[:rows]) == expected
    assert take_all_apart(trained[rows:]) == expected
    assert take_all_apart(validated) == expected
    _, single = read_rows(load_data(case, run, prompt_format, packed=False), 1)
    # Here the end token, which is only predicted, is counted too
    single = [take_apart(batch, batch["token_count"][0] - 1) for batch in single]
    assert max(map(len, single)) == 1
    assert Counter(ticket for [ticket] in single) == expected


# 6 examples instead of 100: each holds some 40 tickets, hard ones among them, and takes 0.3 s.
@settings(max_examples=6)
@given(
    texts=st.lists(TEXTS.map("".join), max_size=12),
    prompt_format=st.sampled_from(PROMPT_FORMATS),
)
@example(texts=PIECES, prompt_format="harmony")
@example(texts=["Same ticket"] * 9, prompt_format="plain")
def test_packed_rows_hold_each_ticket_once_and_whole(tmp_path_factory, case, texts, prompt_format):
    check(case, tmp_path_factory.mktemp("packed"), [f"{text}a" for text in texts], prompt_format)


def test_padding_stays_under_a_tenth_of_full_rows(tmp_path, case):
    run, _ = write_records(tmp_path, FILLING * 4, "plain")
    data = load_data(case, run, "plain")
    _, validated = read_rows(data, 1)
    counts = sorted(batch["token_count"][0] for batch in validated)
    # The last row takes what is left.
    assert np.mean(counts[1:]) > 0.9 * LENGTH


def test_rows_are_the_same_after_a_kill_and_the_data_s_seed_orders_them(tmp_path, case):
    """Else a training that goes on would see other tickets than it would have seen."""

    def pack(seed):
        run, _ = write_records(tmp_path, [], "plain")  # As make_recipe, removes what was packed
        np.random.seed(0)  # As Lightning does before data is prepared, with `run_recipe`'s seed
        data = load_data(case, run, "plain", seed=seed)
        rows = len(np.load(data.train_path_packed, allow_pickle=True))
        np.random.seed(seed + 5)  # What else draws must not matter
        return [batch["tokens"].tolist() for batch in read_rows(data, rows)[0]]

    first, other = pack(0), pack(1)
    assert pack(0) == first
    assert other != first
    assert sorted(other) == sorted(first)


def test_a_file_written_again_is_packed_anew(tmp_path, case):
    for texts in (["One"], ["One", "Two"], ["Three"]):
        check(case, tmp_path, texts, "plain")


def test_the_benchmark_counts_tickets_and_tokens_without_padding(tmp_path, case):
    way = import_script(ROOT / "benchmarks" / "gpu_lora_way.py")
    run, records = write_records(tmp_path, [], "plain")
    expected = count_expected(case, records)
    tokens = sum(len(ticket.tokens) * times for ticket, times in expected.items())
    for packed in (True, False):
        _, validated = read_rows(load_data(case, run, "plain", packed=packed), 1)
        counts = [way.count_batch(batch) for batch in validated]
        assert tuple(map(sum, zip(*counts, strict=True))) == (len(records), tokens)


def test_each_gpu_gets_as_many_rows(tmp_path, case, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run, _ = write_records(tmp_path, ["The screen is black."], "plain")
    rows = {}
    for gpus in (1, 2):
        data = SimpleNamespace(seq_length=100, global_batch_size=8, dataset_kwargs={})
        trainer = SimpleNamespace(devices=gpus, num_nodes=1)
        training._pack(run, SimpleNamespace(data=data, trainer=trainer), case.folder, 512)
        rows[gpus] = data.global_batch_size
        assert data.packed_sequence_specs.packed_sequence_size % 128 == 0
    assert rows[1] >= 1 and rows[2] >= 2 and rows[2] % 2 == 0
