"""Training that was killed anywhere goes on and ends as if nothing had been; damage is named.

Each training is a fork of one process (`training_jobs.py`), so that SIGKILL hits a real one. On the
CPU losses, learning rates and weights must be equal to the last bit. The best checkpoint is the one
with the lowest validation loss, also after a resumption.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytest

from ticketlib.history import list_attempts, read_history
from ticketlib.jsonl import write_jsonl
from ticketlib.paths import Run

QUEUES = ["IT Support", "Billing and Payments", "Human Resources"]
INTERVAL = {"val_check_interval": 3}  # Of 8 steps: 3, 6 and the last


class Jobs:
    """Sends jobs to the process and reads the answers; makes runs."""

    def __init__(self, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("training_jobs.py")), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self("import", None)["signal"] == 0

    def __call__(self, do, run, **job):
        job = {"do": do, **({"run": run.run_name} if run else {}), **job}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def make_run(self, name):
        run = Run(name, str(self.folder))
        records = [
            {"input": f"My printer {i} shows {i * i}:", "output": f" {QUEUES[i * i * 7 % 3]}"}
            for i in range(48)
        ]
        for path in (run.training_jsonl, run.validation_jsonl, run.test_jsonl):
            write_jsonl(path, records)
        return run


@pytest.fixture(scope="module")
def jobs():
    # Not below pytest's folder, which other users cannot enter
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        jobs = Jobs(Path(folder))
        yield jobs
        jobs.process.stdin.close()
        jobs.process.wait()


def train(jobs, run, **job):
    job["settings"] = INTERVAL | job.get("settings", {})
    return jobs("train", run, **job)


def checkpoints(run):
    """Steps of the whole ones, and of those that were not finished."""
    folder = run.training / "checkpoints"
    names = sorted(path.name for path in folder.glob("step=*"))
    steps = {name: int(name.split("-")[0].removeprefix("step=")) for name in names}
    unfinished = {steps[name] for name in names if name.endswith("-unfinished")}
    return sorted(set(steps.values()) - unfinished), sorted(unfinished)


def weights(checkpoint):
    """Digests of what was trained; the rest of a checkpoint holds paths and random names."""
    lines = (Path(checkpoint) / "SHA256SUMS").read_text("utf-8").splitlines()
    return [line for line in lines if line.endswith(".distcp")]


def curve(run):
    return read_history(run).drop(columns="seconds")


def logged(run, column):
    """A column of what Lightning logged, by step; later attempts win."""
    files = [attempt / "metrics.csv" for attempt in list_attempts(run)]
    rows = pd.concat([pd.read_csv(file) for file in files if file.exists()])
    return rows.dropna(subset=[column]).groupby("step")[column].last().to_dict()


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def whole(jobs):
    """A training that nothing interrupted."""
    run = jobs.make_run("whole")
    outcome = train(jobs, run)
    assert "error" not in outcome, outcome
    return run


# What happens at which step, and the whole and unfinished checkpoints that are there then
INTERRUPTIONS = [
    ("kill", 2, [], []),
    ("kill", 5, [3], []),
    ("full disk", 5, [3], []),
    ("full disk for context", 4, [3], []),
    ("kill while writing", 4, [3], [6]),
    ("kill while removing", 4, [6], [3]),
    ("kill", 7, [6], []),
    ("kill at the end", 8, [8], []),
]


@pytest.fixture(scope="module")
def interrupted(jobs):
    """The same, interrupted again and again; with the answers."""
    run, answers = jobs.make_run("interrupted"), []
    for stop, step, *expected in INTERRUPTIONS:
        answers.append(train(jobs, run, stop=stop, step=step))
        assert answers[-1]["signal"] == (0 if "disk" in stop else 9), (stop, answers[-1])
        assert [*checkpoints(run)] == expected, (stop, step)
        assert not run.history.exists()
    answers.append(train(jobs, run))
    return run, answers


def test_interruptions_leave_no_trace_in_the_result(whole, interrupted):
    run, answers = interrupted
    expected = curve(whole)
    assert expected["step"].tolist() == [*range(1, 9)]
    assert expected.dropna()["step"].tolist() == [3, 6, 8]
    pd.testing.assert_frame_equal(curve(run), expected, check_exact=True)
    pd.testing.assert_frame_equal(
        pd.read_csv(run.history).drop(columns="seconds"), expected, check_exact=True
    )
    for column in ("lr", "consumed_samples", "grad_norm"):
        assert len(logged(whole, column)) >= 7 and logged(run, column) == logged(whole, column)
    last = next((whole.training / "checkpoints").glob("step=8*"))
    assert len(weights(last)) == 2 and weights(answers[-1]["result"]) == weights(last)
    assert checkpoints(run) == checkpoints(whole) == ([8], [])


def test_the_reader_sees_where_it_continues(interrupted):
    run, answers = interrupted
    shown = [answer["console"] for answer in answers]
    assert not any("Continues" in text for text in shown[:2])
    for text, step in zip(shown[2:8], [3, 3, 3, 3, 6, 6], strict=True):
        assert f"Continues at step {step} of 8." in text and f" {step}/8 " in text
    assert "Training ended at step 8 already and is not repeated." in shown[8]
    assert len(list_attempts(run)) == 7  # The first began anew, the last did not train


def test_a_full_disk_is_named(interrupted):
    run, answers = interrupted
    weights, context = (answer["error"] for answer in answers if "error" in answer)
    for error in (weights, context):
        assert error.startswith("OSError: ") and "step=6" in error and "GB free" in error
        assert "training goes on from the last one" in error
    assert "File too large" in weights and "Unterminated string" in context


def test_the_best_is_given_and_early_stopping_goes_on_counting(jobs):
    """A learning rate at which validation loss rises after the second validation."""
    run = jobs.make_run("early")
    settings = {"learning_rate": 0.1, "max_steps": 30, "patience": 2}
    train(jobs, run, settings=settings, stop="kill", step=10)
    assert checkpoints(run) == ([6, 9], [])
    assert "stopped at step 9 of 30. Run 03_train_lora.ipynb" in jobs("find", run)["error"]
    best = next((run.training / "checkpoints").glob("step=6*"))
    trained = weights(best)
    outcome = train(jobs, run, settings=settings)
    assert "Continues at step 9 of 30." in outcome["console"]
    losses = read_history(run).dropna().set_index("step")["val_loss"]
    assert losses.index.tolist() == [3, 6, 9, 12] and losses.idxmin() == 6
    assert losses[12] < losses[9]  # One that had forgotten step 6 would take this for better
    assert outcome["result"] == jobs("find", run)["result"] == str(best)
    assert checkpoints(run) == ([6, 12], [])
    assert weights(best) == trained != weights(next(best.parent.glob("step=12*")))
    assert "ended at step 12 already" in train(jobs, run, settings=settings)["console"]


def test_training_of_all_parameters_goes_on_too(jobs):
    """With data left over, where Lightning would not validate after the last step."""
    settings = {"peft_scheme": "none", "learning_rate": 1e-3, "max_steps": 4}
    once, twice = jobs.make_run("sft"), jobs.make_run("sft-killed")
    train(jobs, once, settings=settings, more_data=True)
    train(jobs, twice, settings=settings, more_data=True, stop="kill", step=4)
    outcome = train(jobs, twice, settings=settings, more_data=True)
    assert "Continues at step 3 of 4." in outcome["console"]
    assert curve(once).dropna()["step"].tolist() == [3, 4]
    pd.testing.assert_frame_equal(curve(twice), curve(once), check_exact=True)
    assert weights(outcome["result"]) == weights(jobs("find", once)["result"])


CHANGES = {
    "base": ("base", "other"),
    "lora_rank": (16, 4),
    "lora_targets": ("linear_qkv linear_proj", ["linear_qkv"]),
    "max_steps": (8, 9),
    "val_check_interval": (3, 2),
    "patience": (0, 1),
    "learning_rate": (0.003, 0.01),
    "micro_batch_size": (8, 4),
    "global_batch_size": (8, 16),
    "seq_length": (96, 64),
    "peft_scheme": ("lora", "none"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_refused_by_name(jobs, whole, name):
    before, now = CHANGES[name]
    untouched = snapshot(whole.folder)
    error = train(jobs, whole, settings={name: now})["error"]
    shown = " ".join(now) if isinstance(now, list) else now
    assert error.startswith("ValueError: ") and f"{name} was {before} and is {shown}" in error
    assert "Give another run_name, or set restart = True" in error
    now_there = snapshot(whole.folder)
    changed = [path for path, time in now_there.items() if untouched.get(path) != time]
    assert all(path.is_dir() for path in changed)


def test_a_changed_seed_profile_or_recipe_is_refused(jobs, whole):
    assert "seed was 0 and is 1" in train(jobs, whole, options={"seed": 1})["error"]
    error = train(jobs, whole, options={"profile": "other"})["error"]
    assert "profile was not set and is other" in error
    error = train(jobs, whole, edit={"optim.config.weight_decay": 0.5})["error"]
    assert "optim.config.weight_decay was 0.1 and is 0.5" in error


def test_changed_tickets_are_refused(jobs, whole):
    for path in (whole.training_jsonl, whole.validation_jsonl):
        content = path.read_bytes()
        path.write_bytes(content.replace(b"My printer 7 ", b"My printer 8 "))
        assert f"{path.name} is not the one" in train(jobs, whole)["error"]
        path.write_bytes(content)
    assert "error" not in train(jobs, whole)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flip": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "remove": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["weights/__0_0.distcp", "context/io.json", "progress.json"])
def test_a_damaged_checkpoint_is_named_and_kept(jobs, whole, name, damage):
    checkpoint = next((whole.training / "checkpoints").iterdir())
    content = (checkpoint / name).read_bytes()
    DAMAGE[damage](checkpoint / name)
    left = snapshot(whole.training / "checkpoints")
    try:
        for outcome in (jobs("find", whole), train(jobs, whole)):
            assert outcome["error"].startswith("ValueError: ")
            happened = "is missing" if damage == "remove" else "has changed"
            assert f"{checkpoint} is damaged: {name} {happened}" in outcome["error"]
            assert "restart = True" in outcome["error"]
        assert snapshot(whole.training / "checkpoints") == left
    finally:
        (checkpoint / name).write_bytes(content)


def test_a_checkpoint_without_checksums_is_not_taken_over_or_removed(jobs, whole):
    checkpoint = next((whole.training / "checkpoints").iterdir())
    hidden = (checkpoint / "SHA256SUMS").rename(whole.folder / "hidden")
    for outcome in (jobs("find", whole), train(jobs, whole)):
        assert "SHA256SUMS not found" in outcome["error"]
    assert checkpoint.exists()
    hidden.rename(checkpoint / "SHA256SUMS")


def test_a_damaged_or_unfinished_base_is_refused(jobs, whole):
    base = jobs.folder / "models" / "base"
    file = base / "weights" / "__0_1.distcp"
    content = file.read_bytes()
    flip(file)
    error = jobs("make", whole)["error"]
    assert f"{base} is damaged: weights/__0_1.distcp has changed. Remove this folder" in error
    file.write_bytes(content)
    shutil.copy(base / "SHA256SUMS", jobs.folder)
    (base / "SHA256SUMS").unlink()
    assert "SHA256SUMS not found" in jobs("make", whole)["error"]
    shutil.move(jobs.folder / "SHA256SUMS", base)
    assert "error" not in jobs("make", whole)


@pytest.mark.parametrize("part", ["folder", "training"])
def test_a_read_only_folder_is_named_before_training(jobs, part):
    run = jobs.make_run(f"read-only-{part}")
    run.training.mkdir()
    for folder in (run.folder, run.training):
        folder.chmod(0o777)
    getattr(run, part).chmod(0o555)
    outcome = train(jobs, run, **({"user": 65534} if os.geteuid() == 0 else {}))
    assert outcome["error"].startswith(f"PermissionError: {getattr(run, part)} cannot be written")
    assert "Change its owner or mode" in outcome["error"] and "0/8" not in outcome["console"]


def test_an_attempt_that_was_killed_while_logging_can_be_read(tmp_path):
    run = Run("torn", str(tmp_path))
    head = "reduced_train_loss,step,train_step_timing in s,val_loss\r\n"
    for number, rows in enumerate(
        ["3.0,0,0.1,\r\n2.0,1,0.1,\r\n,1,,2.5\r\n1.5,2,0.1,\r\n1.2", "1.6,2,0.1,\r\n1.", ""], 1
    ):
        attempt = run.training / f"attempt-{number}"
        attempt.mkdir(parents=True)
        (attempt / "metrics.csv").write_text(head + rows if rows else "")
    history = read_history(run)
    assert history["step"].tolist() == [1, 2, 3]
    assert history["train_loss"].tolist() == [3.0, 2.0, 1.6]
    assert history["val_loss"].fillna(0).tolist() == [0, 2.5, 0]
