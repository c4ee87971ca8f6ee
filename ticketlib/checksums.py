"""A folder's files with their SHA-256, in the format of `sha256sum`, and whether they still fit.

`sha256sum --check SHA256SUMS` in such a folder gives the same verdict.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ticketlib.paths import replace_atomically

FILE = "SHA256SUMS"


def write_checksums(folder: Path) -> Path:
    """List every file of a folder, those of its subfolders too, in `SHA256SUMS`.

    Args:
        folder: Complete; what is added later is not listed and not verified.

    Returns:
        The list: lines of a hash, two spaces and a relative POSIX name, sorted by name.

    Raises:
        ValueError: A name holds a line break or a backslash, which the format would have to escape.
    """
    folder = Path(folder)
    files = (path for path in folder.rglob("*") if path.is_file())
    names = sorted({path.relative_to(folder).as_posix() for path in files} - {FILE})
    if strange := [name for name in names if set(name) & set("\n\r\\")]:
        raise ValueError(
            f"{folder} holds {strange[0]!r}; a line break or backslash in a file's name is not "
            "accepted. Rename it."
        )
    with replace_atomically(folder / FILE) as file:
        lines = [f"{digest}  {name}\n" for name, digest in _hash_files(folder, names).items()]
        file.write_text("".join(lines), "utf-8", errors="surrogateescape", newline="\n")
    return folder / FILE


def verify_checksums(folder: Path, *, hint: str = "") -> None:
    """Raise unless every file that `SHA256SUMS` lists is there with the content it had then.

    Args:
        folder: Of `write_checksums`.
        hint: What to do about damage, added to the message.

    Raises:
        FileNotFoundError: The folder has no list, so that it was never finished.
        ValueError: Files are missing or changed, each named, or the list itself cannot be read.
    """
    folder = Path(folder)
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"{folder / FILE} not found: it was never finished. {hint}".strip())
    lines = (folder / FILE).read_text("utf-8", errors="surrogateescape").split("\n")
    entries = [line.partition("  ") for line in lines if line]
    listed = {name: digest for digest, _, name in entries}
    found = _hash_files(folder, [name for name in listed if (folder / name).is_file()])
    faults = [
        f"{name} has changed" if name in found else f"{name} is missing"
        for name, digest in listed.items()
        if found.get(name) != digest
    ]
    if not listed or lines[-1]:
        faults.append(f"{FILE} is cut off")
    if faults:
        raise ValueError(f"{folder} is damaged: {', '.join(faults)}. {hint}".strip())


def _hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Name -> hex digest; in threads, since hashing leaves the interpreter to others."""

    def hash_file(name: str) -> tuple[str, str]:
        with (folder / name).open("rb") as file:
            return name, hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as pool:
        return dict(pool.map(hash_file, names))
