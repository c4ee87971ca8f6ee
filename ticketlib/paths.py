"""Where things are: the project, the inputs, and every file of a run, each named once."""

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def project_root() -> Path:
    """The nearest of the working directory and its parents that holds `notebooks/` and `data/`.

    Returns:
        That folder, or the working directory where there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "data").is_dir():
            return folder
    return here


def resolve(path: str | Path) -> Path:
    """The absolute path of an input, so that notebooks work from any folder of the project.

    Args:
        path: Absolute, or relative to the working directory or, where nothing is there, to the
            project root. `~` is your home folder.
    """
    path = Path(path).expanduser()
    from_here = Path.cwd() / path
    return from_here if from_here.exists() else project_root() / path


@dataclass(frozen=True)
class Run:
    """Every file of one run. Notebooks hand over to each other through these and nothing else.

    Attributes:
        run_name: Name of the run and of its folder.
        experiments_dir: Holds all runs and models; relative means under the project root.

    Raises:
        ValueError: If `run_name` is not the name of one folder.
    """

    run_name: str
    experiments_dir: str = "nemo-experiments"

    def __post_init__(self) -> None:
        """Keeps a run inside its own folder."""
        if self.run_name in ("", ".", "..") or {"/", "\\"} & set(self.run_name):
            raise ValueError(
                f"run_name is {self.run_name!r}; give the name of one folder, such as 'demo'."
            )

    @property
    def experiments(self) -> Path:
        """Everything that all runs write, absolute."""
        return project_root() / Path(self.experiments_dir).expanduser()

    @property
    def models(self) -> Path:
        """Base models in NeMo's format, shared by all runs."""
        return self.experiments / "models"

    @property
    def models_cache(self) -> Path:
        """Base models as downloaded, shared by all runs."""
        return self.experiments / "models-cache"

    @property
    def folder(self) -> Path:
        """Everything that this run writes."""
        return self.experiments / "results" / self.run_name

    @property
    def dataset(self) -> Path:
        """Folder of the prepared tickets: what NeMo calls `dataset_root`."""
        return self.folder / "dataset"

    @property
    def training_jsonl(self) -> Path:
        """Training prompts and answers."""
        return self.dataset / "training.jsonl"

    @property
    def validation_jsonl(self) -> Path:
        """Validation prompts and answers."""
        return self.dataset / "validation.jsonl"

    @property
    def test_jsonl(self) -> Path:
        """Test prompts and answers."""
        return self.dataset / "test.jsonl"

    @property
    def tickets(self) -> Path:
        """Clean tickets with their `group` and `split`."""
        return self.dataset / "tickets.parquet"

    @property
    def report(self) -> Path:
        """What reading the tickets changed."""
        return self.dataset / "report.csv"

    @property
    def settings(self) -> Path:
        """Queues, prompt format, lengths, seed and columns that later steps must share."""
        return self.dataset / "settings.json"

    @property
    def log(self) -> Path:
        """What NeMo, Megatron-Core and Lightning report."""
        return self.folder / "log.txt"

    @property
    def training(self) -> Path:
        """NeMo's checkpoints and logs."""
        return self.folder / "training"

    @property
    def jobs(self) -> Path:
        """Scripts, configurations and logs of the processes and jobs that NeMo-Run started."""
        return self.folder / "jobs"

    @property
    def history(self) -> Path:
        """Training and validation loss by step."""
        return self.folder / "history.csv"

    @property
    def training_settings(self) -> Path:
        """What the model was trained with."""
        return self.folder / "training.json"

    @property
    def exported(self) -> Path:
        """The result: full weights in Hugging Face format."""
        return self.folder / "exported"

    @property
    def exported_mxfp4(self) -> Path:
        """The same with the experts in 4 bits, as OpenAI releases gpt-oss."""
        return self.folder / "exported-mxfp4"

    @property
    def adapter(self) -> Path:
        """The adapter alone, in PEFT's format."""
        return self.folder / "adapter"

    @property
    def proof(self) -> Path:
        """How far what was exported is from what was trained."""
        return self.folder / "proof.json"

    @property
    def predictions(self) -> Path:
        """Probabilities of the test tickets, for every model."""
        return self.folder / "predictions.parquet"

    @property
    def metrics(self) -> Path:
        """The figures that `predictions` give."""
        return self.folder / "metrics.json"

    @property
    def figures(self) -> Path:
        """Folder of the plots."""
        return self.folder / "figures"

    @property
    def report_html(self) -> Path:
        """Notebook 04 without its code, for those who decide."""
        return self.folder / "report.html"

    @property
    def notebooks(self) -> Path:
        """Folder of the executed notebooks."""
        return self.folder / "notebooks"


def require(path: Path, made_by: str, run_name: str = "") -> Path:
    """The path, once an earlier notebook has made it.

    Args:
        path: File or folder that must exist.
        made_by: Notebook that writes it.
        run_name: Run that it belongs to.

    Raises:
        FileNotFoundError: If it does not exist, with what to run first.
    """
    path = Path(path)
    if path.exists():
        return path
    root = project_root()
    is_project = (root / "notebooks").is_dir()
    shown = path.relative_to(root) if is_project and path.is_relative_to(root) else path
    with_run = f' with run_name = "{run_name}"' if run_name else ""
    elsewhere = (
        ""
        if is_project
        else " If it has run elsewhere, set experiments_dir to the full path of the folder there."
    )
    raise FileNotFoundError(f"{shown} not found. Run {made_by}{with_run} first.{elsewhere}")


def read_settings(run: Run) -> dict:
    """What notebook 02 wrote for the steps after it.

    Returns:
        `prompt` (`queues` and `prompt_format`, as the functions of `ticketlib.prompts` take them),
        `seq_length`, `profile`, `seed`, `tickets_csv`.

    Raises:
        FileNotFoundError: If notebook 02 has not run.
    """
    path = require(run.settings, made_by="02_prepare_jsonl.ipynb", run_name=run.run_name)
    return json.loads(path.read_text("utf-8"))


def read_training_settings(run: Run) -> dict:
    """What notebook 03 trained with (`training.describe_recipe`).

    Raises:
        FileNotFoundError: If notebook 03 has not run.
    """
    path = require(run.training_settings, made_by="03_train_lora.ipynb", run_name=run.run_name)
    return json.loads(path.read_text("utf-8"))


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """A temporary path to write a file or a folder to, which becomes `path` when the block ends.

    Readers see the old one or the whole new one, never a part. The temporary one lies beside
    `path`, in a folder that is made if need be, and keeps its suffix, from which some writers
    take the format. It is removed when the block fails, and `path` stays as it was.

    Args:
        path: File or folder to write or replace.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            os.replace(path, old)  # A folder cannot be renamed onto another
        os.replace(temporary, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        for leftover in (temporary, old):
            remove(leftover)


@contextmanager
def locked(path: Path, busy: str = "") -> Iterator[None]:
    """Let one process at a time make a file or folder.

    Args:
        path: To be made; beside it, an empty file keeps the lock.
        busy: What to say where another process is at it; empty waits for it.

    Raises:
        RuntimeError: Another process is at it, and there is something to say.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise RuntimeError(busy) from None
        except OSError:  # File systems of some clusters have no locks
            pass
        yield


def require_space(folder: Path, needed: int) -> None:
    """Raise before something is begun that the disk cannot hold.

    Args:
        folder: Where it is to be written; its nearest existing parent is asked.
        needed: Bytes.

    Raises:
        OSError: With what is needed and what is free.
    """
    folder = Path(folder).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free. Remove old runs, "
            "or set experiments_dir to a larger disk",
            str(folder),
        )


def write_json(path: str | Path, content: object) -> Path:
    """A JSON file in UTF-8, written atomically.

    Args:
        path: File to write or replace.
        content: What `json.dumps` takes.

    Raises:
        ValueError: If it holds NaN or infinity, which JSON does not know.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replace_atomically(Path(path)) as file:
        file.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if Path(path).is_dir():
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)
