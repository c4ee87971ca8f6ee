"""The encoding is found or is an error; text is never silently other text."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketlib.encoding import find_encoding

HEADER = "subject,body,queue\n"
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
# What customers write, by language, in letters of cp1252.
WESTERN = [
    "Größe und Maß für März – „schön“ 5 € à 3 Stück",
    "L’élève a été reçu à l’école, où ça ne va pas; cœur et naïveté",
    "El niño español preguntó: ¿cuándo llegará el envío?",
    "Não consigo aceder à minha conta, são várias situações",
    "Är det möjligt att få hjälp på svenska?",
    "Kan vi få hjælp til at løse problemet på øen?",
    "Perché non è più possibile? Così non va",
    "Get ég fengið hjálp, þakka þér fyrir, góðan daginn",
    "The café won’t open… déjà vu",
    *["Maß", "ü", "é", "’", "€", "it’s 20 °C", "£5", "§ 5", "Ø 5", "®", "50 µm ± ½", "São Paulo"],
    *["Tschüß", "Don’t", "naïve", "word—word", r"Hallo\nÜber uns"],
]
OTHERS = {
    "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy, prosím o pomoc s přihlášením, děkuji",
    "cp1251": "Не могу войти в свой аккаунт, помогите пожалуйста",
    "cp1253": "Δεν μπορώ να συνδεθώ στον λογαριασμό μου, παρακαλώ βοηθήστε",
    "koi8_r": "Не могу войти в свой аккаунт, помогите пожалуйста",
    "cp932": "ご注文の商品が届きません①返金をお願いいたします。三週間待っています。",
    "gb18030": "我无法登录我的账户，请帮忙重置密码，谢谢",
    "big5": "我無法登錄我的帳戶，請幫忙重置密碼，謝謝",
    "cp949": "로그인할 수 없습니다. 비밀번호를 재설정하고 싶습니다",
}


def read(raw, encoding=""):
    """The text, and how its encoding was found."""
    found = find_encoding(lambda: io.BytesIO(raw), "x.csv", encoding)
    with io.TextIOWrapper(io.BytesIO(raw), found.codec, found.errors, "") as file:
        text = file.read()
    assert found.has_last_line_end == (not text or text[-1] in "\r\n")
    return text, found.how


@settings(max_examples=60)
@given(ANY, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"]))
def test_any_text_in_unicode_is_found(text, encoding):
    text = HEADER + text
    decoded, how = read(text.encode(encoding))
    assert decoded == text and how.startswith(encoding)


@pytest.mark.parametrize("text", WESTERN)
def test_cp1252_is_found_in_a_single_line(text):
    raw = f"{HEADER}Hello,{text},A\n".encode("cp1252")
    place = next(i for i, byte in enumerate(raw) if byte > 127)
    how = f"cp1252 (not UTF-8: byte {raw[place]:#04x} at offset {place})"
    assert read(raw) == (f"{HEADER}Hello,{text},A\n", how)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(WESTERN), min_size=1, max_size=30), st.sampled_from("\r\n"))
def test_cp1252_is_found_in_text_of_several_languages(lines, line_end):
    text = HEADER + line_end.join([*lines, ""])
    assert read(text.encode("cp1252"))[0] == text


@pytest.mark.parametrize("encoding", OTHERS)
def test_other_encodings_are_guessed_from_enough_text(encoding):
    text = f"{HEADER}a,{OTHERS[encoding]},A\n" * 3
    decoded, how = read(text.encode(encoding))
    assert decoded == text and how.startswith(f"{encoding} (guessed, not UTF-8: byte ")


def test_encodings_that_fit_alike_are_named_in_an_error():
    text = "Siparişim ulaşmadı, iadesini rica ediyorum. Üç haftadır bekliyorum\n" * 50
    with pytest.raises(ValueError, match="it may be .*cp1254.* or cp125.*Pass its encoding"):
        read((HEADER + text).encode("cp1254"))


@pytest.mark.parametrize("encoding", [*OTHERS, "cp437", "mac_roman", "iso8859_2"])
def test_little_text_in_another_encoding_is_an_error_not_a_guess(encoding):
    text = OTHERS.get(encoding, "Może się" if encoding == "iso8859_2" else "Größe für")[:9]
    raw = f"{HEADER}a,{text},A\n".encode(encoding)
    with pytest.raises(ValueError, match="x.csv: byte .* no other is sure.* encoding='cp1252'"):
        read(raw)
    assert read(raw, encoding)[0].splitlines()[1] == f"a,{text},A"


@settings(max_examples=60)
@given(st.binary(), st.sampled_from(["utf-8", "utf-16", "utf-16-le", "cp1252"]))
def test_a_given_encoding_is_used_or_refused(tail, encoding):
    raw = HEADER.encode() + tail
    try:
        decoded, how = read(raw, encoding)
    except ValueError as error:
        assert f"so it is not {encoding}" in str(error)
    else:
        assert decoded == raw.decode(
            encoding, "strict" if encoding == "cp1252" else "surrogatepass"
        )
        assert how == encoding


def test_a_mark_is_taken_off_whatever_is_given():
    for encoding, given_ in [("utf-8-sig", "utf-8"), ("utf-16", "UTF-16LE"), ("utf-16", "utf_16")]:
        assert read("Maß".encode(encoding), given_)[0] == "Maß"
    with pytest.raises(ValueError, match="byte 0xff at offset 0, so it is not utf-8"):
        read("Maß".encode("utf-16"), "utf-8")
    with pytest.raises(ValueError, match="byte .*, so it is not utf-8-sig"):
        read(b"\xef\xbb\xbfMa\xdf")


@pytest.mark.parametrize("encoding", ["utf-99", "base64", "rot13", "hex", "cp 1252 x"])
def test_what_is_no_encoding_is_refused(encoding):
    with pytest.raises(ValueError, match=f"{encoding!r} is no encoding; try 'utf-8'"):
        read(b"abc", encoding)


@pytest.mark.parametrize("text", ["x,Maß,A", "x,€,A", "x,😀,A", "Größe,„Maß“,A", "x,Ma\ufffd,A"])
def test_utf8_that_is_cut_or_corrupt_is_not_taken_for_another(text):
    raw = (HEADER + text).encode()
    for length in range(len(HEADER), len(raw)):
        is_cut_within_a_letter = raw[:length].decode(errors="ignore").encode() != raw[:length]
        if is_cut_within_a_letter:
            with pytest.raises(ValueError, match="byte .* at offset .*: corrupt or cut UTF-8"):
                read(raw[:length])
    with pytest.raises(ValueError, match="corrupt or cut UTF-8"):
        read(raw + b"\n" + raw + b"\n\xff\n")


@pytest.mark.parametrize("encoding", OTHERS)
def test_another_encoding_that_is_cut_gives_the_same_text_or_an_error(encoding):
    text = f"{HEADER}a,{OTHERS[encoding]},A\n" * 2
    raw = text.encode(encoding)
    for length in range(len(raw) // 2, len(raw)):
        try:
            assert text.startswith(read(raw[:length])[0])
        except ValueError:
            pass


def test_half_surrogate_pairs_pass():
    assert read(b"\xed\xa0\xbdx")[0] == "\ud83dx"
    assert read("a\ud83d".encode("utf-16", "surrogatepass"))[0] == "a\ud83d"
