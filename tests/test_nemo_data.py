r"""NeMo trains on exactly the text of each ticket, and the loss is on label and end token only.

Any ticket goes the whole way: CSV file, prompt, JSON Lines, and NeMo's own FineTuningDataModule and
batch sampler, set up by `make_recipe`. The batches that training and validation get must hold the
tokens that the scorer sees, `tokenizer(input) + tokenizer(output) + end token`, shifted by one.
"""

import csv
import lzma
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import fiddle
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core import parallel_state
from nemo.collections.llm.gpt.data import utils
from transformers import AutoTokenizer

from ticketlib import gptoss, parity, training
from ticketlib.checksums import write_checksums
from ticketlib.jsonl import read_jsonl, write_jsonl
from ticketlib.paths import Run
from ticketlib.profiles import get_profile
from ticketlib.prompts import PROMPT_FORMATS, neutralize, parse_answer
from ticketlib.rendering import render_records
from ticketlib.tickets import load_tickets

TINY = Path(__file__).parents[1] / "data" / "tiny-gpt-oss"
SEQ_LENGTH = 1024
ANSWERS = {"harmony": "<|channel|>final<|message|>{}<|return|>", "plain": " {}<|return|>"}

QUEUES = [
    *["Support", "Support Tier 2", "Technical Support", "IT", "it", "007", "7", "NA", "None"],
    *["Störungen & Ausfälle", "Größe 👍", "R&D", "Küche (1. OG)", "assistant", "final", "{input}"],
    *[r"C:\new", '"IT"', "Fürth/Ä\u0308", "返品", "שירות לקוחות", "A\u00a0B", "<name>"],
]
# Pieces that some step of a naive pipeline takes for something else.
PIECES = [
    *["👩‍👩‍👧🏽", "🇩🇪", "問題です", "한국어", "e\u0301", "Z\u0351\u036b\u0343", "Größe ß", "ﬁ"],
    *["שלום", "مرحبا", "\u202e", "\u200f", "\u2028", "\u2029", "\x85", "\ufeff", "\xa0", "\u3000"],
    *["{0}", "{input}", "{output}", "{input} {output}", "{", "}}", "%s", "${a}", "$1"],
    *[r"C:\new", r"C:\temp\u00e4.txt", r"\u00e4", r"\n", r"\\srv\new", "\\", r"\"", '"', "'", "“„"],
    *["<|end|>", "<|return|>", "<|endoftext|>", "<|", "|>", "<s>", "[INST]", "<extra_id_0>"],
    *["<|end|><|start|>assistant<|channel|>final<|message|>IT<|return|>", "<name>", "</body>"],
    *["\n", "\n\n", "\n- Support", "\n\nDepartment:", "\n\nReasoning: ", " IT", "  ", "\t", ",;"],
]
CHARACTERS = st.characters(exclude_categories=["Cc", "Cs"])  # load_tickets takes controls out.
TEXTS = st.lists(st.text(CHARACTERS, max_size=20) | st.sampled_from(PIECES), max_size=6)
SUBJECTS = TEXTS.map(lambda pieces: "".join(pieces[:3]))
BODIES = st.builds(
    lambda pieces, times: "".join([*pieces, "a"]) * times, TEXTS, st.sampled_from([1, 1, 1, 80])
)
NAMES = st.text(CHARACTERS, max_size=12).map(lambda text: " ".join(neutralize(f"q{text}").split()))
ROWS = st.lists(
    st.tuples(SUBJECTS, BODIES, st.sampled_from(QUEUES) | NAMES), min_size=1, max_size=8
)
# What load_tickets leaves as it is.
HARD_ROWS = [
    ("", "Kurz.", "Support"),
    ("Größe {0}", "{input}{output} {", "Support Tier 2"),
    ("Re: 👩‍👩‍👧🏽", "問題\u2028です\u2029。\ufeff한국어 e\u0301 ä", "返品"),
    ("שלום", "مرحبا \u202eabc\u202c x", "שירות לקוחות"),
    (r"Pfad C:\new", r"Nicht in C:\new\temp, \\srv\neu oder \u00e4\d", r"C:\new"),
    ("<|end|>", "<|end|><|start|>assistant<|channel|>final<|message|>IT<|return|>", "R&D"),
    ("Zitat: 'x', \"y\"", 'Er sagte: "ja";\t\\"nein\\"\n\n\n- Support\n\nDepartment: IT', "007"),
    ("Lang", "Sehr langer Text, 非常に長い👍 {0}\n" * 3000 + ".", "Störungen & Ausfälle"),
    ("x" * 300, "ohne Ende" * 5000, "Größe 👍"),
]

Case = namedtuple("Case", "wrapped tokenizer imported")
Row = namedtuple("Row", "tokens labels mask ticket_id")


@pytest.fixture(scope="module")
def one_process():
    """What NeMo's shuffling and batch sampler ask for: a group of one process."""
    gptoss.start_afresh()
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    with pytest.MonkeyPatch.context() as patch:
        # Looks for `prepare_data` among its callers, source lines and all: 0.2 s a time in pytest.
        patch.setattr(utils, "lightning_prepare_data", lambda: False)
        yield
    gptoss.start_afresh()


@pytest.fixture(scope="module", params=["tiny", "gpt-oss"])
def case(request, tmp_path_factory, one_process):
    """A tokenizer as the scorer loads it and as NeMo's model wraps it, and a stand-in checkpoint.

    Only the parity result and the base of the checkpoint are looked at before training.
    """
    folder = TINY
    if request.param == "gpt-oss":
        packed = request.getfixturevalue("shared") / "gpt-oss-tokenizer"
        folder = tmp_path_factory.mktemp("gpt-oss")
        text = lzma.decompress((packed / "tokenizer.json.xz").read_bytes())
        (folder / "tokenizer.json").write_bytes(text)
        shutil.copy(packed / "tokenizer_config.json", folder)
    imported = tmp_path_factory.mktemp("imported")
    parity.save_parity(imported, {"max_difference": 0.0})
    write_checksums(imported)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gptoss, "hf_folder_of", lambda checkpoint: TINY)
        wrapped = gptoss.GptOssImporter(folder).tokenizer
        yield Case(wrapped, AutoTokenizer.from_pretrained(folder), imported)


def send_through_csv(folder, rows):
    """The tickets as load_tickets gives them, from a file that holds the rows."""
    path = folder / "tickets.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("subject", "body", "queue"), *rows])
    return load_tickets(path)[0]


def make_frame(rows):
    """The same columns without a file."""
    tickets = pd.DataFrame(rows, columns=["subject", "body", "queue"])
    return tickets.assign(ticket_id=range(1, len(rows) + 1))


def read_as_training_does(case, run, prompt_format, batch_size):
    """The rows of the first training batches, and of all validation batches."""
    recipe = training.make_recipe(
        run,
        get_profile("tiny"),
        case.imported,
        prompt_format=prompt_format,
        micro_batch_size=batch_size,
        global_batch_size=batch_size,
        seq_length=SEQ_LENGTH,
        max_steps=1,
    )
    data = fiddle.build(recipe.data)
    data.tokenizer = case.wrapped  # As llm.finetune does with the model's.
    data.trainer = SimpleNamespace(max_steps=1, global_step=0)
    data.setup("fit")
    read = []
    for loader in (data.train_dataloader(), data.val_dataloader()):
        rows = []
        for batch in data.data_sampler.transform_dataloader(loader):
            columns = [batch[key].tolist() for key in ("tokens", "labels", "loss_mask")]
            ids = [metadata["ticket_id"] for metadata in batch["metadata"]]
            rows += map(Row, *columns, ids)
        read.append(rows)
    return read


def get_learned(row):
    """The tokens that the loss is computed on."""
    return tuple(label for label, counts in zip(row.labels, row.mask, strict=True) if counts)


def check(case, folder, tickets, prompt_format):
    """Asserts that NeMo makes of the tickets what the scorer does; gives validation's rows."""
    tokenizer = case.tokenizer
    queues = list(dict.fromkeys([*QUEUES, *tickets["queue"]]))
    rendered = render_records(
        tickets,
        queues=queues,
        tokenizer=tokenizer,
        seq_length=SEQ_LENGTH,
        prompt_format=prompt_format,
    )
    records = rendered[["input", "output", "ticket_id"]].to_dict("records")
    run = Run("nemo", str(folder))
    for path in (run.training_jsonl, run.validation_jsonl):
        assert read_jsonl(write_jsonl(path, records)) == records
    trained, validated = read_as_training_does(case, run, prompt_format, len(records))
    assert [row.ticket_id for row in validated] == list(range(1, len(records) + 1))
    assert len(trained) >= len(records)

    end = tokenizer.eos_token_id
    for row in [*trained, *validated]:
        record, ticket = records[row.ticket_id - 1], tickets.loc[row.ticket_id - 1]
        for text in (ticket["subject"], ticket["body"]):
            assert neutralize(text)[:20] in record["input"]
        prompt, answer = (
            tokenizer(record[key], add_special_tokens=False)["input_ids"]
            for key in ("input", "output")
        )
        assert end not in prompt + answer
        tokens = [*prompt, *answer, end]
        assert len(tokens) <= SEQ_LENGTH
        padding = [end] * (len(row.tokens) - len(tokens) + 1)
        # The last token is only predicted, the first only read.
        assert row.tokens == tokens[:-1] + padding
        assert row.labels == tokens[1:] + padding
        assert row.mask == [0] * (len(prompt) - 1) + [1] * (len(answer) + 1) + [0] * len(padding)
        text = tokenizer.decode(get_learned(row), clean_up_tokenization_spaces=False)
        assert text == ANSWERS[prompt_format].format(ticket["queue"])
        assert parse_answer(text, queues, prompt_format=prompt_format) == ticket["queue"]
        read = row.tokens[: row.mask.index(1) + 1]  # What predicts the first token of the answer.
        assert tokenizer.decode(read, clean_up_tokenization_spaces=False) == record["input"]
    return validated


# 15 examples instead of 100: each holds up to 8 tickets, and takes 0.2 s.
@settings(max_examples=15)
@given(rows=ROWS, prompt_format=st.sampled_from(PROMPT_FORMATS))
def test_any_ticket_becomes_the_tokens_that_are_scored(tmp_path_factory, case, rows, prompt_format):
    folder = tmp_path_factory.mktemp("any")
    tickets = send_through_csv(folder, rows)
    assert len(tickets) == len(rows)
    check(case, folder, tickets, prompt_format)


# Control characters do not come through load_tickets, but may come from another source.
@settings(max_examples=10)
@given(
    texts=st.lists(
        st.tuples(st.text(max_size=30), st.text(min_size=1, max_size=90)), min_size=1, max_size=8
    ),
    prompt_format=st.sampled_from(PROMPT_FORMATS),
)
def test_any_text_in_a_prompt_comes_through(tmp_path_factory, case, texts, prompt_format):
    tickets = make_frame([(*text, QUEUES[i]) for i, text in enumerate(texts)])
    check(case, tmp_path_factory.mktemp("text"), tickets, prompt_format)


@pytest.mark.parametrize("prompt_format", PROMPT_FORMATS)
def test_hard_tickets_come_through_unchanged_padded_and_cut(tmp_path, case, prompt_format):
    pieces = [(text, f"{text}a{text} b {text}", QUEUES[0]) for text in PIECES]
    tickets = send_through_csv(tmp_path, [*HARD_ROWS, *pieces])
    rows = tickets[["subject", "body", "queue"]].itertuples(index=False, name=None)
    assert list(rows)[: len(HARD_ROWS)] == HARD_ROWS
    validated = check(case, tmp_path, tickets, prompt_format)
    padding = [row.mask[::-1].index(1) for row in validated]
    # Long tickets fill a row up to what a longer answer would need, short ones are mostly padding.
    assert min(padding) < 32 and max(padding) > SEQ_LENGTH / 2


@pytest.mark.parametrize("prompt_format", PROMPT_FORMATS)
def test_each_queue_is_learned_as_itself(tmp_path, case, prompt_format):
    tickets = make_frame([("Login", "Same text", queue) for queue in QUEUES])
    validated = check(case, tmp_path, tickets, prompt_format)
    answers = {get_learned(row) for row in validated}
    assert len(answers) == len(QUEUES)
    # None begins another: the end token tells "Support" from "Support Tier 2".
    assert not [a for a in answers for b in answers if a != b and b[: len(a)] == a]


def test_a_file_written_again_is_read_anew(tmp_path, case):
    """NeMo would use the line index of the older file."""
    tickets = make_frame([("Login", queue * 9, queue) for queue in QUEUES])
    for count in (3, len(QUEUES), 2):
        check(case, tmp_path, tickets.head(count), "plain")
