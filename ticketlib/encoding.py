"""Which encoding a text file has: by its mark, by being valid UTF-8, else by its letters."""

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import charset_normalizer

# Byte order marks; UTF-32's begins with UTF-16's, so it comes first.
_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
# Text is in cp1252 if nearly all of its letters beyond ASCII are, line by line, those of a
# language that is written in it: German, French, Spanish, Portuguese, Italian and Catalan,
# Swedish, Danish and Norwegian, Icelandic, Dutch, Finnish and Estonian.
_ALPHABETS = [
    *["äöüßéàè", "àâçèéêëîïôœùûüÿ", "áéíñóúüç", "áâãàçéêíóôõúü", "àçèéíìîïòóùúü"],
    *["åäöéàü", "æøåéäöü", "áðéíóúýþæö", "éëïóèö", "äöõüšž"],
]
_LETTER = re.compile("[À-ÖØ-öø-ÿŒœŠšŽžŸ]")
# Signs and capitals within a word, such as `Gr”áe`, but for `\nÜber`.
_SMALL = "a-zß-öø-ÿœšž"
_MISPLACED = re.compile(rf"(?<=[{_SMALL}])(?<!\\n)[^\x00-\x7f\xa0\xad·’‘–—…{_SMALL}](?=[{_SMALL}])")
# Tried when it is not cp1252. Without a list, charset-normalizer names rare relatives of these.
LEGACY = (
    *["cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp437", "cp850"],
    *["cp866", "mac_roman", "koi8_r", "cp932", "euc_jp", "gb18030", "big5", "cp949"],
)
_ENOUGH = 20  # Bytes beyond ASCII; with fewer, charset-normalizer is wrong too often.
_BLOCK = 2**20
_ADVICE = "Pass its encoding, such as encoding='cp1252', or save the file as UTF-8."


@dataclass(frozen=True)
class Encoding:
    """How to decode a file, all of which was decoded to find out.

    Attributes:
        codec: For `open`; takes off a byte order mark.
        errors: For `open`; half surrogate pairs, which some programs write, are let through.
        how: The encoding and how it was found, in words.
        has_last_line_end: Whether the file ends with a line break.
    """

    codec: str
    errors: str
    how: str
    has_last_line_end: bool


def find_encoding(open_file: Callable[[], BinaryIO], name: str, encoding: str = "") -> Encoding:
    """The encoding of a file.

    Args:
        open_file: Opens the file for reading bytes; is called several times.
        name: What errors call the file.
        encoding: If you know it; then nothing is guessed.

    Raises:
        ValueError: If the file is not what its mark or `encoding` says, is damaged UTF-8, or
            cannot be told to be cp1252 or one of `LEGACY`.
    """
    with open_file() as file:
        start = file.read(64)
    marked = next((codec for mark, codec in _MARKS.items() if start.startswith(mark)), "")
    # Without a mark, the header has a zero in each character in UTF-16.
    zeros = [start[parity::2].count(0) > len(start) / 8 for parity in (0, 1)]
    unmarked = "utf-16-le" if zeros == [False, True] else "utf-16-be" if zeros[0] else ""
    how = marked or (unmarked and f"{unmarked} (no mark, but zeros)") or "utf-8"
    # A mark is no text if it fits: utf-8-sig is read as such even if utf-8 was asked for.
    if encoding and not (marked and _standard_name(encoding).startswith(marked.split("-s")[0])):
        how = encoding
    codec = encoding if how == encoding else how.split(" ")[0]
    try:
        return _decode(open_file, codec, how)
    except UnicodeError as error:
        if encoding or how != "utf-8":
            raise ValueError(f"{name}: {error}, so it is not {codec}. {_ADVICE}") from error
        with open_file() as file:
            legacy, how = _guess_legacy(file.read(), error, name)
    try:
        return _decode(open_file, legacy, how)
    except UnicodeError as error:
        raise ValueError(f"{name}: seems to be {legacy}, but {error}. {_ADVICE}") from error


def _guess_legacy(raw: bytes, fault: UnicodeError, name: str) -> tuple[str, str]:
    """Codec of bytes that are not UTF-8, and how it was found."""
    text = raw.decode("utf-8", errors="replace")
    bad = text.count("\ufffd") - raw.count("\ufffd".encode())
    good = len(text) - len(text.encode("ascii", errors="ignore")) - bad
    # In text of another encoding hardly any bytes happen to be valid UTF-8 beyond ASCII.
    if good >= bad or "unexpected end" in str(fault.__cause__):
        raise ValueError(f"{name}: {fault}: corrupt or cut UTF-8. {_ADVICE}") from fault
    lines = raw.splitlines()
    # The last line may be cut within a character.
    telling = [line for line in lines[:-1] or lines if not line.isascii()] or lines
    sample = b"\n".join(telling)[:_BLOCK]
    if _fits_cp1252(sample):
        return "cp1252", f"cp1252 (not UTF-8: {fault})"
    matches = charset_normalizer.from_bytes(sample, cp_isolation=list(LEGACY))
    best = matches.best()
    likely = [
        match
        for match in matches
        if match.chaos < best.chaos + 0.03 and match.coherence > best.coherence - 0.06
    ]
    is_rivaled = any(str(match) != str(best) for match in likely)
    if best is None or is_rivaled or sum(byte > 127 for byte in sample) < _ENOUGH:
        names = " or ".join(match.encoding for match in likely)
        hint = f"; it may be {names}" if names else ""
        raise ValueError(f"{name}: {fault}: not UTF-8, and no other is sure{hint}. {_ADVICE}")
    others = [other for other in best.could_be_from_charset if other != best.encoding]
    alike = f"; {', '.join(others)} would read it alike" if others else ""
    return best.encoding, f"{best.encoding} (guessed, not UTF-8: {fault}{alike})"


def _fits_cp1252(sample: bytes) -> bool:
    """Whether bytes read as cp1252 are words of languages that are written in it."""
    letters = fitting = 0
    for line in sample.decode("cp1252", errors="replace").splitlines():
        found = _LETTER.findall(line.lower())
        letters += len(found) + len(_MISPLACED.findall(line)) + 9 * line.count("\ufffd")
        fitting += max(sum(letter in alphabet for letter in found) for alphabet in _ALPHABETS)
    return fitting >= 0.95 * letters


def _standard_name(codec: str) -> str:
    """Python's name of a codec for text."""
    try:
        "".encode(codec)  # Others, such as base64, raise.
        return codecs.lookup(codec).name
    except (LookupError, TypeError) as error:
        raise ValueError(f"{codec!r} is no encoding; try 'utf-8' or 'cp1252'.") from error


def _decode(open_file: Callable[[], BinaryIO], codec: str, how: str) -> Encoding:
    """The encoding, all of the file decoded; a UnicodeError names the first bad byte."""
    errors = "surrogatepass" if _standard_name(codec).startswith("utf") else "strict"
    decoder = codecs.getincrementaldecoder(codec)(errors)
    offset, block, last = 0, b"-", ""
    with open_file() as file:
        while block:
            block = file.read(_BLOCK)
            pending = decoder.getstate()[0]
            try:
                last = decoder.decode(block, final=not block)[-1:] or last
            except UnicodeDecodeError as error:
                place = offset - len(pending) + error.start
                bad = error.object[error.start]
                raise UnicodeError(f"byte {bad:#04x} at offset {place}") from error
            offset += len(block)
    return Encoding(codec, errors, how, last in "\r\n")
