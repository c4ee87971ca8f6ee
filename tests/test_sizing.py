"""The longest row, what a machine must have, and the time a training takes, against measurements.

The measurements, on GPUs with 80 GB, stand in ticketlib/sizing.py. The models are gpt-oss-20b's and
120b's shapes without weights.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GptOssConfig

from ticketlib import sizing
from ticketlib.paths import Run, project_root
from ticketlib.profiles import get_profile

GB, GIB = 10**9, 2**30
TINY, MEDIUM, LARGE = (get_profile(name) for name in ("tiny", "gpt-oss-20b", "gpt-oss-120b"))
TINY_BASE = project_root() / TINY.base
# What PyTorch reports of an A6000 48GB, H100 80GB, RTX Pro 6000 96GB and H200 141GB
CARDS = [47.5 * GIB, 79.1 * GIB, 95 * GIB, 139.8 * GIB]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("20b")
    GptOssConfig(num_hidden_layers=24, num_local_experts=32).save_pretrained(folder)
    return folder


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets what the machine has, in GB; the defaults are one H100, and enough of all else."""

    def have(disk=1000, memory=256, gpus=((78.6 * GIB, CARDS[1]),)):
        monkeypatch.setattr(sizing.shutil, "disk_usage", lambda _: SimpleNamespace(free=disk * GB))
        monkeypatch.setattr(sizing, "free_memory", lambda: memory * GB)
        monkeypatch.setattr(sizing, "list_gpus", lambda: list(gpus))
        return Run("demo", str(tmp_path / "not" / "made" / "yet"))

    return have


def predict(profile, base, tokens):
    weights, fixed, a_token = sizing._line(profile, base, "lora")
    return weights, fixed + tokens * a_token


def test_the_line_is_what_was_measured(base):
    for tokens, gib in ((0, 39.0), (8192, 59.6), (12288, 69.6)):
        weights, peak = predict(MEDIUM, base, tokens)
        assert peak / GIB == pytest.approx(gib, rel=0.01)
        assert weights == pytest.approx(42.3 * GB, rel=0.02)  # Allocated by PyTorch
    # Measured as out of memory: 76 GiB allocated, and more was asked for
    assert predict(MEDIUM, base, 16384)[1] > 76 * GIB


def test_rows_fit_the_card(base):
    rows = [sizing.fit_pack(MEDIUM, base, card) for card in CARDS[1:]]
    assert MEDIUM.pack_tokens <= rows[0] < 16384  # 8,192 was run on this card
    assert 12288 <= rows[0] <= rows[1] <= rows[2] == 16384  # 12,288 was run as well
    assert predict(MEDIUM, base, rows[0])[1] < 76 * GIB


def test_rows_grow_with_the_card_and_leave_some_of_it_free(base, monkeypatch):
    line = sizing._line(MEDIUM, base, "lora")
    monkeypatch.setattr(sizing, "_line", lambda *_: line)

    @given(st.integers(53 * GB, 200 * GB), st.integers(0, 50 * GB))
    def check(card, more):
        tokens = sizing.fit_pack(MEDIUM, base, card)
        assert tokens % 128 == 0 and 2048 <= tokens <= 16384
        assert line[1] + tokens * line[2] <= 0.9 * card
        assert tokens == 16384 or line[1] + (tokens + 128) * line[2] > 0.9 * card
        assert sizing.fit_pack(MEDIUM, base, card + more) >= tokens

    check()


def test_48_gb_are_refused_with_what_would_fit(base):
    with pytest.raises(ValueError, match="weights alone take 42 GB.*at least 53 GB.*tiny"):
        sizing.fit_pack(MEDIUM, base, CARDS[0])
    with pytest.raises(ValueError, match="at least 53 GB"):
        sizing.fit_pack(MEDIUM, base, 52 * GB)
    assert sizing.fit_pack(MEDIUM, base, 53 * GB) == 2048  # The sentence's figure is right
    with pytest.raises(ValueError, match="rows of 4,096 tokens .* at least 59 GB"):
        sizing.fit_pack(MEDIUM, base, 53 * GB, seq_length=4000)


def test_training_all_parameters_of_20b_fits_no_card(base):
    with pytest.raises(ValueError, match="at least 425 GB"):
        sizing.fit_pack(MEDIUM, base, CARDS[-1], peft_scheme="none")


def test_experts_are_spread_over_the_gpus(tmp_path):
    GptOssConfig(num_hidden_layers=36, num_local_experts=128).save_pretrained(tmp_path)
    assert 2048 <= sizing.fit_pack(LARGE, tmp_path, CARDS[1]) <= 16384
    with pytest.raises(ValueError, match="weights alone take 234 GB"):
        sizing.fit_pack(replace(LARGE, expert_parallel=1), tmp_path, CARDS[1])


def test_no_rows_without_packing_or_without_a_gpu(base, machine):
    assert sizing.fit_pack(TINY, TINY_BASE, CARDS[1]) == 0
    machine(gpus=())
    assert sizing.fit_pack(MEDIUM, base) == 0


def test_a_card_that_is_not_used_does_not_count(base, machine):
    machine(gpus=((78 * GIB, CARDS[1]), (3 * GIB, 4 * GIB)))
    assert sizing.fit_pack(MEDIUM, base) == sizing.fit_pack(MEDIUM, base, CARDS[1])


@pytest.mark.parametrize("card", CARDS[1:])
def test_an_empty_card_with_the_rows_for_it_passes(base, machine, card):
    run = machine(gpus=[(card - 0.6 * GIB, card)])  # CUDA's own
    table = sizing.check_machine(MEDIUM, base, run)
    assert (table["available"] >= table["needed"]).all()
    found = table["needed"].to_dict()
    assert found["memory"] == pytest.approx(44, abs=1)
    assert found[f"disk of {run.experiments}"] == pytest.approx(41.8 + 41.8 + 13.8, rel=0.02)


def test_what_was_run_on_a_card_is_not_refused(base, machine):
    sizing.check_machine(MEDIUM, base, machine(), steps=["train"], pack_tokens=8192)
    with pytest.raises(ValueError, match="GPU memory: 8... GB are needed and 84.4 GB are free"):
        sizing.check_machine(MEDIUM, base, machine(), steps=["train"], pack_tokens=16384)


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ({"disk": 90}, "disk of .*yet: 98.. GB are needed and 90.0 GB are free"),
        ({"memory": 32}, "memory: 44.. GB are needed and 32.0 GB are free"),
        ({"gpus": [(30 * GIB, CARDS[1])]}, "GPU memory: .* needed and 32.2 GB are free"),
        ({"gpus": [(47 * GIB, CARDS[0])]}, "at least 53 GB"),
    ],
)
def test_what_is_missing_is_named(base, machine, lacking, message):
    with pytest.raises(ValueError, match=message) as error:
        sizing.check_machine(MEDIUM, base, machine(**lacking))
    assert str(error.value).count("needed") <= 1  # And nothing else


def test_all_that_is_missing_is_in_one_message(base, machine):
    run = machine(disk=1, memory=1, gpus=[(1 * GIB, CARDS[1])])
    with pytest.raises(ValueError, match="disk.*memory.*GPU memory.*larger disk"):
        sizing.check_machine(MEDIUM, base, run)
    machine(disk=1, gpus=[(47 * GIB, CARDS[0])])
    with pytest.raises(ValueError, match="at least 53 GB.*disk"):
        sizing.check_machine(MEDIUM, base, run)
    machine(disk=1, memory=1)
    with pytest.raises(ValueError, match="8 GPUs are needed and 1 are there.*disk"):
        sizing.check_machine(LARGE, base, run)


def test_only_the_steps_to_come_are_checked(base, machine):
    run = machine(disk=2, gpus=[(1 * GIB, CARDS[1])])
    with pytest.raises(ValueError, match="disk"):
        sizing.check_machine(MEDIUM, base, run, steps=["import"])
    table = sizing.check_machine(MEDIUM, base, machine(disk=60, gpus=[(1, 2)]), steps=["export"])
    assert "GPU memory" not in table.index
    sizing.check_machine(MEDIUM, base, machine(disk=2), steps=["train"])
    with pytest.raises(ValueError, match="'imprt'.*Accepted: import, train, export"):
        sizing.check_machine(MEDIUM, base, run, steps=["imprt"])


def test_the_tiny_model_passes_on_this_machine_and_on_any_card(machine, tmp_path, monkeypatch):
    table = sizing.check_machine(TINY, TINY_BASE, Run("demo", str(tmp_path)))
    assert (table["needed"] < 1).all()
    run = machine(disk=0.1, memory=0.1, gpus=[(1.5 * GIB, 2 * GIB)])
    sizing.check_machine(TINY, TINY_BASE, run)
    monkeypatch.setattr(sizing, "list_gpus", lambda: [])
    assert "GPU memory" not in sizing.check_machine(TINY, TINY_BASE, run).index


def test_memory_that_torch_keeps_for_reuse_is_free(monkeypatch):
    found = {"device_count": 1, "mem_get_info": (10, 100)}
    for name, value in (found | {"memory_reserved": 30, "memory_allocated": 25}).items():
        monkeypatch.setattr(sizing.torch.cuda, name, lambda *_, value=value: value)
    assert sizing.list_gpus() == [(15, 100)]


def test_a_containers_limit_counts_as_memory(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(sizing, "CONTAINER_LIMIT", limit)
    free = sizing.free_memory()
    assert 0 < free <= sizing.psutil.virtual_memory().total
    limit.write_text("1048576\n")
    assert sizing.free_memory() == 1048576
    limit.write_text("max\n")
    assert sizing.free_memory() == pytest.approx(free, rel=0.5)


def test_time_of_a_training():
    found = sizing.estimate_time(MEDIUM, 22_800, 131, tokens_per_step=8192, steps=-1)
    assert found["steps_per_pass"] == found["steps"] == 365  # 22,800 x 131 / 8,192
    assert found["training"] == pytest.approx(136.5, rel=0.02)  # At 21,876 tokens/s
    assert found["total"] == found["start"] + found["training"]
    found = sizing.estimate_time(MEDIUM, 22_800, 131, tokens_per_step=8192)
    assert found["steps"] == MEDIUM.max_steps


def test_time_counts_validation_and_speed():
    slow = sizing.Speed(1000, 10, "a slow one")
    given = {"steps": 10, "validation_tickets": 30, "validations": 2, "speed": slow}
    found = sizing.estimate_time(MEDIUM, 640, 100, tokens_per_step=6400, **given)
    assert (found["steps_per_pass"], found["training"], found["start"]) == (10, 64, 10)
    assert found["validation"] == 2 * 30 * 100 / 2 / 1000


def test_no_time_is_made_up():
    found = sizing.estimate_time(LARGE, 22_800, 131, tokens_per_step=16_384)
    assert found["steps_per_pass"] == 183 and found["total"] != found["total"]
