"""Any changed, cut or missing file is named, and sha256sum reads the list as we do."""

import shutil
import subprocess

import pytest

from ticketlib.checksums import verify_checksums, write_checksums

NAMES = ["a.bin", "weights/ü – 問題.txt", "weights/with  spaces", "weights/deep/.hidden", "empty"]


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(NAMES):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name == "empty" else bytes(range(256)) * (i + 1))
    write_checksums(tmp_path / "folder")
    return tmp_path / "folder"


def test_a_folder_fits_its_list_also_when_moved_and_extended(folder):
    lines = (folder / "SHA256SUMS").read_text("utf-8").splitlines()
    assert [line[66:] for line in lines] == sorted(NAMES)
    moved = folder.rename(folder.with_name("moved"))
    (moved / "README.md").write_text("not listed")
    verify_checksums(moved)
    before = (moved / "SHA256SUMS").read_bytes()
    (moved / "README.md").unlink()
    assert write_checksums(moved).read_bytes() == before


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="sha256sum is not installed")
def test_sha256sum_agrees(folder):
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=folder).returncode == 0
    theirs = subprocess.run(["sha256sum", *sorted(NAMES)], cwd=folder, capture_output=True)
    assert theirs.stdout == (folder / "SHA256SUMS").read_bytes()


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {"flip": flip, "cut": cut, "remove": lambda path: path.unlink()}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["a.bin", NAMES[1], NAMES[2]])
def test_damage_is_named_with_what_to_do(folder, name, damage):
    DAMAGE[damage](folder / name)
    happened = "missing" if damage == "remove" else "changed"
    with pytest.raises(ValueError, match=f"{name} (is|has) {happened}. Import it again.$") as error:
        verify_checksums(folder, hint="Import it again.")
    assert str(folder) in str(error.value)
    assert not [other for other in NAMES if other != name and other in str(error.value)]


def test_every_fault_is_named(folder):
    flip(folder / NAMES[1])
    (folder / NAMES[2]).unlink()
    with pytest.raises(ValueError, match="is missing, .* has changed"):
        verify_checksums(folder)


def test_a_folder_without_a_list_was_never_finished(folder):
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(FileNotFoundError, match="SHA256SUMS not found.*Train again."):
        verify_checksums(folder, hint="Train again.")


@pytest.mark.parametrize("kept", [0, 40, 68, 120])
def test_a_list_that_was_cut_off_is_no_proof(folder, kept):
    content = (folder / "SHA256SUMS").read_bytes()
    (folder / "SHA256SUMS").write_bytes(content[:kept])
    with pytest.raises(ValueError, match="damaged"):
        verify_checksums(folder)


def test_names_that_the_format_would_escape_are_refused(folder):
    (folder / "two\nlines").touch()
    with pytest.raises(ValueError, match="line break or backslash"):
        write_checksums(folder)
    verify_checksums(folder)
